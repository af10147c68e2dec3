"""The figures of folders of pictures beside those of torch-fidelity, with the same weights of Inception."""

import json

import numpy as np
import pytest
import torch
import torch_fidelity
from PIL import Image

from benchmarks.inception_weights import random_inception_weights
from lightning_gen.commands.evaluate import evaluate
from lightning_gen.data.images import read_image
from lightning_gen.metrics import InceptionFeatures
from lightning_gen.metrics.base import in_canonical_order

NUMBER = 12


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of smooth pictures of 40 x 32, one of them darker."""
    root = tmp_path_factory.mktemp("folders")
    random = np.random.default_rng(0)
    for name, gain in (("real", 1.0), ("fake", 0.6)):
        (root / name).mkdir()
        for i in range(NUMBER):
            coarse = Image.fromarray((gain * random.integers(0, 256, (5, 4, 3))).astype(np.uint8))
            coarse.resize((32, 40), Image.Resampling.BICUBIC).save(root / name / f"{i:03d}.png")
    random_inception_weights(root / "inception.pth")
    # The order of names, in which torch-fidelity deals pictures to splits, is made that of the content, as here.
    extractor = InceptionFeatures(weights=root / "inception.pth")
    files = sorted((root / "fake").iterdir())
    logits = extractor(torch.stack([read_image(file) for file in files])).logits
    order = (in_canonical_order(logits)[:, None] == logits).all(2).nonzero()[:, 1]
    for place, file in enumerate(order.tolist()):
        files[file].rename(root / "fake" / f"{place:03d}_{file}.png")
    return root


def test_fid_is_and_kid_of_folders_are_those_of_torch_fidelity(folders, capsys):
    theirs = torch_fidelity.calculate_metrics(
        input1=str(folders / "fake"), input2=str(folders / "real"), fid=True, isc=True, kid=True, cuda=False,
        kid_subsets=1, kid_subset_size=NUMBER, feature_extractor_weights_path=str(folders / "inception.pth"),
        batch_size=10, save_cpu_ram=True, cache=False, verbose=False,
    )  # fmt: skip
    evaluate(
        images=folders / "fake",
        reference=str(folders / "real"),
        extractor=InceptionFeatures(weights=folders / "inception.pth"),
        figures=["fid", "is", "kid"],
        output=folders / "figures.json",
        accelerator="cpu",
    )
    (entry,) = json.loads((folders / "figures.json").read_text())["evaluations"]
    ours = {name: figure["value"] for name, figure in entry["figures"].items()}
    (suffix,) = {name.partition("-")[2] for name in ours}
    assert suffix.startswith("inception2048-")  # not the published weights
    ours = {name.partition("-")[0]: value for name, value in ours.items()}
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert ours["is"] == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert ours["is_std"] == pytest.approx(theirs["inception_score_std"], rel=1e-3)
