import math

import pytest
import torch
from torch import nn

from lightning_gen.networks.building import initialize_normal, initialize_xavier


def test_normal_has_the_deviation_asked_for():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(64, 64, 4), nn.BatchNorm2d(10_000), nn.Linear(300, 300))
    initialize_normal(network, 0.02)
    for module, mean in zip(network, (0.0, 1.0, 0.0), strict=True):
        # n draws: the mean is off by std / sqrt(n), the deviation by std / sqrt(2 n); five times that is allowed.
        spread = 0.02 / math.sqrt(module.weight.numel())
        assert module.weight.mean().item() == pytest.approx(mean, abs=5 * spread)
        assert module.weight.std().item() == pytest.approx(0.02, abs=5 * spread)
        assert not module.bias.any()


@pytest.mark.parametrize("gain", [1.0, math.sqrt(2)])
@pytest.mark.parametrize(
    ("layer", "fans"),
    [(nn.Conv2d(40, 60, 3), 9 * 100), (nn.Linear(300, 200), 500), (nn.Embedding(300, 200), 500)],
    ids=["conv", "linear", "embedding"],
)
def test_xavier_is_uniform_with_the_deviation_of_its_formula(gain, layer, fans):
    torch.manual_seed(0)
    initialize_xavier(layer, gain)
    bound = gain * math.sqrt(6 / fans)
    assert layer.weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
    assert layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(gain * math.sqrt(2 / fans), rel=0.02)
    if not isinstance(layer, nn.Embedding):
        assert not layer.bias.any()
