import io

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.data.fingerprint import digest
from lightning_gen.data.images import ImageError, read_image, resize_image
from lightning_gen.data.preparation import Cover, Keep, Preparation, Stretch


def jpeg(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.fixture
def noise() -> bytes:
    """Of 203 x 259, (height, width), where other ways of decoding give other pixels."""
    return jpeg(np.random.default_rng(0).integers(0, 256, (203, 259, 3), dtype=np.uint8))


@pytest.mark.parametrize("sizing", [Cover((32, 32)), Stretch((32, 40)), Keep()])
def test_an_exact_decode_resizes_all_pixels(noise, sizing):
    expected = resize_image(read_image(noise), sizing(203, 259))
    assert torch.equal(Preparation(sizing, exact_decode=True)(noise), expected)
    assert torch.equal(Preparation(sizing)(noise), expected) == (sizing == Keep())


def test_the_size_follows_from_the_true_one_whatever_is_decoded(noise):
    # From the 102 x 130 pixels decoded, 40 rows would be 51 columns.
    assert Preparation(Cover((50, 50)))(noise).shape == (3, 50, round(259 * 50 / 203))
    assert Preparation(Cover((50, 50)), center=(50, 50))(noise).shape == (3, 50, 50)


def test_places_are_those_of_all_pixels_where_a_reduced_jpeg_has_a_broken_number():
    """481 / 8 = 60.125. In a ramp a place is a level; 2 apart, for each way rounds twice."""
    ramp = np.broadcast_to(np.linspace(0, 255, 481).round().astype(np.uint8)[:, None], (481, 481))
    ways = [Preparation(Stretch((30, 30)), channels=1, exact_decode=exact)(jpeg(ramp)).int() for exact in (False, True)]
    assert (ways[0] - ways[1]).abs().max() <= 2


@pytest.mark.parametrize("width", [128, 120, 124, 126])
def test_halves_of_a_reduced_jpeg_meet_where_they_do(width):
    """Black beside white: only where the middle lies between blocks of the file are the halves pure."""
    array = np.zeros((64, 2 * width, 3), np.uint8)
    array[:, width:] = 255
    prepare = Preparation(Stretch((8, 8)), halves=True)
    left, right = prepare(jpeg(array))
    exact = Preparation(Stretch((8, 8)), halves=True, exact_decode=True)(jpeg(array))
    assert left.shape == right.shape == (3, 8, 8)
    assert torch.equal(torch.stack([left, right]), exact) or width % 8 == 0
    if width % 8 == 0:
        assert left.max() == 0
        assert right.min() == 255


def test_halves_are_resized_each_by_itself(noise):
    array = np.random.default_rng(0).integers(0, 256, (20, 36, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    halves = Preparation(Stretch((7, 9)), halves=True)(buffer.getvalue())
    for half, columns in zip(halves, (array[:, :18], array[:, 18:]), strict=True):
        assert torch.equal(half, resize_image(torch.from_numpy(columns.copy()).permute(2, 0, 1), (7, 9)))
    with pytest.raises(ImageError, match=r"^7.jpg is 259 pixels wide; a pair A\|B must have an even width"):
        Preparation(Stretch((8, 8)), halves=True)(noise, "7.jpg")


def test_how_jpegs_are_decoded_counts_in_fingerprints():
    ways = [Preparation(Keep(), exact_decode=exact) for exact in (False, True)]
    assert digest(ways[0]) != digest(ways[1])
