import functools
import importlib
import json

import pytest
import torch
from torch import nn

from lightning_gen.checkpoints import CheckpointError
from lightning_gen.generative import GenerativeModule
from lightning_gen.hyperparameters import CLASS_KEY, Recipe, hyperparameters_of, import_path, made_by
from lightning_gen.layers import MaskedConv2d
from lightning_gen.losses import GradientPenalty, InstanceNoise
from lightning_gen.models import CycleGAN, LMConv
from lightning_gen.networks import PatchDiscriminator, ResNetGenerator

SHAPE = (3, 16, 16)
GENERATOR = functools.partial(ResNetGenerator, filters=2, blocks=1)
DISCRIMINATOR = functools.partial(PatchDiscriminator, filters=2, layers=1)


def test_hyperparameters_are_plain_data():
    plain = hyperparameters_of(
        {"a": (1, 2), "b": GENERATOR, "c": nn.ReLU, "d": GradientPenalty(3.0), "e": lambda: 0, "_f": 1}
    )
    assert plain == {
        "a": [1, 2],
        "b": {
            "class_path": "lightning_gen.networks.ResNetGenerator",
            "init_args": {"filters": 2, "blocks": 1},
        },
        "c": {"class_path": "torch.nn.ReLU"},
        "d": {
            "class_path": "lightning_gen.losses.GradientPenalty",
            "init_args": {"weight": 3.0, "one_sided": False, "target": 1.0, "interval": 1},
        },
        "_not_saved": ["e"],
    }


@pytest.mark.parametrize("room", ["models", "networks", "layers", "losses"])
def test_what_is_public_is_named_so_and_a_user_s_own_by_its_module(room):
    package = importlib.import_module(f"lightning_gen.{room}")
    for name in package.__all__:
        assert import_path(getattr(package, name)) == f"lightning_gen.{room}.{name}"
    # Found elsewhere, too, but trusted there.
    assert import_path(json.JSONDecoder) == "json.decoder.JSONDecoder"
    for nameless in (lambda: 0, type("JSONDecoder", (), {"__module__": "json.decoder"})):
        with pytest.raises(TypeError, match="does not lead back"):
            import_path(nameless)


def test_overrides_replace_saved_arguments():
    saved = {CLASS_KEY: "lightning_gen.models.CycleGAN", "image_shape": [3, 16, 16], "generator": "os.system"}
    model = Recipe(saved, CycleGAN, {"generator": GENERATOR, "discriminator": DISCRIMINATOR}).build()
    assert model.image_shape == SHAPE


def test_an_outline_costs_nothing_and_knows_what_no_checkpoint_holds():
    settings = {"filters": 2, "num_blocks": 1, "num_levels": 2}  # as they were saved when sizes were the model's own
    recipe = Recipe({CLASS_KEY: "lightning_gen.models.LMConv", "image_shape": [1, 4, 4], **settings}, LMConv)
    state = torch.random.get_rng_state()
    outline = recipe.build_outline(10**3)
    assert torch.equal(torch.random.get_rng_state(), state)
    whole = recipe.build()
    assert all(weight.is_meta for weight in outline.state_dict().values())
    shapes = [{name: weight.shape for name, weight in model.state_dict().items()} for model in (outline, whole)]
    assert shapes[0] == shapes[1]
    kept = [name for name, _ in whole.named_buffers() if name not in whole.state_dict()]
    assert kept
    assert all(torch.equal(outline.get_buffer(name), whole.get_buffer(name)) for name in kept)
    with torch.device("meta"):  # who builds there himself finds all of it there
        assert MaskedConv2d(1, 1, 3, "A").mask.is_meta


def test_an_outline_of_too_many_parts_is_given_up_and_leaves_no_hook():
    recipe = Recipe({CLASS_KEY: "lightning_gen.models.CycleGAN", "image_shape": list(SHAPE)}, CycleGAN)
    with pytest.raises(CheckpointError, match="far more parts than the file has weights"):
        recipe.build_outline(-19)  # 50 parts
    nn.Sequential(*[nn.Linear(1, 1) for _ in range(100)])


def test_what_a_factory_makes_must_be_of_its_kind():
    assert isinstance(made_by(GENERATOR, nn.Module, SHAPE), ResNetGenerator)
    with pytest.raises(ValueError, match=r"dict was given as what makes a Module, but it made \{'a': 1\}"):
        made_by(functools.partial(dict, a=1), nn.Module)
    with pytest.raises(ValueError, match=r"Give what makes it: the class Linear, or functools.partial\(Linear, ...\)"):
        made_by(nn.Linear(1, 1), nn.Module, SHAPE)


def test_the_fields_of_a_dataclass_are_a_call_of_it():
    saved = {**hyperparameters_of({"image_shape": (1, 8, 8)}), CLASS_KEY: "lightning_gen.models.GAN"}
    noise = {"std": 0.1, "anneal_steps": 5000}  # as the command line keeps them
    assert Recipe({**saved, "instance_noise": noise}, GenerativeModule).build().instance_noise == InstanceNoise(**noise)
    with pytest.raises(CheckpointError, match="takes no argument 'stdd'"):
        Recipe({**saved, "instance_noise": {"stdd": 0.1}}, GenerativeModule)
