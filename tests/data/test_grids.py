"""Grids hold pictures pixel for pixel."""

import math

import numpy as np
import pytest
import torch

from lightning_gen.data.grids import GAP, LINE, MIN_CAPTIONED, MIN_CELL, MIN_SQUARE, picture_grid, square_grid
from tests.shared import tile

SIZE = 8
SCALE = MIN_CELL // SIZE


def test_grid_holds_the_pictures_pixel_for_pixel():
    small, large = (
        torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8),
        torch.randint(256, (2, 1, 100, 120), dtype=torch.uint8),
    )
    grid = torch.from_numpy(np.array(picture_grid({"A": small, "A to B": small.flip(0)}))).permute(2, 0, 1)
    for row in range(2):
        assert torch.equal(tile(grid, row, 0, rows=2), small[row])
        assert torch.equal(tile(grid, row, 1, rows=2), small[1 - row])
    assert grid[:, : grid.shape[1] - 2 * (96 + GAP)].float().std() > 5, "there must be titles above the pictures"

    grid = torch.from_numpy(np.array(picture_grid({"grey": large}))).permute(2, 0, 1)
    for row in range(2):
        top = grid.shape[1] - (2 - row) * (100 + GAP)
        assert torch.equal(grid[:, top : top + 100, GAP : GAP + 120], large[row].expand(3, -1, -1))


def test_grid_takes_pictures_of_different_sizes():
    pictures = [torch.full((3, 120, 100), 200, dtype=torch.uint8), torch.full((3, 100, 120), 90, dtype=torch.uint8)]
    grid = np.array(picture_grid({"A": pictures}))
    assert (grid == 200).all(-1).sum() >= 120 * 100
    assert (grid == 90).all(-1).sum() >= 120 * 100


@pytest.mark.parametrize("wrong", [torch.zeros(3, 8, 8), torch.zeros(4, 8, 8, dtype=torch.uint8)])
def test_only_pictures_are_drawn(wrong):
    with pytest.raises(ValueError, match="to_uint8"):
        picture_grid({"A": [wrong]})


def test_empty_grid_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        picture_grid({"A": []})


def test_columns_of_a_grid_may_share_a_title():
    pictures = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    twice = torch.from_numpy(np.array(picture_grid([("", pictures[:1]), ("", pictures)]))).permute(2, 0, 1)
    assert torch.equal(tile(twice, 1, 1, rows=2), pictures[1])
    assert torch.equal(tile(twice, 0, 0, rows=2), pictures[0])


@pytest.mark.parametrize(
    ("number", "columns", "shape"),
    [(1, None, (1, 1)), (4, None, (2, 2)), (5, None, (2, 3)), (7, None, (3, 3)), (7, 2, (4, 2)), (3, 9, (1, 9))],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_square_grid_holds_the_pictures_pixel_for_pixel(number, columns, shape, channels):
    pictures = torch.randint(256, (number, channels, 10, 12), dtype=torch.uint8)
    grid = np.array(square_grid(list(pictures), columns))
    rows, wide = shape
    wide = min(wide, number)
    scale = -(-MIN_SQUARE // (12 * shape[1]))
    assert grid.shape == (GAP + rows * (10 * scale + GAP), GAP + wide * (12 * scale + GAP), 3)
    for i, picture in enumerate(pictures):
        row, column = divmod(i, shape[1])
        top, left = GAP + row * (10 * scale + GAP), GAP + column * (12 * scale + GAP)
        shown = torch.from_numpy(grid[top : top + 10 * scale, left : left + 12 * scale]).permute(2, 0, 1)
        expected = picture.expand(3, -1, -1).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
        assert torch.equal(shown, expected)


def test_large_pictures_are_not_enlarged():
    assert square_grid([torch.zeros(3, 60, MIN_SQUARE, dtype=torch.uint8)] * 4).width == 2 * MIN_SQUARE + 3 * GAP


def test_empty_square_grid_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        square_grid([])


def test_captions_stand_below_the_pictures_of_columns():
    picture = torch.randint(256, (3, 8, 8), dtype=torch.uint8)
    scale = math.ceil(MIN_CAPTIONED / 8)
    grids = [
        np.array(picture_grid([("", [picture, picture])], {(0, 0): words, (1, 0): "short"}))
        for words in ("one line", "words that are too many for one line, and for two as well")
    ]
    assert grids[1].shape[0] - grids[0].shape[0] == 2 * 2 * LINE  # two lines more below both rows
    enlarged = picture.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    for grid in grids:  # without titles
        assert np.array_equal(grid[GAP : GAP + 8 * scale, GAP : GAP + 8 * scale], enlarged.permute(1, 2, 0).numpy())
