"""Extractors as perceptual losses: what layers they show, when they are made, and what a checkpoint says of them."""

from functools import partial

import pytest
import torch
from torch import nn

from lightning_gen.checkpoints import CheckpointError
from lightning_gen.data.images import from_uint8
from lightning_gen.extractors import (
    ClassifierFeatures,
    FeatureDistance,
    FeatureExtractor,
    ModuleFeatures,
    SceneFeatures,
)
from lightning_gen.generative import GenerativeModule
from lightning_gen.hyperparameters import CLASS_KEY, Recipe, hyperparameters_of, import_path
from lightning_gen.losses import LPIPSDistance, PerceptualLoss
from lightning_gen.losses.perceptual import layered_distances
from lightning_gen.models import Classifier
from lightning_gen.trust import UntrustedNameError, resolve
from tests.shared import save

SCENES = partial(SceneFeatures, num_scenes=64, epochs=1)


def pictures(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [32, 48])
def test_the_last_layer_is_the_features(size):
    extractor, images = SCENES(size), pictures(3, 3, size, size)
    layers = extractor.layers_of(from_uint8(images))
    # At 48 the reader averages to 32, of which the maps know nothing.
    assert [tuple(layer.shape[1:]) for layer in layers] == [*((c, size // 2**i, size // 2**i) for i, c in
                                                              enumerate((24, 48, 64), 1)), (128,)]  # fmt: skip
    torch.testing.assert_close(layers[-1], extractor(images).features)


def test_a_classifier_shows_its_maps_and_features(tmp_path):
    path = save(Classifier((1, 12, 8), num_classes=3), tmp_path / "a.ckpt", global_step=0)
    extractor, images = ClassifierFeatures(path), pictures(3, 1, 12, 8)
    layers = extractor.layers_of(from_uint8(images))
    assert [tuple(layer.shape) for layer in layers] == [(3, 16, 12, 8), (3, 32, 6, 4), (3, 64)]
    torch.testing.assert_close(layers[-1], extractor(images).features)


def test_it_is_the_distance_of_layers_with_a_gradient_to_every_pixel():
    loss, a, b = FeatureDistance(SCENES), *(from_uint8(pictures(2, 3, 32, 32, seed=seed)) for seed in (0, 1))
    a.requires_grad_()
    found, extractor = loss(a, b), SCENES(32)
    torch.testing.assert_close(found, layered_distances(extractor.layers_of(a), extractor.layers_of(b)).mean())
    found.backward()
    assert a.grad.ne(0).float().mean() > 0.9


def test_the_extractor_is_made_when_a_run_starts_and_is_of_its_pictures():
    made = []

    def maker():
        made.append(SCENES())
        return made[-1]

    loss = FeatureDistance(maker)
    assert not made
    loss.prepare((3, 32, 40))
    assert made[0].image_shape == (3, 32, 40)
    assert len(made) == 1
    with pytest.raises(ValueError, match=r"takes pictures \[3, 32, 40\]; these are \[3, 32, 32\]"):
        loss.prepare((3, 32, 32))
    with pytest.raises(ValueError, match=r"does not show its layers\. Take SceneFeatures"):
        FeatureDistance(partial(ModuleFeatures, nn.Flatten())).prepare((3, 4, 4))
    with pytest.raises(ValueError, match="FeatureExtractor, but it made Linear"):
        FeatureDistance(partial(nn.Linear, 2, 2)).prepare((3, 4, 4))


class Judged(GenerativeModule):
    def __init__(self, image_shape: tuple[int, int, int], perceptual: PerceptualLoss | None = None) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.perceptual = perceptual


def rebuilt(perceptual):
    settings = hyperparameters_of({"image_shape": (3, 32, 32), "perceptual": perceptual})
    path = import_path(Judged)
    return Recipe({CLASS_KEY: path, **settings}, Judged, trust=(path,)).build().perceptual


def test_a_checkpoint_holds_its_recipe_and_no_weight(tmp_path):
    loss = FeatureDistance(partial(SCENES, seed=3))
    loss.prepare((3, 32, 32))
    again = rebuilt(loss)
    assert again.extractor.func is SceneFeatures
    assert again.extractor.keywords == {"num_scenes": 64, "epochs": 1, "seed": 3}
    assert again._network is None
    assert rebuilt(LPIPSDistance("alex")) == LPIPSDistance("alex")
    model = Judged((3, 32, 32), loss)
    assert not model.state_dict()
    assert not list(model.parameters())
    model.double()
    images = from_uint8(pictures(1, 3, 32, 32))
    assert model.perceptual(images.double(), images.double().flip(3)) > 0


def test_a_checkpoint_may_name_an_extractor_where_one_is_asked_for_alone():
    with pytest.raises(UntrustedNameError):
        resolve("lightning_gen.extractors.SceneFeatures")
    for wrong in (nn.Module, GenerativeModule):
        with pytest.raises(UntrustedNameError):
            resolve("lightning_gen.extractors.SceneFeatures", base=wrong)
    assert resolve("lightning_gen.extractors.SceneFeatures", base=FeatureExtractor) is SceneFeatures
    assert resolve("lightning_gen.extractors.FeatureDistance", base=PerceptualLoss) is FeatureDistance


def test_a_checkpoint_may_name_no_extractor_that_takes_a_program():
    with pytest.raises(CheckpointError, match="ModuleFeatures"):
        rebuilt(FeatureDistance(partial(ModuleFeatures, module="a.pt")))
