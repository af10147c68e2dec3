"""The README's chain of commands in a fresh folder, each on what the one before has left."""

import csv
import json
from pathlib import Path

import pytest
import torch

from lightning_gen.commands.complete import known_pixels
from lightning_gen.data import Digits
from lightning_gen.data.images import read_image, write_image
from lightning_gen.models import GatedPixelCNN

SMALL = [
    *(
        "--model.network.filters",
        4,
        "--model.network.layers",
        2,
        "--trainer.max_steps",
        2,
        "--trainer.accelerator",
        "cpu",
    ),
    *("--data.batch_size", 8, "--data.num_workers", 0, "--test_after_fit", "false"),
]
RUN = Path("runs/gated_pixelcnn/version_0")


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def test_each_command_takes_what_the_one_before_has_left(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        ended = command(*arguments)
        assert ended.code == 0, ended.err
        return ended.out

    run("fit", "--config", "gated_pixelcnn", *SMALL)
    data, model = Digits(num_workers=0, batch_size=8), GatedPixelCNN.load_from_checkpoint(RUN / "checkpoints/last.ckpt")

    said = run("sample", "--checkpoint", RUN, "--output", "samples", "--num_samples", 12, "--temperature", 0.5)
    assert said.splitlines() == [
        "12 pictures written into samples, an overview to samples_grid.png",
        "Next:",
        f"  lightning-gen sample --checkpoint {RUN} --output FOLDER --seed 1",
        f"  lightning-gen evaluate --checkpoint {RUN}",
    ]
    samples = [f"{i:06d}" for i in range(12)]
    assert names("samples") == [f"{name}.png" for name in samples]

    for i in range(15):  # of several sizes, as photographs are
        write_image(Path(f"photos/{i:02d}.png"), torch.rand(3, 8 + i % 3, 9).mul(2).sub(1))
    extractor = ["--extractor", "ModuleFeatures", "--extractor.module", "torch.nn.Flatten", "--resize", "bicubic"]
    settings = ["--figures", "[fid,kid]", "--accelerator", "cpu"]
    run("evaluate", "--images", "samples", "--reference", "photos", "--output", "figures.json", *extractor, *settings)
    (entry,) = json.loads(Path("figures.json").read_text())["evaluations"]
    numbers = {name: (figure["samples"], figure["reference"]) for name, figure in entry["figures"].items()}
    assert numbers == {"fid-flatten-bicubic8x9": (12, 15), "kid-flatten-bicubic8x9": (12, 12)}

    said = run(
        "complete", "--checkpoint", RUN, "--input", "samples", "--mask", "bottom", "--samples", 2, "--output", "filled"
    )
    assert said.splitlines() == [
        "12 of 12 pictures completed into filled",
        "Next:",
        f"  lightning-gen complete --checkpoint {RUN} --input samples --output FOLDER --seed 1",
    ]
    assert names("filled/completions") == [f"{name}_{i}.png" for name in samples for i in range(2)]
    known = known_pixels("bottom", (8, 8))
    for name in samples:
        given = read_image(f"samples/{name}.png", 1)
        assert torch.equal(read_image(f"filled/completions/{name}_1.png", 1)[:, known], given[:, known])

    run("predict", "--ckpt_path", RUN)
    with (RUN / "predictions/predictions.csv").open(newline="") as file:
        predicted = [float(row["log_prob"]) for row in csv.DictReader(file)]
    expected = torch.cat([model.batch_log_prob(batch) for batch in data.predict_dataloader()])
    assert predicted == pytest.approx(expected.tolist(), rel=1e-5)

    assert run("report", RUN) == f"Report: {RUN / 'index.html'}\n"
    assert sorted(path.name for path in Path().iterdir()) == [
        *("figures.json", "filled", "filled_grid.png", "photos", "runs", "samples", "samples_grid.png")
    ]
