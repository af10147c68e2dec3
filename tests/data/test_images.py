import io
import itertools
import pickle
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

from lightning_gen.data import images
from lightning_gen.data.images import (
    ImageError,
    Picture,
    from_uint8,
    image_endings,
    open_image,
    read_image,
    read_reduced,
    resize_image,
    to_float,
    to_uint8,
    write_image,
)
from lightning_gen.data.listing import faults_of

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8)
GRAY16 = np.array([[0, 0x1234, 65535], [1, 256, 40000]], np.uint16)


def save(path: Path, array, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(np.asarray(array))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def chw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy()).reshape(*array.shape[:2], -1).permute(2, 0, 1)


def tiff(path: Path, array: np.ndarray, *, bits: int = 16, photometric: int = 1) -> Path:
    """A plain little-endian TIFF of `[H, W, samples]`, for kinds that Pillow does not write."""
    height, width, samples = array.shape
    data = array.tobytes()
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, samples, bits if samples == 1 else 8),  # several values stand at offset 8
        (259, 3, 1, 1),
        (262, 3, 1, photometric),
        (273, 4, 1, 8 + 2 * samples),
        (277, 3, 1, samples),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
    ]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    bit_counts = struct.pack(f"<{samples}H", *[bits] * samples)
    head = b"II*\0" + struct.pack("<I", 8 + len(bit_counts) + len(data))
    path.write_bytes(head + bit_counts + data + directory)
    return path


def png16(path: Path, array: np.ndarray, **alpha) -> Path:
    """A 16-bit PNG, written by the package; `test_16_bit_png_agrees_with_pillow` vouches for it."""
    image = torch.from_numpy(array.astype(np.float64)).permute(2, 0, 1).div(32767.5).sub(1)
    like = Picture(torch.zeros(1, 1, 1, dtype=torch.uint16), **alpha)
    write_image(path, image, like=like)
    return path


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


# Quantization


def test_every_level_of_uint8_survives_the_round_trip():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert from_uint8(levels)[[0, 255]].tolist() == [-1, 1]


def test_to_uint8_rounds_and_clips():
    assert to_uint8(torch.tensor([-9.0, 9.0, 1 / 255 - 1 + 1e-4, 1 / 255 - 1 - 1e-4])).tolist() == [0, 255, 1, 0]


def test_to_float_takes_both_kinds_of_pixels_to_the_same_range():
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]
    assert to_float(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-1, 0, 1]


def test_resize_clips_the_overshoot_of_the_cubic():
    step = torch.zeros(1, 4, 8)
    step[..., 4:] = 1
    wide = resize_image(step, (4, 32))
    assert wide.shape == (1, 4, 32)
    assert wide.min() == 0
    assert wide.max() == 1
    from_bytes = resize_image(step.mul(255).to(torch.uint8), (4, 32))
    assert from_bytes.dtype == torch.uint8
    assert (from_bytes / 255 - wide).abs().max() < 2 / 255


def test_resize_to_the_same_size_changes_nothing():
    pixels = torch.rand(3, 4, 6)
    assert resize_image(pixels, (4, 6)) is pixels


def test_gray_as_rgb_is_resized_once(tmp_path):
    pixels = read_image(save(tmp_path / "x.png", RNG.integers(0, 256, (9, 7), dtype=np.uint8)))
    small = resize_image(pixels, (5, 4))
    assert small.shape == (3, 5, 4)
    assert small.stride(0) == 0
    assert torch.equal(small, resize_image(pixels.contiguous(), (5, 4)))
    assert torch.equal(resize_image(pixels[None].expand(2, -1, -1, -1), (5, 4)), small.expand(2, -1, -1, -1))


# Reading 8 bits


@pytest.mark.parametrize("ending", ["png", "ppm", "bmp", "tif", "tiff"])
def test_rgb_is_read_to_the_bit(tmp_path, ending):
    pixels = read_image(save(tmp_path / f"x.{ending}", RGB))
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, chw(RGB))


@pytest.mark.parametrize("ending", [ending for ending in image_endings() if ending != ".pfm"])
def test_what_is_known_by_its_ending_is_written_and_read(tmp_path, ending):
    """All levels of a smooth picture, in gray and in colour; without loss, but for four formats."""
    colour = np.broadcast_to(np.linspace(0, 255, 48).round()[None, :, None], (32, 48, 3)).copy()
    colour[..., 1] = 128
    for channels, array in ((3, colour), (1, colour[..., :1])):
        image = chw(array).float() / 127.5 - 1
        write_image(tmp_path / f"x{ending}", image)
        pixels = read_image(tmp_path / f"x{ending}", channels)
        exact = image_endings()[ending] not in ("JPEG", "WEBP", "AVIF", "GIF")
        assert (pixels.int() - to_uint8(image).int()).abs().max() <= (0 if exact else 16)
    assert not faults_of([tmp_path / f"x{ending}"])


def test_a_picture_of_too_many_pixels_is_refused_unless_allowed(tmp_path, monkeypatch):
    path = save(tmp_path / "x.png", np.zeros((400, 300), np.uint8))
    monkeypatch.setenv("LIGHTNING_GEN_MAX_MEGAPIXELS", "0.1")
    words = r"x.png has 300 x 400 pixels, more than the 0.1 million that are read. .* LIGHTNING_GEN_MAX_MEGAPIXELS"
    with pytest.raises(ImageError, match=words):
        open_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)  # Pillow refuses twice as many
    monkeypatch.setenv("LIGHTNING_GEN_MAX_MEGAPIXELS", "0.05")
    with pytest.raises(ImageError, match=r"x.png has more pixels than the 0.05 million"):
        open_image(path)
    monkeypatch.setenv("LIGHTNING_GEN_MAX_MEGAPIXELS", "0.2")
    assert open_image(path).pixels.shape == (1, 400, 300)


def test_by_default_a_picture_of_13000_by_13000_is_refused(tmp_path):
    header = struct.pack(">IIBBBBB", 13000, 13000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    data = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + data)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(ImageError, match="13000 x 13000 pixels, more than the 89 mill"),
    ):
        open_image(tmp_path / "x.png")


def test_files_for_which_pillow_starts_another_program_are_not_opened(tmp_path):
    (tmp_path / "x.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\n")
    with Image.open(tmp_path / "x.png") as image:
        assert image.format == "EPS"
    with pytest.raises(ImageError, match="cannot be read as a picture"):
        open_image(tmp_path / "x.png")


def test_gray_becomes_rgb_by_repetition(tmp_path):
    path = save(tmp_path / "x.png", RGB[..., 0])
    assert torch.equal(read_image(path), chw(RGB[..., :1]).expand(3, -1, -1))
    assert torch.equal(read_image(path, channels=1), chw(RGB[..., :1]))


def test_rgb_becomes_gray_by_luma(tmp_path):
    path = save(tmp_path / "x.png", np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [7, 7, 7]]], np.uint8))
    # round(255 * 0.299), round(255 * 0.587), round(255 * 0.114)
    assert read_image(path, channels=1).flatten().tolist() == [76, 150, 29, 7]


def test_half_transparent_pixels_show_half_of_the_background(tmp_path):
    path = save(tmp_path / "x.png", np.array([[[200, 100, 0, 128], [200, 100, 0, 255], [200, 100, 0, 0]]], np.uint8))
    # 255 + 128 / 255 * (200 - 255) = 227.39 and so on
    assert read_image(path).permute(1, 2, 0).tolist() == [[[227, 177, 127], [200, 100, 0], [255, 255, 255]]]
    red = read_image(path, background="red").permute(1, 2, 0).tolist()
    assert red == [[[227, 50, 0], [200, 100, 0], [255, 0, 0]]]
    assert read_image(path, background="#010203").permute(1, 2, 0).tolist()[0][2] == [1, 2, 3]
    # By luma: 0.299 * 200 + 0.587 * 100 = 118.5; on red (76.245): 97.456 where half transparent
    assert read_image(path, 1, "red").flatten().tolist() == [97, 118, 76]


def test_gray_with_alpha_takes_the_colour_of_the_background(tmp_path):
    path = save(tmp_path / "x.png", np.array([[[100, 255], [100, 0], [100, 51]]], np.uint8))
    assert read_image(path, background="blue").permute(1, 2, 0).tolist() == [[[100] * 3, [0, 0, 255], [20, 20, 224]]]
    assert read_image(path, channels=1).flatten().tolist() == [100, 255, 224]


def test_palette_with_transparency(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    image.save(tmp_path / "shades.png", transparency=bytes([255, 0, 51]))
    assert read_image(tmp_path / "opaque.png")[:, 0].T.tolist() == [[10, 20, 30], [40, 50, 60], [70, 80, 90]]
    assert read_image(tmp_path / "clear.png")[:, 0].T.tolist() == [[10, 20, 30], [255] * 3, [70, 80, 90]]
    assert read_image(tmp_path / "shades.png", background="black")[:, 0].T.tolist() == [
        [10, 20, 30],
        [0, 0, 0],
        [14, 16, 18],
    ]


def test_a_colour_that_stands_for_transparent(tmp_path):
    array = np.array([[[1, 2, 3], [1, 2, 4]]], np.uint8)
    path = save(tmp_path / "x.png", array, transparency=(1, 2, 3))
    assert read_image(path)[:, 0].T.tolist() == [[255, 255, 255], [1, 2, 4]]
    path = save(tmp_path / "gray.png", array[..., 0] + np.array([[0, 1]], np.uint8), transparency=1)
    assert read_image(path)[:, 0].T.tolist() == [[255] * 3, [2] * 3]


def test_one_bit_and_cmyk(tmp_path):
    assert read_image(save(tmp_path / "x.png", np.array([[0, 255]], np.uint8), "1"), 1).flatten().tolist() == [0, 255]
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.tif")
    assert read_image(tmp_path / "x.tif")[:, 0, 0].tolist() == [255, 0, 0]
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    assert read_image(tmp_path / "x.jpg")[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
def test_exif_orientation_is_applied(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if ending == "webp" else {}
    path = save(tmp_path / f"x.{ending}", RGB, exif=exif, **options)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    assert torch.equal(read_image(path), chw(upright))
    if orientation == 6:  # the camera was held upright: the first row is the right column
        assert torch.equal(read_image(path)[:, :, -1], chw(RGB)[:, 0])


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_exif_orientation_is_applied_to_16_bits_and_alpha(tmp_path, ending):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / f"x.{ending}", GRAY16, exif=exif)
    assert read_image(path, 1)[0, :, -1].mul(65535).round().int().tolist() == GRAY16[0].tolist()
    path = save(tmp_path / f"alpha.{ending}", np.arange(16, dtype=np.uint8).reshape(2, 2, 4), exif=exif)
    assert open_image(path).alpha.tolist() == [[[11, 3], [15, 7]]]


# Decoders


def waves(height: int, width: int) -> np.ndarray:
    """A smooth picture: waves of 64 pixels, 50 levels high."""
    rows, columns = np.ogrid[:height, :width]
    channels = [np.sin(rows * np.pi / 32 + k) + np.cos(columns * np.pi / 32 - k) for k in range(3)]
    return (np.stack(channels, -1) * 25 + 128).round().astype(np.uint8)


def encoded(array: np.ndarray, format_name: str, mode: str | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array)
    (image.convert(mode) if mode else image).save(buffer, format_name, **options)
    return buffer.getvalue()


def by_pillow(data: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as image:
        array = np.array(image)
    return chw(array)


def kinds() -> list[bytes]:
    """JPEG and WebP of many kinds and odd sizes, smooth and noisy."""
    found = []
    for height, width in ((64, 64), (33, 57), (17, 9), (2, 3)):
        array = waves(height, width) // 2 + RNG.integers(0, 128, (height, width, 3), dtype=np.uint8)
        for subsampling, progressive in itertools.product(range(3), (False, True)):
            quality = int(RNG.integers(5, 100))
            found.append(encoded(array, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive))
        found.append(encoded(array, "JPEG", keep_rgb=True))
        found.append(encoded(array, "JPEG", restart_marker_blocks=1, subsampling=1))
        found.append(encoded(array[..., :1], "JPEG"))
        found += [encoded(array, "WEBP", quality=50), encoded(array, "WEBP", lossless=True)]
    return found


def test_whichever_decoder_reads_a_picture_gives_the_pixels_of_pillow(monkeypatch):
    used = []
    read = images._by_torchvision
    monkeypatch.setattr(images, "_by_torchvision", lambda *args: used.append(read(*args)) or used[-1])
    for data in kinds():
        assert torch.equal(open_image(data).pixels, by_pillow(data))
    there = [images._torchvision_decoder(name) is not None for name in ("JPEG", "WEBP")]
    assert all(pixels is not None for pixels in used) or not all(there)


def test_damaged_pictures_are_read_or_refused_whichever_decoder_there_is(monkeypatch):
    pictures = kinds()
    damaged = []
    for i in range(300):
        data = bytearray(pictures[i % len(pictures)])
        if i % 3:
            for place in RNG.integers(0, len(data), 3):
                data[place] = RNG.integers(256)
        else:
            data = data[: RNG.integers(1, len(data))]
        damaged.append(bytes(data))

    def outcome(data: bytes) -> torch.Tensor | str:
        try:
            return open_image(data).pixels
        except ImageError as error:
            return str(error)

    first = [outcome(data) for data in damaged]
    monkeypatch.setattr(images, "_torchvision_decoder", lambda format_name: None)
    second = [outcome(data) for data in damaged]
    assert {type(found) for found in first} == {str, torch.Tensor}
    for ours, pillows in zip(first, second, strict=True):
        assert ours == pillows if isinstance(ours, str) else torch.equal(ours, pillows)


@pytest.fixture
def fresh_decoders():
    images._torchvision_decoder.cache_clear()
    yield
    images._torchvision_decoder.cache_clear()


@pytest.mark.parametrize("fault", ["other digits", "refusal", "absence"])
def test_a_decoder_that_differs_from_pillow_is_not_used(monkeypatch, fresh_decoders, fault):
    decode = torch.ops.image.decode_jpeg

    def wrong(data, mode, turn):
        if fault == "refusal":
            raise RuntimeError("decode_jpeg: torchvision not compiled with libjpeg support")
        pixels = decode(data, mode, turn)
        pixels[0, -1, -1] += 1
        return pixels

    monkeypatch.setattr(torch.ops, "image", SimpleNamespace(**({} if fault == "absence" else {"decode_jpeg": wrong})))
    assert images._torchvision_decoder("JPEG") is None
    data = encoded(waves(20, 30), "JPEG")
    assert torch.equal(open_image(data).pixels, by_pillow(data))


# Reading from memory


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "gif", "ppm", "bmp"])
def test_bytes_are_read_as_files_are(tmp_path, ending):
    path = save(tmp_path / f"x.{ending}", RGB)
    for channels in (1, 3):
        assert torch.equal(read_image(path.read_bytes(), channels), read_image(path, channels))
    deep = png16(tmp_path / "deep.png", RNG.integers(0, 65536, (3, 4, 3)))
    assert torch.equal(read_image(deep.read_bytes()), read_image(deep))


def test_messages_call_bytes_by_the_name_given(monkeypatch):
    data = encoded(RGB, "PNG")
    with pytest.raises(ImageError, match=r"^a.tar: 7.png cannot be read as a picture: .*cut short"):
        read_image(data[: len(data) // 2], name="a.tar: 7.png")
    with pytest.raises(ImageError, match=r"^row 3 cannot be read as a picture: it does not begin like one \(cut short"):
        read_image(b"", name="row 3")
    with pytest.raises(ImageError, match=r"^A picture of 4 bytes cannot be read as a picture"):
        read_image(b"text")
    monkeypatch.setenv("LIGHTNING_GEN_MAX_MEGAPIXELS", "0.00001")
    with pytest.raises(ImageError, match=r"^row 3 has 5 x 6 pixels, more than"):
        read_image(data, name="row 3")


# Reading no more than is wanted


@pytest.mark.parametrize(("height", "width"), [(1024, 640), (511, 1023), (9, 17), (16, 16), (1, 5)])
def test_a_jpeg_is_decoded_at_the_smallest_scale_of_at_least_twice_the_size_wanted(height, width):
    data = encoded(waves(height, width), "JPEG")
    scales = set()
    for rows, columns in itertools.product((1, 2, 4, 5, 64, 128, 160, 256, 512, 1024), repeat=2):
        pixels, size, side = read_reduced(data, lambda h, w, wanted=(rows, columns): wanted)
        assert size == (height, width)
        decoded = {scale: (-(-height // scale), -(-width // scale)) for scale in (1, 2, 4, 8)}
        enough = [scale for scale, shape in decoded.items() if shape[0] >= 2 * rows and shape[1] >= 2 * columns]
        assert side == (enough or [1])[-1]
        assert tuple(pixels.shape) == (3, *decoded[side])
        scales.add(side)
    assert len(scales) == (1 if height == 1 else 4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(96, 64), (64, 64)])
def test_a_reduced_jpeg_is_upright(orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(waves(*size), "JPEG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        image.draft(None, (size[1] // 4, size[0] // 4))
        expected = chw(np.array(ImageOps.exif_transpose(image)))
    upright = size[::-1] if orientation > 4 else size
    asked = []

    def wanted(height, width):
        asked.append((height, width))
        # Of one side little is wanted, of the other just so much that it is decoded at 1/4.
        return (height // 8, 1) if orientation % 2 else (1, width // 8)

    pixels, true, side = read_reduced(data, wanted)
    assert side == 4
    assert asked == [upright] == [true]
    assert torch.equal(pixels, expected)


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"subsampling": 2}, {"mode": "L"}, {}])
def test_a_reduced_jpeg_has_the_pixels_of_libjpeg(options):
    data = encoded(waves(80, 56), "JPEG", **options)
    for scale in (2, 4, 8):
        with Image.open(io.BytesIO(data)) as image:
            image.draft(None, (56 // scale, 80 // scale))
            assert image.size == (56 // scale, 80 // scale)
            expected = chw(np.array(image))
        pixels, _, side = read_reduced(data, lambda h, w, s=scale: (h // s // 2, w // s // 2))
        assert side == scale
        assert torch.equal(pixels, expected.expand(3, -1, -1))


def test_a_reduced_jpeg_of_sides_that_are_no_multiples_keeps_its_place():
    """In a ramp each pixel tells its place: within 1 level, for levels are rounded twice."""
    ramp = np.linspace(0, 255, 481)[None, :, None].repeat(481, 0)
    data = encoded(ramp.round().astype(np.uint8), "JPEG", quality=98)
    pixels, size, side = read_reduced(data, lambda h, w: (30, 30), channels=1)
    assert (pixels.shape, size, side) == ((1, 61, 61), (481, 481), 8)
    for turned, axis in ((pixels, -1), (pixels.transpose(-1, -2), -2)):
        row = resize_image(turned, (30, 30), extent=(481 / 8, 481 / 8)).movedim(axis, 0)[1:-1, 0, 15]
        places = (torch.arange(1, 29) + 0.5) * 481 / 30 - 0.5
        assert (row - places * 255 / 480).abs().max() <= 1
    # As if the last pixel stood for 8 as all others do:
    assert (resize_image(pixels, (30, 30))[0, 15, 1:-1] - places * 255 / 480).abs().max() > 3


@pytest.mark.parametrize(("orientation", "sides"), [(1, [8, 8, 8]), (2, [1, 4, 8]), (6, [1, 4, 8])])
def test_a_turned_jpeg_is_reduced_where_that_divides_its_sides(orientation, sides):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pictures = [encoded(waves(*size), "JPEG", exif=exif) for size in ((481, 160), (480, 164), (480, 160))]
    assert [read_reduced(picture, lambda h, w: (2, 2))[2] for picture in pictures] == sides


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
def test_an_extent_of_whole_pixels_changes_nothing(kernel):
    for pixels in (torch.from_numpy(RNG.integers(0, 256, (2, 3, 20, 30), dtype=np.uint8)), torch.rand(3, 20, 30)):
        expected = resize_image(pixels, (7, 9), kernel)
        assert torch.equal(resize_image(pixels, (7, 9), kernel, (20, 30)), expected)
        nearly = resize_image(pixels, (7, 9), kernel, (20 - 1e-9, 30 - 1e-9))
        assert (nearly.float() - expected.float()).abs().max() <= (1 if pixels.dtype == torch.uint8 else 1e-5)


def test_all_pixels_are_read_of_what_is_no_plain_jpeg_or_wanted_in_full(tmp_path):
    for ending, mode in (("png", None), ("webp", None), ("jpg", "CMYK"), ("tif", None)):
        path = save(tmp_path / f"x.{ending}", waves(64, 48), mode)
        pixels, size, side = read_reduced(path, lambda h, w: (2, 2))
        assert (size, side) == ((64, 48), 1)
        assert torch.equal(pixels, read_image(path))
    path = save(tmp_path / "y.jpg", waves(64, 48))
    assert torch.equal(read_reduced(path, lambda h, w: None)[0], read_image(path))


@pytest.mark.parametrize("target", [128, 64, 32])
def test_a_smooth_jpeg_reduced_and_resized_is_that_of_all_its_pixels(target):
    """Within 2 levels: twice is rounded to levels on each way, and colours are mixed from rounded ones.

    The averages over up to 8 pixels of waves of 64 lower these, of 50 levels, by 1 - sinc(8 / 64) = 2.5 percent, and
    so does the exact way, which averages over more.
    """
    data = encoded(waves(512, 512), "JPEG", quality=98)
    reduced, _, _ = read_reduced(data, lambda h, w: (target, target))
    assert reduced.shape[-1] == 2 * target
    exact = resize_image(read_image(data), (target, target)).int()

    def difference(pixels: torch.Tensor) -> int:
        return int((resize_image(pixels, (target, target)).int() - exact).abs().max())

    assert difference(reduced) <= 2
    # A picture that is shifted by one of its pixels, half of one of the result, is seen.
    assert difference(reduced.roll(1, -1)[..., 1:]) > 2


# Reading more than 8 bits


@pytest.mark.parametrize("ending", ["png", "tif", "ppm"])
def test_16_bit_gray_is_exact(tmp_path, ending):
    pixels = read_image(save(tmp_path / f"x.{ending}", GRAY16), channels=1)
    assert pixels.dtype == torch.float32
    assert pixels[0, 0, 1] == np.float32(0x1234) / np.float32(65535)
    assert pixels.mul(65535).round().int()[0].tolist() == GRAY16.tolist()


def test_16_bit_gray_becomes_rgb(tmp_path):
    pixels = read_image(save(tmp_path / "x.png", GRAY16))
    assert pixels.shape == (3, 2, 3)
    assert torch.equal(pixels[0], pixels[2])


def test_compressed_and_big_endian_tiff(tmp_path):
    packed = read_image(save(tmp_path / "lzw.tif", GRAY16, compression="tiff_lzw"), 1)
    swapped = read_image(save(tmp_path / "mm.tif", GRAY16.astype(">u2")), 1)
    assert (
        packed.mul(65535).round().int()[0].tolist() == swapped.mul(65535).round().int()[0].tolist() == GRAY16.tolist()
    )


def test_integers_of_32_bits_are_taken_for_16_bit_values(tmp_path):
    path = save(tmp_path / "x.tif", GRAY16.astype(np.int32))
    assert open_image(path).pixels.dtype == torch.uint16
    assert read_image(path, 1).mul(65535).round().int()[0].tolist() == GRAY16.tolist()
    with pytest.raises(ImageError, match=r"big.tif holds values from -1 to 70000; expected 0 to 65535"):
        read_image(save(tmp_path / "big.tif", np.array([[-1, 70000]], np.int32)))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_agrees_with_pillow(tmp_path, channels):
    array = RNG.integers(0, 65536, (3, 4, channels)).astype(np.uint16)
    alpha = torch.from_numpy(array[..., -1:]).permute(2, 0, 1) if channels in (2, 4) else None
    path = png16(tmp_path / "x.png", array[..., : 3 if channels > 2 else 1], alpha=alpha)
    with Image.open(path) as image:  # Pillow keeps the high bytes of colour
        seen = np.asarray(image)
    if channels == 1:
        assert np.array_equal(seen, array[..., 0])
    elif channels == 2:
        assert np.array_equal(seen[..., [0, 3]], array >> 8)
    else:
        assert np.array_equal(seen, array >> 8)
    picture = open_image(path)
    parts = [picture.pixels] if alpha is None else [picture.pixels, picture.alpha]
    assert np.array_equal(torch.cat([part.int() for part in parts]).permute(1, 2, 0).numpy(), array)


def test_16_bit_colour_png_is_flattened_without_loss(tmp_path):
    array = np.array([[[0x1234, 0x8001, 0xFFFF]]], np.uint16)
    alpha = torch.full((1, 1, 1), 13107, dtype=torch.int32).to(torch.uint16)  # a fifth
    assert read_image(png16(tmp_path / "x.png", array)).mul(65535).flatten().tolist() == pytest.approx(
        [0x1234, 0x8001, 0xFFFF]
    )
    half = read_image(png16(tmp_path / "a.png", array, alpha=alpha), background="black")
    assert half.mul(65535 * 5).flatten().tolist() == pytest.approx([0x1234, 0x8001, 0xFFFF])


def test_16_bit_png_with_a_transparent_gray(tmp_path):
    path = save(tmp_path / "x.png", GRAY16, transparency=0x1234)
    assert open_image(path).alpha.int()[0].tolist() == [[65535, 0, 65535], [65535] * 3]
    assert read_image(path, 1)[0, 0].tolist() == [0, 1, 1]


def test_colour_that_would_lose_bits_is_refused(tmp_path):
    deep = RNG.integers(0, 65536, (2, 2, 3)).astype("<u2")
    for path in (tiff(tmp_path / "x.tif", deep, photometric=2), tmp_path / "x.ppm"):
        if path.suffix == ".ppm":
            path.write_bytes(b"P6 2 2 65535\n" + deep.astype(">u2").tobytes())
        with pytest.raises(ImageError, match=rf"{path.name} holds 16 bits per channel, of which only 8 .* 16-bit PNG"):
            read_image(path)


def test_gray_tiff_with_another_scale_is_refused(tmp_path):
    assert read_image(tiff(tmp_path / "plain.tif", GRAY16[..., None]), 1)[0, 0, 2] == 1
    with pytest.raises(ImageError, match=r"white.tif holds gray of 16 bits with another scale"):
        read_image(tiff(tmp_path / "white.tif", GRAY16[..., None], photometric=0))
    with pytest.raises(ImageError, match=r"twelve.tif holds gray of 12 bits"):
        read_image(tiff(tmp_path / "twelve.tif", np.zeros((2, 2, 1), "<u2"), bits=12))


def test_float_tiff(tmp_path):
    array = np.array([[0, 0.1, 1]], np.float32)
    pixels = read_image(save(tmp_path / "x.tif", array), channels=1)
    assert torch.equal(pixels[0], torch.from_numpy(array))
    with pytest.raises(ImageError, match=r"nan.tif holds 2 pixels that are not finite"):
        read_image(save(tmp_path / "nan.tif", np.array([[0, np.nan, np.inf]], np.float32)))
    with pytest.raises(ImageError, match=r"range.tif holds values from -0.5 to 255; expected floats in \[0, 1\]"):
        read_image(save(tmp_path / "range.tif", np.array([[-0.5, 255]], np.float32)))


# Refusals


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("ending", ["jpg", "png", "ppm", "bmp", "tif", "webp"])
def test_a_file_cut_short_is_named(tmp_path, ending):
    path = save(tmp_path / f"cut.{ending}", RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(ImageError, match=rf"cut.{ending} cannot be read as a picture: .*cut short"):
            read_image(path)


def test_a_16_bit_png_cut_short_is_named(tmp_path):
    path = png16(tmp_path / "cut.png", RNG.integers(0, 65536, (32, 32, 3)))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImageError, match=r"cut.png cannot be read"):
        read_image(path)


def test_a_file_that_is_no_picture_or_not_there_is_named(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("text.png", "gone.png"):
        with pytest.raises(ImageError, match=rf"{name} cannot be read as a picture"):
            read_image(tmp_path / name)


def test_options_are_checked(tmp_path):
    path = save(tmp_path / "x.png", np.zeros((1, 1, 4), np.uint8))
    with pytest.raises(ValueError, match=r"channels must be 1 \(gray\) or 3 \(RGB\), got 4"):
        read_image(path, channels=4)
    with pytest.raises(ValueError, match=r"background must be a colour .* got 'whitish'"):
        read_image(path, background="whitish")


class Broken(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise ImageError("broken.png cannot be read")


def test_the_error_survives_a_worker_process():
    assert str(pickle.loads(pickle.dumps(ImageError("x.png")))) == "x.png"
    batches = iter(DataLoader(Broken(), num_workers=1))
    with pytest.raises(ImageError, match=r"broken\.png"):
        next(batches)
    batches._shutdown_workers()  # left to the garbage collector, it would take five seconds


# Writing


def image_of(pixels: np.ndarray) -> torch.Tensor:
    return from_uint8(chw(pixels))


@pytest.mark.parametrize("ending", ["png", "ppm", "bmp", "tif", "TIFF", "PNG"])
@pytest.mark.parametrize("channels", [1, 3])
def test_8_bits_are_written_to_the_bit(tmp_path, ending, channels):
    path = tmp_path / f"deep/down/x.{ending}"
    write_image(path, image_of(RGB[..., :channels]))
    assert torch.equal(open_image(path).pixels, chw(RGB[..., :channels]))
    assert names(path.parent) == [path.name]


def test_jpeg_has_quality_95(tmp_path):
    write_image(tmp_path / "x.jpg", image_of(RGB))
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "JPEG", quality=95)
    with Image.open(tmp_path / "x.jpg") as ours, Image.open(buffer) as reference:
        assert ours.format == "JPEG"
        assert ours.quantization == reference.quantization


@pytest.mark.parametrize("ending", ["png", "tif", "ppm"])
def test_16_bit_gray_is_written_back_to_the_bit(tmp_path, ending):
    source = open_image(save(tmp_path / f"x.{ending}", GRAY16))
    write_image(tmp_path / f"y.{ending}", to_float(source.flatten(1)), like=source)
    written = open_image(tmp_path / f"y.{ending}").pixels
    assert written.dtype == torch.uint16
    assert written.int()[0].tolist() == GRAY16.tolist()


def test_16_bit_colour_with_alpha_is_written_back_to_the_bit(tmp_path):
    colour = RNG.integers(0, 65536, (4, 4, 3)).astype(np.uint16)
    alpha = torch.from_numpy(RNG.integers(0, 65536, (1, 4, 4)).astype(np.uint16))
    source = open_image(png16(tmp_path / "x.png", colour, alpha=alpha))
    write_image(tmp_path / "y.png", to_float(source.pixels.to(torch.float32) / 65535), like=source)
    assert (tmp_path / "y.png").read_bytes() == (tmp_path / "x.png").read_bytes()


def test_float_tiff_is_written_back(tmp_path):
    array = RNG.random((4, 5), np.float32)
    source = open_image(save(tmp_path / "x.tif", array))
    write_image(tmp_path / "y.tif", to_float(source.flatten(1)) * 1.5, like=source)
    written = open_image(tmp_path / "y.tif").pixels
    assert written.dtype == torch.float32
    expected = torch.from_numpy(array).mul(2).sub(1).mul(1.5).add(1).div(2).clamp(0, 1)
    assert (written[0] - expected).abs().max() < 2e-7  # float32 around 1


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_is_put_back(tmp_path, ending, channels):
    alpha = RNG.integers(0, 256, (6, 5, 1), dtype=np.uint8)
    source = open_image(save(tmp_path / "x.png", np.concatenate([RGB, alpha], 2)))
    write_image(tmp_path / f"y.{ending}", image_of(RGB[..., :channels]), like=source)
    written = open_image(tmp_path / f"y.{ending}")
    assert torch.equal(written.alpha, chw(alpha))
    if ending != "webp":
        assert torch.equal(written.pixels, chw(RGB[..., :channels]))


def test_alpha_follows_the_size_of_the_picture(tmp_path):
    source = Picture(torch.zeros(3, 4, 4, dtype=torch.uint8), torch.full((1, 4, 4), 77, dtype=torch.uint8))
    write_image(tmp_path / "x.png", torch.zeros(3, 8, 6), like=source)
    assert torch.equal(open_image(tmp_path / "x.png").alpha, torch.full((1, 8, 6), 77, dtype=torch.uint8))


def test_what_a_format_cannot_hold_falls_back_to_8_bits_without_alpha(tmp_path):
    deep = Picture(torch.zeros(1, 2, 2, dtype=torch.uint16), torch.zeros(1, 2, 2, dtype=torch.uint16))
    for name, channels in (("x.jpg", 1), ("x.bmp", 1), ("x.ppm", 3)):
        write_image(tmp_path / name, torch.zeros(channels, 2, 2), like=deep)
        written = open_image(tmp_path / name)
        assert written.pixels.dtype == torch.uint8
        assert written.alpha is None
    write_image(tmp_path / "x.tif", torch.zeros(3, 2, 2), like=Picture(torch.zeros(1, 2, 2)))
    assert open_image(tmp_path / "x.tif").pixels.dtype == torch.uint8


def test_pictures_that_cannot_be_written_are_refused(tmp_path):
    image = torch.zeros(3, 2, 2)
    image[0, 0, 0] = torch.nan
    with pytest.raises(ImageError, match=r"x.png is not written: 1 of its values are not finite"):
        write_image(tmp_path / "x.png", image)
    with pytest.raises(ImageError, match=r"x.xyz: no format goes by that ending"):
        write_image(tmp_path / "x.xyz", torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match=r"\[1 or 3, height, width\], got \[2, 4, 4\]"):
        write_image(tmp_path / "x.png", torch.zeros(2, 4, 4))
    assert names(tmp_path) == []


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = save(tmp_path / "x.png", RGB)
    before = path.read_bytes()

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_image(path, torch.zeros(3, 2, 2))
    assert path.read_bytes() == before
    assert names(tmp_path) == ["x.png"]
