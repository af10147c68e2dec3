"""Pictures of 8 bits in batches: what becomes floats, to which bits, and what stays as it is."""

from collections import OrderedDict
from typing import NamedTuple

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_gen.data.base import Draw, DrawDataset, in_order
from lightning_gen.data.batches import as_floats, collate, pictures_as_floats
from lightning_gen.data.fingerprint import fingerprint
from lightning_gen.data.images import from_uint8, to_uint8
from tests.shared import differences

LEVELS = torch.arange(256, dtype=torch.uint8)
PICTURES = LEVELS.view(2, 2, 8, 8)
FLOATS = from_uint8(PICTURES)


class Pair(NamedTuple):
    images: torch.Tensor
    labels: torch.Tensor


def test_levels_are_those_of_a_division():
    exact = (LEVELS.double() / 127.5).float() - 1
    assert torch.equal(from_uint8(LEVELS), exact)
    assert torch.equal(to_uint8(from_uint8(LEVELS)), LEVELS)
    assert to_uint8(LEVELS) is LEVELS
    assert torch.equal(LEVELS, torch.arange(256).to(torch.uint8)), "what is given stays"
    inverse = LEVELS.float() * torch.tensor(127.5).reciprocal() - 1
    assert (inverse != exact).sum() == 111, "a multiplication would do elsewhere what is not seen here"


@pytest.mark.gpu
def test_levels_are_the_same_on_a_gpu():
    assert torch.equal(from_uint8(LEVELS.cuda()).cpu(), from_uint8(LEVELS))


LABEL, MASK = torch.tensor([3, 1]), torch.ones(2, 1, 8, 8, dtype=torch.uint8)
OTHERS = {"label": LABEL, "mask": MASK, "condition": MASK, "caption": ["a", "b"], "paired": torch.ones(2).bool()}


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (PICTURES, FLOATS),
        ({"image": PICTURES, **OTHERS}, {"image": FLOATS, **OTHERS}),
        ({"A": PICTURES, "B": PICTURES[:1], **OTHERS}, {"A": FLOATS, "B": FLOATS[:1], **OTHERS}),
        ({"A": PICTURES, "B": FLOATS}, {"A": FLOATS, "B": FLOATS}),
        (OrderedDict(pixel_values=PICTURES), {"pixel_values": FLOATS}),
        ([PICTURES, LABEL], [FLOATS, LABEL]),
        ((PICTURES, MASK, LABEL), (FLOATS, MASK, LABEL)),
        (Pair(PICTURES, LABEL), Pair(FLOATS, LABEL)),
    ],
)
def test_pictures_become_floats_and_nothing_else(batch, expected):
    found = pictures_as_floats(batch)
    assert differences(found, expected) == []
    assert not isinstance(batch, tuple | list) or type(found) is type(batch)
    assert pictures_as_floats(found) is found, "floats stay"
    assert "torch.bfloat16" in repr(pictures_as_floats(batch, torch.Tensor.bfloat16))


@pytest.mark.parametrize("batch", [{"codes": MASK}, {"image": [PICTURES[0]]}, {"image": LABEL}, [], "a", None, MASK[0]])
def test_what_are_no_pictures_stays(batch):
    assert pictures_as_floats(batch) is batch


class Mixed(DrawDataset):
    """Files of 8 bits beside deeper ones."""

    def __len__(self):
        return 4

    def __getitem__(self, draw):
        image = PICTURES[draw.index % 2]
        return {"image": as_floats(image, "") if draw.index > 2 else image, "label": torch.tensor(draw.index)}

    def recipe(self):
        return "mixed"


def test_pictures_of_8_bits_beside_deeper_ones_become_floats():
    examples = [Mixed()[Draw(0, i, i)] for i in range(4)]
    alike, mixed = collate(examples[:2]), collate(examples[2:])
    assert torch.equal(alike["image"], PICTURES)
    assert torch.equal(mixed["image"], FLOATS)
    assert torch.equal(mixed["label"], torch.tensor([2, 3]))
    assert torch.equal(collate([PICTURES[0]]), PICTURES[:1])
    given = [batch["image"] for _, batch in in_order(Mixed(), 2)]
    assert torch.equal(given[0], PICTURES)
    assert torch.equal(given[1], FLOATS)


def test_a_fingerprint_is_stable_whatever_puts_pictures_together():
    plain, own = (DataLoader(Mixed(), collate_fn=function) for function in (None, collate))
    assert fingerprint(Mixed()) == fingerprint(Mixed()) == fingerprint(own)
    assert len(fingerprint(plain)) == 64
