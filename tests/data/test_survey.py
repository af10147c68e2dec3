"""What there is in a folder, of which a test knows what it put there."""

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_gen.data import GridOfGaussians, ImageFolder, PairedImageFolder, Scenes, UnpairedImageFolder
from lightning_gen.data import survey as surveys
from lightning_gen.data.images import ImageError
from lightning_gen.data.survey import survey


def picture(seed, height=40, width=48, channels=3):
    """Noise, which has detail at every size."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def save(path, seed, **given):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, **given).save(path)


@pytest.fixture
def folder(tmp_path):
    for i in range(20):
        save(tmp_path / "pictures" / f"{i:02}.png", i, height=40 if i else 30)
    return tmp_path / "pictures"


def of(folder, **given):
    return survey(ImageFolder(folder, image_size=16, num_workers=0, skip_broken=True, **given))


def names(found):
    return sorted(name.rpartition("/")[2] for name in found)


def test_what_is_well(folder):
    found = of(folder)
    assert (found.unit, found.training, found.held_out) == ("pictures", 18, 1)
    assert sorted(found.sizes) == [(30, 48)] + [(40, 48)] * 19
    assert not (found.copies)
    assert not (found.broken)
    assert not (found.gray)
    assert not (found.counts)
    assert not (found.sampled)
    assert list(found.detail) == [8, 16, 32]
    assert found.detail[8] < found.detail[16] < found.detail[32] < 20, "of noise everything is seen to be lost"


def test_copies_are_found_by_content_and_leave_the_first_one_of_training(folder):
    (folder / "copy.png").write_bytes((folder / "03.png").read_bytes())
    picture(4).save(folder / "other_format.bmp")
    picture(5).convert("RGBA").save(folder / "with_alpha.webp", lossless=True)
    Image.fromarray(np.asarray(picture(6)) ^ np.uint8(64)).save(folder / "other_content.png")
    found = of(folder)
    assert len(found.copies) == 3
    for one, other in found.copies.items():
        assert {one.rpartition("/")[2], other.rpartition("/")[2]} in (
            {"copy.png", "03.png"}, {"other_format.bmp", "04.png"}, {"with_alpha.webp", "05.png"}
        )  # fmt: skip
    data = ImageFolder(folder, image_size=16)
    training = {str(path) for path in data.files["train"]}
    assert all(other in training or one not in training for one, other in found.copies.items())
    assert found.training == len(training - found.copies.keys())
    assert found.held_out == len({str(path) for path in data.files["val"]} - found.copies.keys())


def test_copies_among_many_are_found_by_their_bytes(folder, monkeypatch):
    monkeypatch.setattr(surveys, "DECODED", 2)
    for i in range(5):
        (folder / f"copy{i}.png").write_bytes((folder / "03.png").read_bytes())
    found = of(folder)
    assert found.sampled
    assert len(found.sizes) < 8
    assert len(found.copies) == 5


def test_a_folder_of_copies_has_one_picture(tmp_path):
    for i in range(30):
        save(tmp_path / f"{i}.png", 0)
    found = of(tmp_path)
    assert (found.training, len(found.copies)) == (1, 29)


def test_what_cannot_be_read_is_named(folder):
    whole = (folder / "02.png").read_bytes()
    (folder / "short.png").write_bytes(whole[: len(whole) // 2])  # begins like a picture
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no picture")
    found = of(folder)
    assert names(found.broken) == ["short.png"]
    assert "cut short" in next(iter(found.broken.values()))
    assert "2 of 23 picture files cannot be read. empty: 1 (empty.png)" in found.left_out[0]
    assert found.training + found.held_out + 1 == 20
    for path in folder.glob("[0-9]*"):
        path.unlink()
    for i in range(5):
        (folder / f"{i}.png").write_bytes(whole[:60])
    with pytest.raises(ImageError, match=r"None of the pictures can be read\. .*cut short, or not"):
        of(folder)


def test_gray_is_what_has_no_colour(tmp_path):
    for i in range(10):
        save(tmp_path / f"{i}.png", i, channels=1 if i < 3 else 3)
    picture(11, channels=1).convert("RGB").save(tmp_path / "gray_as_rgb.jpg", quality=70)
    assert of(tmp_path).gray == pytest.approx(4 / 11)


def test_what_is_kept_at_a_resolution(tmp_path):
    """Pictures that were enlarged have no more in them than they had before."""
    for i in range(6):
        small = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4), (16, 16), mode="bicubic").clamp(0, 1)[0]
        pixels = (255 * small.permute(1, 2, 0)).byte().numpy()
        Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC).save(tmp_path / f"{i}.png")
    found = of(tmp_path)
    assert found.detail[64] > found.detail[32] > 40 > found.detail[8]


def test_classes_are_counted(tmp_path):
    for name, number in (("cat", 7), ("dog", 12)):
        for i in range(number):
            save(tmp_path / "train" / name / f"{i}.png", 100 * number + i)
        save(tmp_path / "val" / name / "a.png", number)
    found = of(tmp_path, labels=True)
    assert found.counts == {"cat": 7, "dog": 12}
    assert (found.training, found.held_out) == (19, 2)


def test_domains_and_pairs(tmp_path):
    for side, number in (("A", 5), ("B", 3)):
        for i in range(number):
            save(tmp_path / "two" / f"train{side}" / f"{i}.png", ord(side) + 100 * i)
        save(tmp_path / "two" / f"test{side}" / "a.png", ord(side))
    found = survey(UnpairedImageFolder(tmp_path / "two", crop=16, resize=20, num_workers=0))
    assert (found.unit, found.training, found.held_out, found.counts) == ("pairs", 3, 0, {"A": 5, "B": 3})
    assert names(found.copies) == ["a.png", "a.png"], "what is to be tested was trained on"
    for split, number in (("train", 4), ("val", 2)):
        for i in range(number):
            save(tmp_path / "pairs" / split / f"{i}.png", 10 * number + i, width=80)
    found = survey(PairedImageFolder(tmp_path / "pairs", crop=16, resize=20, num_workers=0))
    assert (found.unit, found.training, found.held_out) == ("pairs", 4, 2)
    assert set(found.sizes) == {(40, 40)}


def test_data_without_files():
    found = survey(Scenes(image_size=16, num_train=30, num_workers=0))
    assert (found.unit, found.training) == ("pictures", 30)
    assert set(found.sizes) == {(16, 16)}
    assert not (found.copies)
    assert not (found.broken)
    assert found.gray < 0.5
    assert survey(GridOfGaussians(num_workers=0)).unit == "points"
