"""Codes in place of pictures, of an autoencoder whose codes can be seen in the pictures."""

import itertools
import json
import os
import pickle
import random
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import lightning_gen.data.codes as module
from lightning_gen.checkpoints import CheckpointError, digest_weights
from lightning_gen.data import CaptionedScenes, Codes, Digits, Draw, ImageFolder
from lightning_gen.data.codes import kept_codes, views_of
from lightning_gen.data.images import from_uint8
from lightning_gen.generative import GenerativeModule
from lightning_gen.models.code_prior import CodePrior
from lightning_gen.trust import ENVIRONMENT
from tests.models.test_code_prior import GPT
from tests.shared import Mute, differences, save, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache for each test, and classes of the tests may be named."""
    monkeypatch.setenv(ENVIRONMENT, "tests")
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "codes"


class Blocks(GenerativeModule):
    """Each code tells how bright 4 x 4 pixels are, one of as many shades as there are thresholds and one more."""

    num_codes = 5

    def __init__(self, image_shape: tuple[int, int, int] = (1, 8, 8), shades: int = 5) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.num_codes = shades
        self.code_shape = (image_shape[1] // 4, image_shape[2] // 4)
        self.thresholds = torch.nn.Parameter(torch.linspace(-0.8, 0.4, shades - 1))

    def codes(self, images: Tensor) -> Tensor:
        return torch.bucketize(F.avg_pool2d(images.mean(1, keepdim=True), 4).squeeze(1), self.thresholds)

    def decode(self, codes: Tensor) -> Tensor:
        shades = codes.unsqueeze(1) / (self.num_codes - 1) * 2 - 1
        return shades.repeat_interleave(4, 2).repeat_interleave(4, 3)

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.decode(self.codes(images))


class Pyramid(Blocks):
    """A coarse map besides."""

    def __init__(self, image_shape: tuple[int, int, int] = (1, 8, 8)) -> None:
        super().__init__(image_shape)
        self.code_shape = [(1, 1), self.code_shape]

    def codes(self, images: Tensor) -> list[Tensor]:
        fine = super().codes(images)
        return [fine.flatten(1).amax(1).view(-1, 1, 1), fine]


def digits(**settings):
    return Digits(num_workers=0, **settings)


def no_encoding(monkeypatch):
    def refuse(*_):
        raise AssertionError("pictures were encoded")

    monkeypatch.setattr(module, "codes_of", refuse)


@pytest.fixture
def checkpoint(tmp_path):
    return save(Blocks(), tmp_path / "first.ckpt")


# What it gives


@pytest.mark.parametrize("kind", [Blocks, Pyramid])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_items_are_the_codes_of_the_pictures_and_their_labels(kind, split, tmp_path, monkeypatch):
    path, data = save(kind(), tmp_path / "first.ckpt"), digits()
    found = Codes(data, path).dataset(split)
    pictures = data.dataset(split)
    assert len(found) == len(pictures)
    no_encoding(monkeypatch)
    for i in (0, 63, 64, len(found) - 1):
        codes, picture = found[Draw(3, 5, i)], pictures[Draw(0, 0, i)]
        expected = kind().codes(picture["image"][None])
        expected = [each[0] for each in (expected if isinstance(expected, list) else [expected])]
        assert not differences(codes, {"codes": expected, "label": picture["label"]})
        assert all(each.dtype == torch.int64 for each in codes["codes"])
    assert found.rows["codes"].dtype == np.uint16
    assert len(np.unique(found.rows["codes"])) > 3
    loader = getattr(Codes(data, path, batch_size=7, num_workers=0), f"{split}_dataloader")()
    batch = next(iter(loader))
    assert [each.shape for each in batch["codes"]] == [(7, *shape) for shape in module.shapes_of(kind())]
    assert batch["label"].shape == (7,)


def test_it_is_a_data_module_of_its_pictures(checkpoint):
    data = digits()
    codes = Codes(data, checkpoint)
    assert (codes.image_shape, codes.num_classes, codes.class_names) == ((1, 8, 8), 10, None)
    assert codes.pictures is data
    assert data.pictures is data


def test_many_codes_are_kept_as_larger_numbers(tmp_path):
    model = Blocks(shades=70_000)
    model.thresholds.data -= 0.8
    rows = Codes(digits(), save(model, tmp_path / "first.ckpt")).dataset("val").rows
    assert rows["codes"].dtype == np.int32
    assert rows["codes"].max() > 1 << 16


def test_a_worker_is_handed_the_place_of_the_file_and_not_what_is_in_it(checkpoint):
    found = Codes(digits(), checkpoint).dataset("train")
    before, sent = found[Draw(0, 0, 9)], pickle.dumps(found)
    assert found.rows.nbytes > 10_000 > 10 * len(sent)
    assert not differences(pickle.loads(sent)[Draw(0, 0, 9)], before)


# Views


def test_views_are_corners_and_center_and_their_mirror_images():
    picture = torch.rand(2, 1, 20, 20) * 2 - 1
    assert torch.equal(*views_of(picture, (20, 20), 1, flip=False), picture)
    large = torch.rand(2, 1, 22, 22) * 2 - 1
    rows = {"top": slice(0, 20), "bottom": slice(2, 22), "middle": slice(1, 21)}
    places = [("top", "top"), ("top", "bottom"), ("bottom", "top"), ("bottom", "bottom"), ("middle", "middle")]
    found = list(views_of(large, (20, 20), 5, flip=True))
    assert len(found) == 10
    for i, (row, column) in enumerate(places):
        assert torch.equal(found[2 * i], large[..., rows[row], rows[column]])
        assert torch.equal(found[2 * i + 1], found[2 * i].flip(-1))
    ten = list(views_of(large, (20, 20), 10, flip=False))
    assert len(ten) == 10
    assert all(view.shape == (2, 1, 20, 20) for view in ten)
    assert all(torch.equal(view, same) for view, same in zip(ten[5:], found[::2], strict=True))
    assert not any(torch.equal(view, same) for view, same in zip(ten[:5], found[::2], strict=True))


def test_a_picture_is_shown_in_views_drawn_by_seed_epoch_and_position(checkpoint):
    plain, mirrored = (Codes(digits(), checkpoint, flip=flip).dataset("train") for flip in (False, True))
    i = next(i for i in range(99) if (lambda m: not torch.equal(m, m.flip(-1)))(plain[Draw(0, 0, i)]["codes"][0]))
    straight = plain[Draw(0, 0, i)]["codes"][0]
    shown = [mirrored[Draw(epoch, 7, i)]["codes"][0] for epoch in range(400)]
    is_straight = [torch.equal(codes, straight) for codes in shown]
    assert all(same or torch.equal(codes, straight.flip(-1)) for codes, same in zip(shown, is_straight, strict=True))
    assert 140 < sum(is_straight) < 260  # 6 standard deviations
    assert is_straight[:60] == [torch.equal(mirrored[Draw(e, 7, i)]["codes"][0], straight) for e in range(60)]
    other = Codes(digits(), checkpoint, flip=True, seed=1).dataset("train")
    assert other.path == mirrored.path
    assert is_straight != [torch.equal(other[Draw(e, 7, i)]["codes"][0], straight) for e in range(400)]
    # Evaluation shows pictures as they are.
    assert Codes(digits(), checkpoint, crops=10, flip=True).dataset("val").rows["codes"].shape[1] == 1


def test_a_folder_gives_larger_pictures_for_crops_from_its_files(tmp_path):
    random = np.random.default_rng(0)
    for i in range(24):
        Image.fromarray(random.integers(0, 256, (40, 44, 3), np.uint8)).save(tmp_path / f"{i}.png")
    path = save(Blocks((3, 20, 20)), tmp_path / "first.ckpt")
    data, larger = (ImageFolder(tmp_path, image_size=size, num_workers=0) for size in (20, 22))
    found = Codes(data, path, crops=5).dataset("train")
    pictures = torch.stack([larger.train_set()[Draw(0, i, i)]["image"] for i in range(len(found))])
    expected = torch.stack(
        [Blocks((3, 20, 20)).codes(view).flatten(1) for view in views_of(from_uint8(pictures), (20, 20), 5, False)], 1
    )
    assert np.array_equal(found.rows["codes"], expected.numpy())
    assert data.image_size == (20, 20)


# Captions


def told(folder, **settings):
    """12 pictures, each with three captions, by one of which it can be told."""
    folder.mkdir(exist_ok=True)
    for i in range(12):
        Image.fromarray(np.full((16, 16, 3), 20 * i, np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"first of {i}\nsecond of {i}\nthird of {i}\n")
    return ImageFolder(folder, image_size=16, captions=True, num_workers=0, **settings)


def scenes(**settings):
    return CaptionedScenes(16, num_train=24, num_val=6, num_test=6, num_workers=0, **settings)


class Own(pl.LightningDataModule):
    """Pictures and captions of a user's own."""

    image_shape = (3, 16, 16)

    class Items(Dataset):
        def __len__(self):
            return 16

        def __getitem__(self, i):
            return {"image": torch.full((3, 16, 16), i / 8 - 1), "caption": f"number {i}"}

    def train_dataloader(self):
        return DataLoader(self.Items(), 4, shuffle=True)


@pytest.mark.parametrize("kind", ["folder", "scenes"])
def test_captions_are_those_that_the_pictures_have_and_no_picture_is_made_for_them(kind, tmp_path, monkeypatch):
    path = save(Blocks((3, 16, 16)), tmp_path / "first.ckpt")
    data, other = (told(tmp_path / "told", seed=s) if kind == "folder" else scenes(seed=s) for s in (3, 4))
    found = {split: Codes(data, path).dataset(split) for split in ("train", "val", "test")}
    draws = [Draw(epoch, position, (position + 1) % 4) for epoch in (0, 5) for position in range(4)]
    expected = {split: [data.dataset(split)[d]["caption"] for d in draws if d.index < 1] for split in found}
    expected["train"] = [data.dataset("train")[draw]["caption"] for draw in draws]
    assert len(set(expected["train"])) > 4
    # Neither the seed of words nor, of a folder, the words themselves have codes made anew.
    if kind == "folder":
        (tmp_path / "told" / "0.txt").write_text("another")
    no_encoding(monkeypatch)
    assert Codes(other, path).dataset("train").path == found["train"].path
    for place in ("lightning_gen.data.scenes.render", "lightning_gen.data.preparation.Preparation.__call__"):
        monkeypatch.setattr(place, lambda *_: 1 / 0)
    if kind == "folder":
        (tmp_path / "told" / "0.txt").write_text("first of 0\nsecond of 0\nthird of 0\n")
    for split, codes in found.items():
        sent = pickle.loads(pickle.dumps(codes))
        shown = [draw for draw in draws if split == "train" or draw.index < 1]
        assert [codes[draw]["caption"] for draw in shown] == expected[split]
        assert [sent[draw]["caption"] for draw in shown] == expected[split]
    assert sorted(Codes(data, path).captions()) == sorted(data.captions())


def test_captions_of_a_user_s_own_data_come_along(tmp_path):
    found = Codes(Own(), save(Blocks((3, 16, 16)), tmp_path / "first.ckpt"), batch_size=4, num_workers=0)
    batch = next(iter(found.train_dataloader()))
    for codes, caption in zip(batch["codes"][0], batch["caption"], strict=True):
        image = Own.Items()[int(caption.partition(" ")[2])]["image"]
        assert torch.equal(codes, Blocks((3, 16, 16)).codes(image[None])[0])
    with pytest.raises(ValueError, match=r"Own, whose codes these are, has no captions\(\)"):
        found.captions()


def test_which_caption_is_drawn_says_nothing_about_the_view(tmp_path):
    data = told(tmp_path / "told")
    for i in range(12):  # brighter on the left
        Image.fromarray(np.arange(250, 10, -15, np.uint8)[:16][None, :, None].repeat(16, 0).repeat(3, 2)).save(
            tmp_path / "told" / f"{i}.png"
        )
    found = Codes(data, save(Blocks((3, 16, 16)), tmp_path / "first.ckpt"), flip=True).dataset("train")
    shown = Counter()
    for position in range(600):
        item = found[Draw(0, position, 0)]
        codes = item["codes"][0]
        shown[bool(codes[0, 0] > codes[0, -1]), item["caption"].partition(" ")[0]] += 1
    assert len(shown) == 6
    assert all(60 < number < 140 for number in shown.values())  # 4 standard deviations of 9


# The cache


def test_codes_are_made_once_wherever_the_checkpoint_lies(checkpoint, tmp_path, monkeypatch):
    first = Codes(digits(), checkpoint).dataset("train")
    content = first.path.read_bytes()
    shutil.rmtree(first.path.parent)
    assert Codes(digits(), checkpoint).dataset("train").path.read_bytes() == content
    no_encoding(monkeypatch)
    moved = shutil.move(checkpoint, tmp_path / "moved.ckpt")
    again = Codes(digits(batch_size=3), moved, batch_size=5, seed=4).dataset("train")
    assert again.path == first.path


def test_the_cache_follows_all_that_may_move_codes(checkpoint, tmp_path):
    other = Blocks()
    other.thresholds.data += 1e-3
    changed = save(other, tmp_path / "changed.ckpt")
    kinds = [
        Codes(digits(), checkpoint),
        Codes(digits(), changed),
        Codes(digits(), save(Pyramid(), tmp_path / "pyramid.ckpt")),
        Codes(digits(binarization="static"), checkpoint),
        Codes(digits(bits=8, binarization="threshold"), checkpoint),
        Codes(digits(), checkpoint, flip=True),
        Codes(digits(), checkpoint, crops=5),
        Codes(digits(), checkpoint, crops=10),
        Codes(digits(), checkpoint, crops=5, flip=True),
    ]
    assert len({codes.dataset("train").path for codes in kinds}) == len(kinds)
    records = [json.loads(file.read_text()) for file in (tmp_path / "cache" / "codes").glob("*.json")]
    assert {record["weights"] for record in records} >= {
        digest_weights(each.state_dict()) for each in (other, Blocks())
    }


def test_a_checkpoint_that_has_changed_is_named(checkpoint, caplog):
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    data = digits()
    Codes(data, checkpoint).dataset("val")
    assert "Encoding 163 pictures (Digits, val) by Blocks" in caplog.text
    assert "had the weights" not in caplog.text
    before, other = Blocks(), Blocks()
    other.thresholds.data += 0.1
    save(other, checkpoint)
    Codes(data, checkpoint).dataset("val")
    old, new = (digest_weights(model.state_dict())[:12] for model in (before, other))
    assert f"{checkpoint} had the weights {old} when codes were made of it, and has {new} now." in caplog.text


def test_a_damaged_file_is_made_anew(checkpoint):
    path = Codes(digits(), checkpoint).dataset("val").path
    content = path.read_bytes()
    for damage in (content[:-1], b"", b"\x93NUMPY" + b"\xff" * 50):
        path.write_bytes(damage)
        with pytest.warns(UserWarning, match="is damaged"):
            Codes(digits(), checkpoint).dataset("val")
        assert path.read_bytes() == content


def _made_by(rank, folder, crops=5):
    os.environ["LIGHTNING_GEN_CACHE"] = str(folder)
    return kept_codes(Blocks(), digits(), "train", crops, True)


def test_two_processes_make_what_one_makes(on_ranks, tmp_path):
    one = _made_by(0, tmp_path / "one")
    first, second = on_ranks(_made_by, tmp_path / "two")
    assert first == second, (first, second)
    assert first.name == one.name
    assert first.read_bytes() == one.read_bytes()


def _killed(rank, folder, victim, moment):
    """Make codes on some processes, of which one is killed at a moment; how many there were, if it lived.

    Moments are of Python's own record of what it asks of the system, and before each batch.
    """
    os.environ["LIGHTNING_GEN_CACHE"] = str(folder)
    codes_of, count = module.codes_of, itertools.count()

    def pass_by(event="", _=None):
        if event.partition(".")[0] in ("", "open", "os", "mmap") and rank == victim and next(count) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    module.codes_of = lambda *given: (pass_by(), codes_of(*given))[1]
    sys.addaudithook(pass_by)
    kept_codes(Blocks(), digits(), "train", 1, True)
    return next(count)


def test_nothing_of_a_killed_process_is_trusted(fresh_process, tmp_path):
    """Wherever it was killed, the next one makes all of it, and tidies up."""
    whole = _made_by(0, tmp_path / "whole", 1)
    moments = fresh_process(_killed, 0, tmp_path / "alive", 0, -1)
    left = Counter()
    for moment in [*random.Random(0).sample(range(moments), 6), *range(moments - 5, moments)]:
        folder = tmp_path / str(moment) / "codes"
        assert fresh_process(_killed, 0, folder.parent, 0, moment) is None
        kinds = {file.suffix for file in folder.glob("*")}
        left.update(kinds)
        if ".npy" in kinds:  # then the kill came later
            assert (folder / whole.name).read_bytes() == whole.read_bytes()
            continue
        assert fresh_process(_made_by, 0, folder.parent, 1).read_bytes() == whole.read_bytes()
        assert {file.suffix for file in folder.iterdir()} == {".npy", ".json"}
    assert left[".tmp"] > left[".npy"] > 0


@pytest.mark.parametrize("victim", [0, 1])
def test_nothing_is_trusted_if_one_of_two_processes_is_killed(victim, on_ranks, fresh_process, tmp_path):
    one = _made_by(0, tmp_path / "one", 1)
    answers = on_ranks(_killed, tmp_path / "killed", victim, 20)
    assert all(isinstance(answer, RuntimeError) for answer in answers)
    assert "died without a word" in str(answers[victim])
    assert "Another process of this run has ended" in str(answers[1 - victim])
    assert not list((tmp_path / "killed" / "codes").glob("*.npy"))
    assert fresh_process(_made_by, 0, tmp_path / "killed", 1).read_bytes() == one.read_bytes()


def _failing(rank, folder):
    os.environ["LIGHTNING_GEN_CACHE"] = str(folder)
    if rank == 1:
        module.codes_of = lambda *_: 1 / 0
    return kept_codes(Blocks(), digits(), "train", 1, False)


def test_what_fails_on_one_process_fails_on_all_and_leaves_nothing(on_ranks, tmp_path):
    errors = on_ranks(_failing, tmp_path)
    assert all(isinstance(error, RuntimeError) for error in errors)
    assert "Rank 1 failed" in str(errors[0])
    assert list((tmp_path / "codes").iterdir()) == []


# Training


def fitted(data, path=None, **settings):
    torch.manual_seed(0)
    first = Blocks() if path is None else GenerativeModule.load_from_checkpoint(path)
    model = CodePrior((1, 8, 8), first, GPT, **settings)
    loop = trainer(max_steps=5, max_epochs=-1, limit_val_batches=2, val_check_interval=5, check_val_every_n_epoch=None)
    torch.manual_seed(1)
    loop.fit(model, datamodule=data)
    return model, {name: float(value) for name, value in loop.callback_metrics.items()}


@pytest.mark.parametrize("settings", [{}, {"num_classes": 10}])
def test_a_prior_of_codes_learns_bit_for_bit_what_one_of_pictures_learns(settings, monkeypatch):
    pictures, figures = fitted(digits(batch_size=100), **settings)
    for step in ("encode", "read"):
        if step == "read":
            no_encoding(monkeypatch)
            monkeypatch.setattr(Blocks, "codes", no_encoding)
        model, same = fitted(Codes(digits(), batch_size=100, num_workers=0), **settings)
        assert not differences(model.state_dict(), pictures.state_dict())
        assert same == figures
    assert figures.keys() >= {"val/nll-codes", "train/nll-codes"}
    assert model.images_seen == 500


def test_log_prob_of_codes_is_that_of_their_pictures():
    torch.manual_seed(0)
    model = CodePrior((1, 8, 8), Blocks(), GPT, num_classes=3)
    torch.nn.init.normal_(model.network.levels[0].head.weight)
    images = torch.rand(6, 1, 8, 8) * 2 - 1
    for labels in (None, 1, torch.tensor([0, 1, 2, 0, 1, 2])):
        assert torch.equal(model.log_prob(model.to_levels(images), labels), model.log_prob(images, labels))


# Wrong input


def test_what_does_not_fit_is_said(checkpoint, tmp_path):
    for settings, words in (
        ({"crops": 2}, "crops must be 1, 5, 10, got 2"),
        ({"data": digits(flip=True)}, "Digits draws anew by flip whenever .* give Codes its own"),
        ({"data": digits(binarization="dynamic")}, "draws anew by binarization"),
    ):
        with pytest.raises(ValueError, match=words):
            Codes(**{"data": digits(), "checkpoint": checkpoint, **settings})
    data = digits()
    with pytest.raises(CheckpointError, match=r"There is no checkpoint at .*nowhere\.ckpt"):
        Codes(data, tmp_path / "nowhere.ckpt").dataset("val")
    (tmp_path / "cut.ckpt").write_bytes(checkpoint.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="cut short"):
        Codes(data, tmp_path / "cut.ckpt").dataset("val")
    with pytest.raises(CheckpointError, match="holds a Mute, which makes no codes of pictures"):
        Codes(data, save(Mute((1, 8, 8)), tmp_path / "mute.ckpt")).dataset("val")
    with pytest.raises(ValueError, match=r"gives pictures of \(1, 12, 12\), but the Blocks .* takes \(1, 8, 8\)"):
        Codes(digits(pad=2), checkpoint).dataset("val")
    with pytest.raises(ValueError, match=r"Name the checkpoint of a model that has codes: --data.checkpoint"):
        Codes(data).dataset("val")


def test_codes_of_another_first_stage_are_refused(checkpoint, tmp_path):
    other = Blocks()
    other.thresholds.data += 0.1
    here, there = (digest_weights(model.state_dict())[:12] for model in (Blocks(), other))
    path = save(other, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=f"has the weights {here}, but .*other.ckpt has {there}"):
        fitted(Codes(digits(), path, num_workers=0))
    fitted(Codes(digits(), checkpoint, num_workers=0))
    model = CodePrior((1, 8, 8), Blocks(), GPT)
    maps = [torch.zeros(2, 3, 3, dtype=torch.int64)]
    with pytest.raises(ValueError, match=r"Codes of a Blocks are int64 \[N, 2, 2\], but the data gives .*\[2, 3, 3\]"):
        model.images_and_context({"codes": maps})


def test_the_file_of_the_first_stage_is_not_needed_where_the_prior_has_it(checkpoint):
    Path(checkpoint).unlink()
    _, figures = fitted(Codes(digits(), num_workers=0))
    assert figures["val/nll-codes"] > 0
