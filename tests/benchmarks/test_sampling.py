"""What the speed of sampling is extrapolated from, and how its growth is fitted."""

from functools import partial

import pytest
import torch

from benchmarks.sampling import NaivePasses, exponent
from lightning_gen.models import LMConv, PixelCNN
from lightning_gen.networks import LMConvNetwork, PixelCNNNetwork


@pytest.mark.parametrize(
    ("model", "passes"),
    [
        (LMConv((3, 4, 4), network=partial(LMConvNetwork, filters=2, num_blocks=0)), 1),
        (
            PixelCNN((3, 4, 4), 4, partial(PixelCNNNetwork, filters=3, layers=1, head_filters=3)),
            3,
        ),  # one for each channel
    ],
)
def test_a_pixel_of_the_naive_method_takes_as_many_passes_as_in_a_whole_picture(model, passes):
    calls = []
    model.network.register_forward_hook(lambda *_: calls.append(1))
    pictures = model.sample(2, generator=torch.Generator().manual_seed(0), method="naive")
    assert len(calls) == 16 * passes
    kept = pictures.clone()
    naive = NaivePasses(model, pictures, turns=5)
    for turn in range(1, 6):
        naive()
        assert len(calls) == (16 + turn) * passes
    assert torch.equal(pictures, kept)


def test_the_exponent_is_that_of_a_power_law():
    assert exponent([64, 256, 1024], [3 * n**1.25 for n in (64, 256, 1024)]) == pytest.approx(1.25)
