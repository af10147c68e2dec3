"""The share of attributes that are as asked for, against counts done by hand."""

import pytest
import torch
from torch import nn

from lightning_gen.data.scene_captions import ATTRIBUTES
from lightning_gen.metrics import AttributeAccuracy

KINDS = {"shape": ("disc", "box", "star"), "size": ("small", "large")}


class Pixels(nn.Module):
    """Reads the first attribute off the first channel and the second off the second, as value / 4 - 1."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, images):
        return ((images[:, :2, 0, 0] + 1) * 4).round().long()


def pictures(shown):
    return (torch.tensor(shown) / 4 - 1)[:, :, None, None].expand(-1, 2, 3, 3)


ASKED = torch.tensor([[0, 0], [0, 1], [1, 1], [2, 1], [0, 1]])
SHOWN = pictures([[0, 0], [1, 1], [1, 1], [2, 0], [0, 1]])
HELD_OUT = torch.tensor([True, True, False, False, False])


def test_shares_by_hand():
    metric = AttributeAccuracy(Pixels(), KINDS)
    metric.update(SHOWN[:2], ASKED[:2], HELD_OUT[:2])
    metric.update(SHOWN[2:], ASKED[2:], HELD_OUT[2:])
    figures = {name: value.item() for name, value in metric.compute().items()}
    assert figures == {
        "overall": pytest.approx(0.8),
        "shape": pytest.approx(0.8),
        "size": pytest.approx(0.8),
        "pictures": pytest.approx(0.6),
        "held_out": pytest.approx(0.75),
        "held_out_pictures": pytest.approx(0.5),
        "chance": pytest.approx((1 / 3 + 1 / 2) / 2),
        "marginal": pytest.approx((3 / 5 + 4 / 5) / 2),
        # Shapes asked for: 3, 1, 1 of 5; shown: 2, 2, 1. Sizes: 1, 4; shown: 2, 3.
        "shuffled": pytest.approx(((3 * 2 + 1 * 2 + 1) / 25 + (1 * 2 + 4 * 3) / 25) / 2),
    }


def test_shuffled_is_what_dealing_at_random_gives():
    torch.manual_seed(0)
    asked = torch.stack([torch.randint(3, (400,)).clamp(max=1), torch.randint(2, (400,))], 1)
    images = pictures(torch.stack([torch.randint(3, (400,)), asked[:, 1]], 1).tolist())
    metric, dealt = AttributeAccuracy(Pixels(), KINDS), AttributeAccuracy(Pixels(), KINDS)
    metric.update(images, asked)
    for _ in range(40):
        dealt.update(images[torch.randperm(400)], asked)
    assert metric.compute()["size"] == 1
    assert dealt.compute()["overall"] == pytest.approx(metric.compute()["shuffled"].item(), abs=0.01)


def test_pictures_of_8_bits_and_none_held_out():
    metric = AttributeAccuracy(Pixels(), KINDS)
    metric.update(((SHOWN + 1) * 127.5).round().to(torch.uint8), ASKED)
    assert metric.compute()["overall"] == pytest.approx(0.8)
    assert "held_out" not in metric.compute()


def test_a_reader_is_no_part_of_a_model():
    metric = AttributeAccuracy(Pixels(), KINDS)
    assert not list(metric.parameters())
    assert not nn.ModuleList([metric]).state_dict()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m: m.update(SHOWN, ASKED[:, :1]), r"asked must be int64 \[5, 2\]"),
        (lambda m: m.update(SHOWN, ASKED.float()), "got torch.float32"),
        (lambda m: m.update(SHOWN, ASKED + 1), "out of range.*size: small, large"),
        (lambda m: m.update(SHOWN, ASKED - 1), "out of range"),
        (lambda m: m.compute(), "has seen no pictures"),
        (lambda m: AttributeAccuracy(Pixels()), "needs both"),
    ],
)
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make(AttributeAccuracy(Pixels(), KINDS))


def test_it_begins_with_the_built_in_scenes():
    assert list(AttributeAccuracy().attributes) == list(ATTRIBUTES)
