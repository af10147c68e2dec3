import numpy as np
import pytest
import torch

from lightning_gen.data import binarization
from lightning_gen.data.binarization import (
    StaticNoise,
    binarize,
    binarized_mnist_files,
    read_binarized_mnist,
    threshold,
)

ROWS = {"train": 5, "valid": 3, "test": 2}
FILES = {"train": "train", "val": "valid", "test": "test"}
BITS = {name: np.random.default_rng(i).integers(0, 2, (rows, 784)) for i, (name, rows) in enumerate(ROWS.items())}


def write(folder, name, rows, ending=" \n"):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(" ".join(map(str, row)) + ending for row in rows)
    (folder / f"binarized_mnist_{name}.amat").write_bytes(text.encode())


@pytest.fixture
def fixed(tmp_path, monkeypatch):
    """A folder with small files of the published layout."""
    monkeypatch.setattr(binarization, "ROWS", ROWS)
    for name, bits in BITS.items():
        write(tmp_path / "BinarizedMNIST", name, bits)
    return tmp_path


# -- gray to black and white ------------------------------------------------------------------------------------------


def test_threshold_cuts_at_half():
    cut = threshold(torch.arange(256, dtype=torch.uint8))
    assert cut.dtype == torch.uint8
    assert cut.tolist() == [0] * 128 + [255] * 128
    assert threshold(torch.tensor([0, 0.4999999, 0.5, 1])).tolist() == [0, 0, 255, 255]
    assert threshold(torch.arange(17) / 16).tolist() == [0] * 8 + [255] * 9


@pytest.mark.parametrize("as_float", [False, True])
def test_gray_is_the_probability_of_white(as_float):
    draws = 4000
    gray = torch.arange(256, dtype=torch.uint8)
    pixels = gray.div(255) if as_float else gray
    noise = StaticNoise(0, 0, 0, pixels=256).next(torch.Size((draws, 256)))
    drawn = binarize(pixels.expand(draws, -1), noise)
    assert drawn.dtype == torch.uint8
    assert drawn.unique().tolist() == [0, 255]
    share, chance = (drawn == 255).double().mean(0), gray.double() / 255
    # Five standard deviations, of which chance passes one of 256 in some 7,000 seeds.
    assert ((share - chance).abs() <= 5 * (chance * (1 - chance) / draws).sqrt()).all()
    assert share[0] == 0  # what is black or white already stays, whatever the noise
    assert share[255] == 1


def test_extreme_noise():
    pixels = torch.tensor([0, 1, 254, 255], dtype=torch.uint8)
    assert binarize(pixels, torch.zeros(4)).tolist() == [0, 255, 255, 255]
    assert binarize(pixels, torch.full((4,), 1 - 2**-24)).tolist() == [0, 0, 0, 255]


# -- noise once and for all -------------------------------------------------------------------------------------------


def test_static_noise_is_the_published_stream():
    """Words of PCG64 for SeedSequence((seed, part)): pinned, for figures of years to come are to compare."""
    noise = StaticNoise(0, 0, 0, pixels=4).next(torch.Size((1, 1, 2, 2)))
    words = np.random.PCG64(np.random.SeedSequence((0, 0))).random_raw(4)
    assert noise.flatten().tolist() == [float(int(word) >> 40) / 2**24 for word in words]
    assert noise.mul(2**24).flatten().tolist() == [10686443, 4526269, 687421, 277287]


def test_static_noise_depends_on_seed_part_and_place_alone():
    shape = torch.Size((7, 1, 2, 3))
    whole = StaticNoise(3, 1, 0, pixels=6).next(shape)
    assert whole.dtype == torch.float32
    assert 0 <= whole.min() <= whole.max() < 1
    assert torch.equal(StaticNoise(3, 1, 4, pixels=6).next(torch.Size((3, 1, 2, 3))), whole[4:])
    parts = StaticNoise(3, 1, 0, pixels=6)
    assert torch.equal(torch.cat([parts.next(torch.Size((n, 1, 2, 3))) for n in (1, 4, 2)]), whole)
    for seed, part in ((4, 1), (3, 0), (1, 3)):
        assert not torch.isin(StaticNoise(seed, part, 0, pixels=6).next(shape), whole).all()


# -- the published file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["\n", " \n", "\r\n", "  \r\n"])
def test_the_published_layout_is_read(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(binarization, "ROWS", ROWS)
    for name, bits in BITS.items():
        write(tmp_path, name, bits, ending)
    for split, name in FILES.items():
        images = read_binarized_mnist(tmp_path, split)
        assert images.shape == (ROWS[name], 1, 28, 28)
        assert images.dtype == torch.uint8
        assert torch.equal(images.flatten(1), torch.from_numpy(BITS[name] * 255).to(torch.uint8))
        # Rows of the file are pictures line by line.
        assert images[1, 0, 2, 5] == 255 * BITS[name][1, 2 * 28 + 5]


def test_the_folder_of_its_own_comes_first(fixed):
    write(fixed, "train", 1 - BITS["train"])
    assert binarized_mnist_files(fixed)["train"].parent.name == "BinarizedMNIST"
    (fixed / "BinarizedMNIST" / "binarized_mnist_train.amat").unlink()
    assert binarized_mnist_files(fixed)["train"].parent == fixed
    assert torch.equal(
        read_binarized_mnist(fixed, "train").flatten(1), torch.from_numpy((1 - BITS["train"]) * 255).to(torch.uint8)
    )


def test_what_is_missing_is_named_with_where_it_comes_from(fixed):
    (fixed / "BinarizedMNIST" / "binarized_mnist_valid.amat").unlink()
    with pytest.raises(FileNotFoundError) as error:
        binarized_mnist_files(fixed)
    message = str(error.value)
    assert message.startswith(
        f"binarized_mnist_valid.amat is neither in {fixed / 'BinarizedMNIST'} nor in {fixed}. The binarization 'fixed'"
    )
    for words in (*(f"binarized_mnist_{name}.amat" for name in ROWS), "Larochelle and Murray (2011)", "not downloaded"):
        assert words in message


def changed(row, column, value):
    rows = BITS["train"].tolist()
    rows[row][column] = value
    return rows


@pytest.mark.filterwarnings("ignore:.*input contained no data")
@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (BITS["train"][:4], "holds 4 rows of 784 values; expected 5 of 784. It is cut short"),
        (BITS["train"][:, :783], "holds 5 rows of 783 values; expected 5 of 784."),
        ([*BITS["train"][:4], BITS["train"][4, :100]], "is damaged, or another file: the number of columns changed"),
        ([], "holds 0 rows"),
        (changed(2, 9, 2), "holds 2 in row 3, column 10; expected zeros and ones."),
        (changed(2, 9, 255), "holds 255 in row 3, column 10; expected zeros and ones."),
        (changed(2, 9, 0.5), "is damaged, or another file: could not convert string '0.5'"),
        (changed(2, 9, -1), "is damaged, or another file: could not convert string '-1'"),
        (changed(2, 9, "x"), "is damaged, or another file: could not convert string 'x'"),
    ],
    ids=["short", "narrow", "ragged", "empty", "two", "255", "half", "minus", "x"],
)
def test_a_damaged_file_is_refused(fixed, rows, message):
    write(fixed / "BinarizedMNIST", "train", rows)
    with pytest.raises(ValueError) as error:
        read_binarized_mnist(fixed, "train")
    assert str(error.value).startswith(f"{fixed / 'BinarizedMNIST' / 'binarized_mnist_train.amat'} ")
    assert message in str(error.value)


def test_the_published_sizes():
    assert binarization.ROWS == {"train": 50_000, "valid": 10_000, "test": 10_000}
