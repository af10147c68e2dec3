"""Pictures in tiles: the same as whole where a function is local, and without seams where it is not."""

import pytest
import torch
from torch import nn

from lightning_gen.tiling import tiled

SIZES = [(40, 40), (41, 67), (64, 33), (16, 90), (33, 32), (65, 65)]


def blur(radius):
    """A network that looks so many pixels far, and no further."""
    torch.manual_seed(0)
    return nn.Conv2d(3, 3, 2 * radius + 1, padding=radius, padding_mode="zeros").requires_grad_(False)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("overlap", "multiple"), [(8, 1), (8, 4), (16, 1), (16, 8)])
def test_what_reaches_no_further_than_the_context_is_the_same(size, overlap, multiple):
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    network = blur(3 * overlap // 8)
    torch.testing.assert_close(
        tiled(network, images, 32, overlap=overlap, multiple=multiple), network(images), rtol=0, atol=1e-5
    )
    further = blur(3 * overlap // 8 + 1)
    if max(size) > 32:
        assert not torch.allclose(tiled(further, images, 32, overlap=overlap), further(images), rtol=0, atol=1e-5)


def test_strides_are_kept():
    """Halving and doubling depends on where a picture begins; tiles begin at multiples of it."""
    network = nn.Sequential(nn.AvgPool2d(4), nn.Upsample(scale_factor=4))
    images = torch.randn(1, 3, 68, 100)
    torch.testing.assert_close(tiled(network, images, 32, multiple=4), network(images), rtol=0, atol=1e-5)


def test_no_tile_is_larger_and_small_pictures_are_whole():
    seen = []

    def change(images):
        seen.append(tuple(images.shape[-2:]))
        return images

    images = torch.randn(1, 3, 50, 100)
    torch.testing.assert_close(tiled(change, images, 32), images)
    assert max(height for height, _ in seen) == max(width for _, width in seen) == 32
    assert len(seen) == 2 * 4
    seen.clear()
    assert torch.equal(tiled(change, images, 100), images)
    assert seen == [(50, 100)]


def test_what_differs_from_tile_to_tile_fades():
    """A constant of each tile: no step between neighbours is larger than the difference by the length of the fade."""
    count = iter(range(100))
    result = tiled(
        lambda images: torch.full_like(images, float(next(count))), torch.zeros(1, 1, 32, 80), 32, overlap=16
    )
    assert result[0, 0, 0].diff().abs().max() <= 1 / 4 + 1e-6
    assert result[0, 0, 0, 0] == 0
    assert result[0, 0, 0, -1] == 3


@pytest.mark.parametrize(("tile", "overlap", "multiple"), [(0, None, 1), (7, None, 4), (32, 17, 1), (32, -1, 1)])
def test_numbers_are_checked(tile, overlap, multiple):
    with pytest.raises(ValueError, match="A tile must have at least"):
        tiled(lambda images: images, torch.zeros(1, 3, 8, 8), tile, overlap=overlap, multiple=multiple)
