"""Batches that change in size and resolution: which they are is a function of the place, and nothing comes twice."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch

from lightning_gen.data import Scenes, UnpairedScenes
from lightning_gen.data.base import Draw, DrawDataset, ImageDataModule, in_order
from lightning_gen.data.batches import pictures_as_floats
from lightning_gen.data.fingerprint import fingerprint
from lightning_gen.data.images import average_down, from_uint8
from lightning_gen.evaluation.sources import evenly_spaced
from lightning_gen.schedules import Growing

TOTAL = 21
# Doubles inside the first epoch, whose last batch of four is dropped, and grows inside the third.
GROWING = Growing((2, 2, 4), batch_sizes=(2, 4, 3), stable_images=10, fade_images=0)
LATE = Growing((2, 2, 4), batch_sizes=(2, 4, 3), stable_images=25, fade_images=0)


@dataclass(frozen=True, eq=False)
class Numbers(DrawDataset):
    """Pictures of 4 x 4 that hold the place of their draw, and noise that its generator gives."""

    count: int = TOTAL

    def __len__(self):
        return self.count

    def __getitem__(self, draw):
        noise = torch.from_numpy(draw.rng(3).random((2, 4, 8))).float()
        return {"image": noise, "place": torch.tensor(draw[:3]), "label": torch.tensor(draw.index)}


class Data(ImageDataModule):
    image_shape = (2, 4, 8)

    def dataset(self, split):
        return Numbers()


class FakeTrainer(NamedTuple):
    world_size: int
    global_rank: int
    overfit_batches: float = 0.0


def loader(growing=GROWING, workers=0, world=1, rank=0):
    data = Data(num_workers=workers, seed=1, growing=growing)
    data.trainer = FakeTrainer(world, rank)
    return data.train_dataloader()


def epochs(loader, *numbers):
    batches = []
    for number in numbers:
        loader.sampler.set_epoch(number)
        batches += list(loader)
    return batches


def places(batches):
    return [Draw(*row) for batch in batches for row in batch["place"].tolist()]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x[key], y[key]) for x, y in zip(a, b, strict=True) for key in y)


@pytest.mark.parametrize("growing", [GROWING, LATE])
@pytest.mark.parametrize("world", [1, 2])
def test_every_example_comes_once_and_each_batch_is_that_of_its_place(growing, world):
    ranks = [loader(growing, world=world, rank=rank) for rank in range(world)]
    images = 0
    for epoch in range(4):
        parts = [epochs(each, epoch) for each in ranks]
        seen = []
        assert len({len(part) for part in parts}) == 1
        for batches in zip(*parts, strict=True):
            stage = growing(images)
            assert {len(batch["image"]) for batch in batches} == {stage.batch_size}
            assert {batch["image"].shape[1:] for batch in batches} == {(2, stage.resolution, 2 * stage.resolution)}
            images += world * stage.batch_size
            seen += places(batches)
        assert sorted(draw.position for draw in seen) == list(range(len(seen)))
        assert len({draw.index for draw in seen}) == len(seen)
        assert 0 <= TOTAL - len(seen) < world * growing(images).batch_size
        assert {draw.epoch for draw in seen} == {epoch}


def test_the_batches_of_one_process_are_those_of_two_with_half_the_size():
    halved = Growing((2, 2, 4), batch_sizes=(1, 2, 3), stable_images=10, fade_images=0)
    doubled = Growing((2, 2, 4), batch_sizes=(2, 4, 6), stable_images=10, fade_images=0)
    whole = epochs(loader(doubled), 0, 1)
    pair = [epochs(loader(halved, world=2, rank=rank), 0, 1) for rank in (0, 1)]
    assert [sorted(places([batch])) for batch in whole] == [
        sorted(places(halves)) for halves in zip(*pair, strict=True)
    ]


def test_pictures_are_those_of_the_dataset_averaged_down():
    for batch in epochs(loader(), 0, 1):
        for image, place, label in zip(batch["image"], places([batch]), batch["label"], strict=True):
            own = Numbers()[place]
            blocks = own["image"].reshape(2, image.shape[1], 4 // image.shape[1], image.shape[2], 8 // image.shape[2])
            torch.testing.assert_close(image, blocks.mean((2, 4)))
            assert torch.equal(label, own["label"])
    assert average_down(own["image"], 4) is own["image"]


@dataclass(frozen=True, eq=False)
class Levels(DrawDataset):
    """Pictures and a mask of 8 bits, or the same pictures as floats."""

    floats: bool

    def __len__(self):
        return TOTAL

    def __getitem__(self, draw):
        pixels = torch.from_numpy(draw.rng(3).integers(256, size=(2, 4, 8), dtype=np.uint8))
        return {"B": from_uint8(pixels) if self.floats else pixels, "mask": pixels[:1]}


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_of_8_bits_are_averaged_as_floats_and_masks_stay(workers):
    found, expected = (Data(num_workers=workers, seed=1, growing=GROWING) for _ in range(2))
    found._sets["train"], expected._sets["train"] = Levels(False), Levels(True)
    batches = epochs(found.train_dataloader(), 0, 1, 2)
    types = {(batch["B"].shape[2], batch["B"].dtype) for batch in batches}
    assert types == {(2, torch.float32), (4, torch.uint8)}, "whole ones travel as they are"
    assert {(batch["mask"].shape[1:], batch["mask"].dtype) for batch in batches} == {((1, 4, 8), torch.uint8)}
    assert same([pictures_as_floats(batch) for batch in batches], epochs(expected.train_dataloader(), 0, 1, 2))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("growing", [GROWING, LATE])
def test_going_on_anywhere_equals_never_having_stopped(growing, workers):
    """Before, at and after a change of size, and in another epoch; workers load ahead of the change."""
    whole = epochs(loader(growing, workers), 0, 1, 2)
    assert same(whole, epochs(loader(growing, 0), 0, 1, 2))
    for stop in range(len(whole)) if workers == 0 else (1, 4, 5, 7, 8):
        stopped, seen = loader(growing), []
        for epoch in range(3):
            stopped.sampler.set_epoch(epoch)
            for batch in stopped:
                seen.append(batch)
                if len(seen) == stop + 1:
                    break
            if len(seen) == stop + 1:
                break
        state = stopped.state_dict()
        assert state == {"epoch": epoch, "examples": state["examples"], "images": state["images"]}
        assert state["images"] + state["examples"] == sum(len(batch["image"]) for batch in seen)
        resumed = loader(growing, workers)
        resumed.load_state_dict(state)
        seen += epochs(resumed, *range(epoch, 3))
        assert same(seen, whole), stop


def test_going_on_with_other_processes_keeps_the_place():
    one = loader()
    batches = iter(one)
    seen = places([next(batches) for _ in range(3)])
    rest = [loader(world=2, rank=rank) for rank in (0, 1)]
    for each in rest:
        each.load_state_dict(one.state_dict())
    seen += [draw for each in rest for draw in places(list(each))]
    # Six by twos, eight by four on two ranks; of the last seven a batch of four each is not full, three each are.
    assert sorted(draw.position for draw in seen) == list(range(6 + 4 + 8))


def test_a_place_of_an_earlier_version_is_understood():
    resumed = loader()
    resumed.load_state_dict({"epoch": 2, "examples": 4})
    assert resumed.state_dict() == {"epoch": 2, "examples": 4, "images": 2 * TOTAL}


@pytest.mark.parametrize("epoch", range(3))
def test_the_number_of_batches_is_that_of_the_epoch_of_the_moment(epoch):
    each = loader()
    epochs(each, *range(epoch))
    each.sampler.set_epoch(epoch)
    announced = len(each)
    assert announced == len(list(each)) == len(each)


def test_fingerprint_and_order_are_those_without_growing():
    """What a picture of the training set is does not depend on how large it was shown."""
    plain = Data(num_workers=0, seed=1).train_dataloader()
    some, others = (list(in_order(evenly_spaced(each, 7, 3), 4)) for each in (loader(), plain))
    assert same([batch for _, batch in some], [batch for _, batch in others])
    assert fingerprint(loader()) == fingerprint(plain)
    for (a, one), (b, other) in zip(in_order(loader(), 5), in_order(plain, 5), strict=True):
        assert a == b
        assert same([one], [other])


def test_domains_and_attributes():
    growing = Growing((4, 16), batch_sizes=(3,), stable_images=6, fade_images=0)
    data = UnpairedScenes(16, num_train=12, num_workers=0, growing=growing)
    shapes = [(batch["A"].shape, batch["B"].shape) for batch in data.train_dataloader()]
    assert shapes == [((3, 3, 4, 4),) * 2] * 2 + [((3, 3, 16, 16),) * 2] * 2
    scenes = Scenes(16, num_train=6, num_workers=0, growing=growing)
    first = next(iter(scenes.train_dataloader()))
    assert first["image"].shape == (3, 3, 4, 4)
    assert first["attributes"].shape == (3, *scenes.train_set()[Draw(0, 0, 0)]["attributes"].shape)


def test_evaluation_does_not_grow():
    data = Data(num_workers=0, batch_size=5, growing=GROWING)
    for each in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert next(iter(each))["image"].shape == (5, 2, 4, 8)


def test_what_cannot_grow_is_refused_before_training():
    for resolutions in ((3,), (4, 8), (1, 16)):
        with pytest.raises(ValueError, match=r"Data cannot average pictures of 4 x 8 .* down to \d+ rows"):
            loader(Growing(resolutions))
    with pytest.raises(ValueError, match=r"Data: 21 training examples per process do not fill one batch of 22"):
        loader(Growing((2, 4), batch_sizes=(1, 22)))
    data = Data(num_workers=0, growing=GROWING)
    data.trainer = FakeTrainer(1, 0, overfit_batches=2)
    with pytest.raises(ValueError, match="overfit_batches was asked for, of batches that change as they grow"):
        data.train_dataloader()
    with pytest.raises(ValueError, match=r"Pictures of 6 x 6 .* cannot be averaged down to 4 rows"):
        average_down(torch.zeros(1, 6, 6), 4)
