"""The baseline's figures are those of a direct computation, beside the model's own."""

import functools

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_gen.callbacks import ColorMappingBaseline
from lightning_gen.data.images import from_uint8, to_uint8
from lightning_gen.metrics.color_mapping import HistogramMatching
from lightning_gen.models import CycleGAN, Pix2Pix
from lightning_gen.networks import PatchDiscriminator, ResNetGenerator

SHAPE = (3, 16, 16)
GENERATOR = functools.partial(ResNetGenerator, filters=2, blocks=1)
DISCRIMINATOR = functools.partial(PatchDiscriminator, filters=2, layers=1)


def dark(images):
    return images * 0.4 - 0.5


class Data(pl.LightningDataModule):
    """B is a darker A, up to noise; training pictures are not paired."""

    def __init__(self, paired=True):
        super().__init__()
        random = torch.Generator().manual_seed(0)

        def images(number):
            noise = 0.1 * torch.rand(number, *SHAPE, generator=random)
            return torch.rand(number, *SHAPE, generator=random) * 2 - 1, noise

        (a, _), (b, _), (self.a, noise) = images(6), images(6), images(5)
        self.train_a, self.train_b, self.b = a, dark(b), dark(self.a) + noise
        self.extra = {"paired": True} if paired else {}

    def train_dataloader(self):
        return DataLoader([{"A": self.train_a[i : i + 2], "B": self.train_b[i : i + 2]} for i in (0, 2, 4)], None)

    def test_dataloader(self):
        parts = (slice(0, 3), slice(3, 5))
        return DataLoader([{"A": self.a[s], "B": self.b[s], **self.extra} for s in parts], None)


def run(data, callback, cls=CycleGAN):
    torch.manual_seed(0)
    model = cls(SHAPE, GENERATOR, DISCRIMINATOR)
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (results,) = trainer.test(model, datamodule=data, verbose=False)
    return results


def expected_psnr(data, direction, number):
    matching = HistogramMatching()
    matching.update("A", to_uint8(data.train_a[:number]))
    matching.update("B", to_uint8(data.train_b[:number]))
    source, target = (data.a, data.b) if direction == "AtoB" else (data.b, data.a)
    mapped = matching(to_uint8(source), direction).double()
    errors = (mapped - to_uint8(target).double()).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(255**2 / errors)).mean().item()


def test_its_figures_equal_a_direct_computation_and_stand_beside_the_model_s():
    data = Data()
    results = run(data, ColorMappingBaseline())
    for direction in ("AtoB", "BtoA"):
        assert results[f"test/color_mapping_psnr_{direction}"] == pytest.approx(
            expected_psnr(data, direction, 6), rel=1e-5
        )
        assert 0 < results[f"test/color_mapping_ssim_{direction}"] < 1
        # The untrained model's own figure is another one.
        assert results[f"test/psnr_{direction}"] < results[f"test/color_mapping_psnr_{direction}"]


def test_only_so_many_training_pictures_are_counted():
    data = Data()
    results = run(data, ColorMappingBaseline(num_images=3))  # two batches of two
    assert results["test/color_mapping_psnr_AtoB"] == pytest.approx(expected_psnr(data, "AtoB", 4), rel=1e-5)


def test_a_second_test_starts_anew():
    callback = ColorMappingBaseline()
    assert run(Data(), callback) == run(Data(), callback)


def test_only_the_model_s_directions_are_measured():
    results = run(Data(), ColorMappingBaseline(), cls=Pix2Pix)
    assert "test/color_mapping_psnr_AtoB" in results
    assert "test/color_mapping_psnr_BtoA" not in results


def test_without_pairs_there_is_nothing_to_log():
    assert not any("color_mapping" in name for name in run(Data(paired=False), ColorMappingBaseline()))


def test_a_number_below_one_is_refused():
    with pytest.raises(ValueError, match="num_images >= 1, got 0"):
        ColorMappingBaseline(0)


def test_pictures_of_8_bits_have_the_figures_of_the_same_in_floats():
    data = Data()
    for name in ("a", "b", "train_a", "train_b"):
        setattr(data, name, to_uint8(getattr(data, name)))
    of_bytes = run(data, ColorMappingBaseline())
    for name in ("a", "b", "train_a", "train_b"):
        setattr(data, name, from_uint8(getattr(data, name)))
    assert run(data, ColorMappingBaseline()) == of_bytes
