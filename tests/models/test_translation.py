"""Translating pictures of any size, and what validation and test log."""

import functools

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from lightning_gen.capabilities import Translates
from lightning_gen.models import CycleGAN, Pix2Pix
from lightning_gen.networks import PatchDiscriminator, ResNetGenerator

SHAPE = (3, 16, 16)
GENERATOR = functools.partial(ResNetGenerator, filters=2, blocks=1, init_std=0.2)
DISCRIMINATOR = functools.partial(PatchDiscriminator, filters=2, layers=1)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


def make(**settings):
    torch.manual_seed(0)
    return CycleGAN(SHAPE, **{"generator": GENERATOR, "discriminator": DISCRIMINATOR, **settings})


def trainer(**settings):
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 22), (13, 40), (5, 6)])
def test_any_size_equals_the_padded_picture_translated_and_cropped(height, width):
    model = make()
    images = torch.rand(2, 3, height, width) * 2 - 1
    padded = F.pad(images, (0, -width % 4, 0, -height % 4), mode="reflect")
    for direction in ("AtoB", "BtoA"):
        with torch.no_grad():
            expected = getattr(model, f"generator_{direction}")(padded)[:, :, :height, :width]
        assert torch.equal(model.translate(images, direction), expected)
    assert not torch.equal(model.translate(images, "AtoB"), model.translate(images, "BtoA"))


def test_a_generator_says_itself_of_what_its_sizes_must_be_multiples():
    seen = []

    class Spy(nn.Module):
        size_multiple = 32

        def __init__(self, image_shape):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, images):
            seen.append(tuple(images.shape))
            return images * self.scale

    images = torch.rand(1, 3, 33, 20)
    assert torch.equal(make(generator=Spy).translate(images), images)
    assert seen == [(1, 3, 64, 32)]


def test_results_are_float32_without_a_graph_also_in_low_precision():
    model, images = make(), torch.rand(1, *SHAPE)
    exact = model.translate(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model.translate(images)
    low = make().to(torch.bfloat16).translate(images.to(torch.bfloat16))
    for result in (exact, mixed, low):
        assert result.dtype == torch.float32
        assert not result.requires_grad
        assert result.abs().max() <= 1
    # bfloat16 has 8 bits: it was really used, and nothing else went wrong.
    for result in (mixed, low):
        assert 0 < (result - exact).abs().max() < 0.1


def test_dropout_and_batch_norm_are_in_evaluation_mode_and_put_back_even_after_an_exception():
    model = make(generator=functools.partial(GENERATOR, norm="batch", dropout=0.5))
    model.train()
    model.generator_AtoB.layers[1].eval()
    modes = {name: m.training for name, m in model.named_modules()}
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    images = torch.rand(2, *SHAPE)
    state = torch.get_rng_state()
    result = model.translate(images)
    assert torch.equal(model.translate(images), result)
    torch.testing.assert_close(model.translate(images[:1]), result[:1])
    with pytest.raises(RuntimeError):
        model.translate(torch.zeros(2, 7, 16, 16))
    assert torch.equal(torch.get_rng_state(), state)
    assert modes == {name: m.training for name, m in model.named_modules()}
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())


def test_a_direction_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="CycleGAN translates AtoB and BtoA, not 'BtoC'"):
        make().translate(torch.zeros(1, *SHAPE), "BtoC")
    paired = Pix2Pix(SHAPE, GENERATOR, lambda shape: PatchDiscriminator(shape, filters=2, layers=1))
    with pytest.raises(ValueError, match="Pix2Pix translates AtoB, not 'BtoA'"):
        paired.translate(torch.zeros(1, *SHAPE), "BtoA")
    assert isinstance(paired, Translates)


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ({"x": torch.zeros(1), "B": torch.zeros(1, *SHAPE)}, r"got keys \['B', 'x'\]"),
        (torch.zeros(1, *SHAPE), "got a Tensor"),
        ([torch.zeros(1, *SHAPE), torch.zeros(1)], "got a list"),
    ],
    ids=["keys", "tensor", "list"],
)
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_batches_of_another_kind_are_refused_with_what_they_are(batch, found, stage):
    loader = DataLoader([batch], None)
    with pytest.raises(ValueError, match=f"dictionaries with pictures 'A' and 'B', {found}"):
        getattr(trainer(max_steps=1), stage)(make(), loader)


class Negative(nn.Module):
    """A translation whose result is known."""

    def __init__(self, image_shape):
        super().__init__()
        self.scale = nn.Parameter(-torch.ones(()))

    def forward(self, images):
        return images * self.scale


def test_each_direction_is_measured_against_its_own_counterparts_where_there_are_any():
    a = torch.rand(4, *SHAPE) - 0.5
    off = 2 / 255  # one level
    batches = [{"A": a[:3], "B": -a[:3] + 2 * off, "paired": True}, {"A": a[3:], "B": -a[3:] - 2 * off, "paired": True}]
    model = make(generator=Negative)
    (results,) = trainer().test(model, DataLoader(batches, None), verbose=False)
    # Two levels of 255 everywhere, but for the rounding of a and of its negative.
    for name in ("test/psnr_AtoB", "test/psnr_BtoA"):
        assert results[name] == pytest.approx(20 * torch.tensor(255 / 2).log10().item(), abs=0.5)
    assert 0.9 < results["test/ssim_AtoB"] < 1
    assert results["test/cycle_A"] == results["test/cycle_B"] == 0

    (results,) = trainer().test(model, DataLoader([{"A": a, "B": a}], None), verbose=False)
    assert not any("psnr" in name or "ssim" in name for name in results)


def test_the_cycle_distance_is_the_mean_over_pictures():
    class Half(Negative):
        def forward(self, images):
            return images / 2 * self.scale

    a, b = torch.rand(3, *SHAPE), torch.rand(3, *SHAPE) / 2
    batches = [{"A": a[:2], "B": b[:2]}, {"A": a[2:], "B": b[2:]}]
    (results,) = trainer().validate(make(generator=Half), DataLoader(batches, None), verbose=False)
    # F(G(a)) = a / 4
    assert results["val/cycle_A"] == pytest.approx(0.75 * a.mean().item(), rel=1e-5)
    assert results["val/cycle_B"] == pytest.approx(0.75 * b.mean().item(), rel=1e-5)


def test_predictions_are_translations_by_direction():
    model, batch = make(), {d: torch.rand(2, *SHAPE) for d in "AB"}
    (given,) = trainer().predict(model, DataLoader([batch], None))
    assert torch.equal(given["AtoB"], model.translate(batch["A"], "AtoB"))
    assert torch.equal(given["BtoA"], model.translate(batch["B"], "BtoA"))
