"""Points are drawn where they are, on a ground that shows scores."""

import numpy as np
import pytest
import torch

from lightning_gen.data.point_clouds import _SAMPLES, VIEW, draw_points, landscape
from lightning_gen.data.toy import Mixture


def colour_at(picture, x, y):
    """The pixel at a point of the plane."""
    side = picture.width
    return np.asarray(picture)[int((1 - y / VIEW) * side / 2), int((x / VIEW + 1) * side / 2)].astype(int)


def test_samples_are_drawn_where_they_are():
    truth = Mixture([[-0.5, -0.5]], 1e-4)
    picture = draw_points(truth, torch.tensor([[0.5, 0.25]] * 3))
    assert picture.size == (512, 512)
    assert abs(colour_at(picture, 0.5, 0.25) - _SAMPLES).max() < 40
    at_truth, mirrored = colour_at(picture, -0.5, -0.5), colour_at(picture, 0.5, -0.25)
    assert at_truth.min() > 100  # faint, but there
    assert mirrored.max() < 60  # the ground


def test_the_ground_shows_the_score_of_each_place():
    scores = landscape(lambda points: points[:, 0, 0, 0] + 3 * points[:, 1, 0, 0], 2, torch.device("cpu"))
    picture = draw_points(Mixture([[0.0, 0.0]], 1e-4), torch.zeros(1, 2), scores)
    corners = [colour_at(picture, x, y).sum() for x, y in ((-1.1, -1.1), (1.1, -1.1), (-1.1, 0.9), (1.1, 1.1))]
    assert corners == sorted(corners)
    assert len(set(corners)) == 4
    # Scores [N, 1, h, w], as a network on patches gives them, are averaged.
    patches = landscape(
        lambda p: torch.cat([p[:, :1] + 3 * p[:, 1:] - 1, p[:, :1] + 3 * p[:, 1:] + 1], 3), 2, scores.device
    )
    torch.testing.assert_close(patches, scores)


def test_scores_that_are_not_finite_leave_the_ground_plain():
    truth, samples = Mixture([[0.0, 0.0]], 0.1), torch.zeros(1, 2)
    plain = np.asarray(draw_points(truth, samples))
    assert (np.asarray(draw_points(truth, samples, torch.full((64, 64), float("nan")))) == plain).all()
    assert (np.asarray(draw_points(truth, samples, torch.ones(64, 64))) == plain).all()


def test_samples_that_are_not_numbers_or_out_of_view_are_left_out():
    truth = Mixture([[0.0, 0.0]], 0.1)
    away = torch.tensor([[float("nan"), 0.0], [50.0, 0.0]])
    picture = np.asarray(draw_points(truth, away)).astype(int)[30:]  # below the legend
    assert abs(picture - _SAMPLES).max(axis=2).min() > 60


def test_on_the_line_the_bars_are_a_histogram():
    truth = Mixture([[-0.6], [0.6]], 0.05, [1.0, 3.0])
    picture = draw_points(truth, truth.sample(20_000, torch.Generator().manual_seed(0)))
    bars = (abs(np.asarray(picture).astype(int) - _SAMPLES).max(axis=2) < 40)[50:].sum(axis=0)
    left, right = bars[:256].max(), bars[256:].max()
    assert left / right == pytest.approx(1 / 3, rel=0.1)
    assert right == pytest.approx(0.8 * 512, rel=0.06)
    columns = VIEW * (2 * (np.arange(512) + 0.5) / 512 - 1)
    assert (bars * columns).sum() / bars.sum() == pytest.approx(0.3, abs=0.02)
