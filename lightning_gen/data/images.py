"""Pictures at the edges: uint8 outside, float [-1, 1] inside, one function each way; and reading files right."""

from __future__ import annotations

import io
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import IO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageColor, ImageFile, JpegImagePlugin, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as geometry

from lightning_gen.files import write_atomically
from lightning_gen.limits import limit_of

MEGAPIXELS = "LIGHTNING_GEN_MAX_MEGAPIXELS"
"""The environment variable that says how many millions of pixels a picture may have; by default 89, as in Pillow."""

# The formats of Pillow that are read and, but for its floats, written: raster pictures that need no other program.
_FORMATS = (
    "JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF", "BMP", "DIB", "PPM", "JPEG2000", "TGA", "PCX", "QOI"
)  # fmt: skip
_LOSSY = ("JPEG", "WEBP", "AVIF")
Kernel = Literal["bicubic", "bilinear"]

# What each format can hold beside 8-bit gray and RGB.
_WITH_ALPHA = ("PNG", "TIFF", "WEBP")
_DEEP_GRAY = {torch.uint16: ("TIFF", "PPM"), torch.float32: ("TIFF",)}

# Tags of TIFF.
_WIDTH, _HEIGHT = 256, 257
_BITS_PER_SAMPLE = 258
_PHOTOMETRIC = 262  # 0: white is stored as 0

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601

_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_TURNED = {"exif", "xmp", "Raw profile type exif", "XML:com.adobe.xmp"}  # where one may stand, in Pillow's words


def to_uint8(images: Tensor) -> Tensor:
    """Quantize pictures by rounding; metrics, panels and files all use this.

    Args:
        images: Float tensor of any shape in `[-1, 1]`; values outside are clipped. uint8 stays as it is.

    Returns:
        uint8 tensor of the same shape: -1 becomes 0, +1 becomes 255.
    """
    if images.dtype == torch.uint8:
        return images
    return images.float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """The exact inverse of `to_uint8` on its 256 levels: uint8 of any shape to float32 in `[-1, 1]`.

    The floats are the same on all devices.
    """
    # A GPU divides by a number as it multiplies by its inverse, which for 111 of the levels is not the same float; by a
    # tensor it divides. In place, because new memory takes longer than the arithmetic.
    half = torch.full((), 127.5, dtype=torch.float32, device=images.device)
    return images.to(torch.float32, copy=True).div_(half).sub_(1)


def to_float(pixels: Tensor) -> Tensor:
    """Pixels as read from a file to pixels as models see them.

    Args:
        pixels: Any shape; uint8, or float32 in `[0, 1]`, as `read_image` gives them.

    Returns:
        float32 tensor of the same shape in `[-1, 1]`.
    """
    return from_uint8(pixels) if pixels.dtype == torch.uint8 else pixels.mul(2).sub(1)


def resize_image(
    pixels: Tensor, size: Sequence[int], kernel: Kernel = "bicubic", extent: tuple[float, float] | None = None
) -> Tensor:
    """Resize with antialiasing; the overshoot of the cubic is clipped.

    Args:
        pixels: `[..., H, W]`, uint8 or float32 in `[0, 1]`. (On a CPU, uint8 is about ten times as fast, and most so
            with the channels last in memory, as `read_image` gives them.)
        size: (height, width) wanted.
        kernel: Of the interpolation.
        extent: How many rows and columns of `[..., C, H, W]` become `size`, where the last ones stand for a part only,
            as in what `read_reduced` gives; above H - 1 and W - 1.

    Returns:
        `[..., height, width]` of the same type and range.
    """
    shape = (pixels.shape[-2], pixels.shape[-1])
    extent = extent or shape
    if extent == shape == tuple(size):
        return pixels
    if pixels.ndim > 2 and pixels.shape[-3] > 1 and pixels.stride(-3) == 0:  # gray as RGB: all channels are one
        one = resize_image(pixels[..., :1, :, :], size, kernel, extent)
        return one.expand(*one.shape[:-3], pixels.shape[-3], -1, -1)
    if extent == shape:
        resized: Tensor = geometry.resize(
            pixels, list(size), interpolation=geometry.InterpolationMode(kernel), antialias=True
        )
    else:  # the functions above this one take a size or a scale, not both
        aten = {"bicubic": torch.ops.aten._upsample_bicubic2d_aa, "bilinear": torch.ops.aten._upsample_bilinear2d_aa}
        batch, scales = pixels.reshape(-1, *pixels.shape[-3:]), (size[0] / extent[0], size[1] / extent[1])
        resized = aten[kernel](batch, list(size), False, *scales).reshape(*pixels.shape[:-2], *size)
    return resized if resized.dtype == torch.uint8 else resized.clamp(0, 1)


def fit_image(pixels: Tensor, size: tuple[int, int], kernel: Kernel = "bicubic") -> Tensor:
    """`resize_image` of the largest part, in the center, that has the aspect ratio wanted."""
    height, width = pixels.shape[-2:]
    scale = min(height / size[0], width / size[1])
    part: Tensor = geometry.center_crop(pixels, [max(1, round(scale * side)) for side in size])
    return resize_image(part, size, kernel)


def height_and_width(name: str, value: int | Sequence[int], at_least: int = 1) -> tuple[int, int]:
    """(height, width) from one number, for a square, or from a pair; else, or if one is too small, a `ValueError`."""
    size = (value, value) if isinstance(value, int) else tuple(value)
    if len(size) != 2 or min(size) < at_least:
        raise ValueError(f"{name} must be one number or (height, width), each at least {at_least}, got {value}.")
    return size[0], size[1]


def average_down(images: Tensor, height: int) -> Tensor:
    """Each pixel the mean of a square of pixels.

    Args:
        images: Floats `[..., C, H, W]`.
        height: Wanted; H must be a multiple of it, and W as many pixels wide a multiple of the same square.

    Raises:
        ValueError: If they are not.
    """
    square, rest = divmod(images.shape[-2], height)
    if square == 1 and not rest:
        return images
    if rest or not square or images.shape[-1] % square:
        raise ValueError(
            f"Pictures of {images.shape[-2]} x {images.shape[-1]} (height x width) cannot be averaged down to {height} "
            "rows in whole pixels."
        )
    return F.avg_pool2d(images, square)


class ImageError(ValueError):
    """A picture file that cannot be used. The message names the file and says how to mend it."""


@dataclass(frozen=True)
class Picture:
    """A picture as its file holds it: upright, palettes and CMYK resolved, but neither flattened nor quantized.

    Attributes:
        pixels: `[1, H, W]` gray or `[3, H, W]` RGB in the file's own precision: uint8; uint16; or float32 in `[0, 1]`.
        alpha: `[1, H, W]` opacity of the same type, or None for an opaque picture.
    """

    pixels: Tensor
    alpha: Tensor | None = None

    def flatten(self, channels: int = 3, background: str = "white") -> Tensor:
        """The picture with the colour channels asked for, on a background where it is transparent.

        Gray becomes RGB by repetition, RGB becomes gray by luma (ITU-R BT.601). Alpha is straight (not premultiplied)
        and blends the stored values, without gamma, as browsers do.

        Args:
            channels: 1 or 3.
            background: Colour behind transparent pixels: any name or `#rrggbb` that Pillow knows.

        Returns:
            `[channels, H, W]`: uint8 for a picture of 8 bits, rounded once; float32 in `[0, 1]` for deeper ones.

        Raises:
            ValueError: If `channels` or `background` is not one of those.
        """
        check_channels(channels)
        eight_bits = self.pixels.dtype == torch.uint8
        pixels = self.pixels if eight_bits else _unit(self.pixels)
        if self.alpha is not None or len(pixels) > channels:
            pixels = _mix(_unit(pixels), channels)
            if self.alpha is not None:
                paper = _mix(torch.tensor(background_color(background)).view(3, 1, 1), channels)
                # lerp, because it gives back both ends exactly.
                pixels = torch.lerp(paper, pixels, _unit(self.alpha))
            if eight_bits:
                pixels = pixels.mul(255).round().to(torch.uint8)
        return pixels if len(pixels) == channels else pixels.expand(channels, -1, -1)


def check_channels(channels: int) -> int:
    """`channels` itself, if pictures can be read with that many; a `ValueError` if it is neither 1 nor 3."""
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (gray) or 3 (RGB), got {channels}.")
    return channels


def background_color(name: str) -> tuple[float, float, float]:
    """Red, green and blue in `[0, 1]` of a colour by any name that Pillow knows, else a `ValueError`."""
    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except ValueError:
        raise ValueError(f"background must be a colour such as white or '#ffcc00', got {name!r}.") from None
    return red / 255, green / 255, blue / 255


@cache
def image_endings() -> dict[str, str]:
    """The endings of file names, in lower case, by which a picture is known, and Pillow's names of their formats."""
    Image.init()
    known = Image.registered_extensions().items()
    return {ending: name for ending, name in known if name in _FORMATS and name in Image.OPEN}


@cache
def readable_formats() -> list[str]:
    """Pillow's names of the formats that are read."""
    return sorted(set(image_endings().values()), key=_FORMATS.index)


def name_of(source: str | Path | bytes, name: str | None = None) -> str:
    """What messages call a picture: by its name, else its path, else its size."""
    return name or (f"A picture of {len(source)} bytes" if isinstance(source, bytes) else str(source))


def image_size(source: str | Path | bytes, *, name: str | None = None) -> tuple[int, int]:
    """(height, width) of a picture as `read_image` gives it, from the header of its file alone.

    A PNG whose EXIF orientation follows its pixels is taken as upright.

    Args:
        source: A file, or the bytes of one.
        name: What messages call the picture, if not by its path.

    Raises:
        ImageError: If it is no picture.
    """
    file = source if isinstance(source, bytes) else Path(source)
    with _opened(file, name or ("A picture" if isinstance(file, bytes) else str(file))) as (image, _):
        return _upright_size(image)


def read_image(
    source: str | Path | bytes, channels: int = 3, background: str = "white", *, name: str | None = None
) -> Tensor:
    """Read a picture: `open_image`, then `Picture.flatten`.

    Args:
        source: A file, or the bytes of one.
        channels: 1 (gray) or 3 (RGB).
        background: Colour behind transparent pixels.
        name: What messages call the picture, if not by its path.

    Returns:
        `[channels, H, W]`: uint8 for files of 8 bits, float32 in `[0, 1]` for 16-bit and float files. Geometry can work
        on either; `to_float` takes both to `[-1, 1]`.

    Raises:
        ImageError: As `open_image`.
    """
    return open_image(source, name=name).flatten(channels, background)


def read_reduced(
    source: str | Path | bytes,
    wanted: Callable[[int, int], tuple[int, int] | None],
    channels: int = 3,
    background: str = "white",
    *,
    name: str | None = None,
) -> tuple[Tensor, tuple[int, int], int]:
    """`read_image` for a picture that is then made smaller, without decoding more of a JPEG than that needs.

    A JPEG in gray or RGB is decoded at the smallest of the scales 1, 1/2, 1/4 and 1/8 at which it still has at least
    twice the rows and columns wanted, its sides rounded up; one that EXIF turns, at such a scale that divides its
    sides. The decoder then averages over squares of pixels, in the frequencies of the file, and the resize that follows
    does the rest. All other pictures are read as they are.

    Args:
        source: A file, or the bytes of one.
        wanted: Gives the (height, width) that the picture will have, from its true (height, width), upright. None
            stands for all pixels.
        channels: 1 (gray) or 3 (RGB).
        background: Colour behind transparent pixels.
        name: What messages call the picture, if not by its path.

    Returns:
        The pixels, as `read_image` gives them; the true (height, width), from which the caller knows the size wanted;
        and 1, 2, 4 or 8: the side of the squares for which pixels stand. So `resize_image` is told that (height / side,
        width / side) is their `extent`.

    Raises:
        ImageError: As `open_image`.
    """
    picture, size, side = _read(source, name, wanted)
    return picture.flatten(channels, background), size, side


def open_image(source: str | Path | bytes, *, name: str | None = None) -> Picture:
    """Read a picture in its own precision, turned upright by its EXIF orientation.

    * Gray, RGB and alpha of 8 bits, palettes (with transparency) and CMYK: as Pillow reads them. Colour profiles are
      not applied. Of several frames or pages the first is read.
    * PNG of 16 bits, in gray or colour, with or without alpha: exact. (Pillow by itself gives 8 bits of colour.)
    * TIFF of 16 bits or PGM of more than 8, in gray: exact, 65535 is white. Integers of 32 bits are taken for 16-bit
      values, and must lie in that range.
    * TIFF of 32-bit floats, in gray: as it is; must be finite and within `[0, 1]`.
    * JPEG 2000 and AVIF of more than 8 bits in colour: the 8 bits that Pillow gives.
    * Everything else of more than 8 bits per channel is refused rather than silently degraded.

    torchvision decodes, where it gives the same pixels as Pillow in less time.

    Args:
        source: A file, or the bytes of one.
        name: What messages call the picture, if not by its path.

    Raises:
        ImageError: If the picture cannot be read in full, its values have no faithful meaning here, or it has more
            pixels than `$LIGHTNING_GEN_MAX_MEGAPIXELS` millions.
    """
    return _read(source, name)[0]


def _read(
    source: str | Path | bytes,
    name: str | None,
    wanted: Callable[[int, int], tuple[int, int] | None] = lambda height, width: None,
) -> tuple[Picture, tuple[int, int], int]:
    """A picture, reduced as `read_reduced` says, its true (height, width) and the side of the squares."""
    name = name_of(source, name)
    if isinstance(source, str):
        source = Path(source)
    with _opened(source, name) as (image, file):
        size, side = None, 1
        if isinstance(image, JpegImagePlugin.JpegImageFile) and image.mode in ("L", "RGB"):
            size = _upright_size(image)
            if least := wanted(*size):
                side = _reduce(image, least)
        picture = _decoded(image, file, name)
    return picture, size or (picture.pixels.shape[-2], picture.pixels.shape[-1]), side


@contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[tuple[ImageFile.ImageFile, IO[bytes]]]:
    """A picture whose header has been read, and whose size is within the limit, else an `ImageError`; and its file."""
    limit = limit_of(MEGAPIXELS, 89) * 1e6
    if Image.MAX_IMAGE_PIXELS is not None and limit > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = int(limit)  # of Pillow, which refuses twice as many
    too_large = f"than the {limit / 1e6:g} million that are read. If you trust the file, set {MEGAPIXELS} to more."
    try:
        if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
            raise ImageError(f"{name} is not a file.")  # to open a named pipe would be to wait for the other end
        # An open file, not a path: given a path, Pillow maps raw TIFF into memory with height and width confused where
        # the picture lies on its side.
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            image = Image.open(file, formats=readable_formats())
            if image.width * image.height > limit:
                raise ImageError(f"{name} has {image.width} x {image.height} pixels, more {too_large}")
            yield image, file
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has more pixels {too_large}") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, RuntimeError ...
        fault = "it does not begin like one" if isinstance(error, UnidentifiedImageError) else error
        raise ImageError(f"{name} cannot be read as a picture: {fault} (cut short, or not a picture?)") from error


def _upright_size(image: ImageFile.ImageFile) -> tuple[int, int]:
    """(height, width) of an opened picture when it is upright."""
    width, height = image.size
    if image.format == "TIFF":  # whose size Pillow gives upright, in some versions
        width, height = (image.tag_v2[tag] for tag in (_WIDTH, _HEIGHT))  # type: ignore[attr-defined]
    return (width, height) if _orientation(image) in _SIDEWAYS else (height, width)


def _orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation that has been read so far, 1 for upright."""
    # Pillow would decode a PNG or a WebP to find none.
    if image.format in ("JPEG", "PNG", "WEBP") and _TURNED.isdisjoint(image.info):
        return 1
    return int(image.getexif().get(ExifTags.Base.Orientation, 1))


def _reduce(image: ImageFile.ImageFile, least: tuple[int, int]) -> int:
    """Have a JPEG decoded at the smallest scale that has at least twice the (height, width) of `least`, upright.

    Returns:
        The scale's denominator.
    """
    orientation = _orientation(image)
    rows, columns = least[::-1] if orientation in _SIDEWAYS else least
    for side in (8, 4, 2):
        if orientation != 1 and (image.height % side or image.width % side):
            continue  # the pixels that stand for less would not be the last ones when the picture is upright
        if ceil(image.height / side) >= 2 * rows and ceil(image.width / side) >= 2 * columns:
            image.draft(None, (image.width // side, image.height // side))  # which takes the next larger size it can
            return side
    return 1


def _decoded(image: ImageFile.ImageFile, file: IO[bytes], name: str) -> Picture:
    """The picture in an opened file."""
    alpha = None
    pixels = _by_torchvision(image, file)
    if pixels is None:
        bits = _bits(image)
        image.load()
        pixels, alpha = _pixels(image, file, name, bits)
    # After `load`, because Pillow turns TIFF files by itself and removes the mark.
    orientation = _orientation(image)
    return Picture(_upright(pixels, orientation), None if alpha is None else _upright(alpha, orientation))


def _by_torchvision(image: ImageFile.ImageFile, file: IO[bytes]) -> Tensor | None:
    """All pixels of an opened picture by the faster decoder, or None if it is Pillow that must read it.

    So must all but opaque gray and RGB of 8 bits, and all that torchvision refuses: Pillow may be more lenient, and
    says better what is wrong.
    """
    decode = _torchvision_decoder(str(image.format))
    if decode is None or image.mode not in ("L", "RGB") or getattr(image, "is_animated", False):
        return None
    if image.format == "JPEG" and image.decoderconfig:  # reduced, which torchvision cannot
        return None
    place = file.tell()
    file.seek(0)
    data = bytearray(file.read())
    file.seek(place)
    try:
        pixels = decode(torch.frombuffer(data, dtype=torch.uint8))
    except RuntimeError:
        return None
    return pixels if pixels.shape == (len(image.mode), image.height, image.width) else None


@cache
def _torchvision_decoder(format_name: str) -> Callable[[Tensor], Tensor] | None:
    """The decoder that torchvision has for a format: uint8 `[bytes]` to uint8 `[C, H, W]`.

    None where this build has none, or one that gives a sample other pixels than Pillow does. (torchvision announces
    that it will give up its decoders; the operators are called, because the functions warn of that.)
    """
    try:
        decode: Callable[[Tensor], Tensor] = {
            "JPEG": lambda data: torch.ops.image.decode_jpeg(data, 0, False),
            "WEBP": lambda data: torch.ops.image.decode_webp(data, 0),
        }[format_name]
        # Odd sides and coarse waves of colour, so that rounding, chroma and edges count.
        rows, columns = np.ogrid[:45, :51]
        waves = np.stack([np.sin(rows * k / 9 + columns / (5 + k)) for k in range(3)], -1)
        sample = Image.fromarray((waves * 127 + 128).astype(np.uint8))
        buffer = io.BytesIO()
        sample.save(buffer, format_name)
        with Image.open(buffer) as expected:
            pixels = decode(torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8))
            return decode if torch.equal(pixels, _channels(expected)) else None
    except (KeyError, AttributeError, RuntimeError, OSError):
        return None


def write_image(path: str | Path, image: Tensor, *, like: Picture | None = None) -> None:
    """Write a picture in the format of its file ending, whole or not at all.

    The file appears under its name only when it is complete; folders are made as needed. JPEG, WebP and AVIF are
    written with quality 95, GIF in 256 colours, all other formats without loss.

    Args:
        path: The file; replaced if it exists.
        image: Float `[C, H, W]` in `[-1, 1]`, 1 or 3 channels; values outside are clipped.
        like: The picture whose precision and alpha channel the file takes over, as far as its format can hold them:
            16 bits go to PNG, and in gray to TIFF and PPM; floats (in `[0, 1]`) go to TIFF in gray; alpha goes to PNG,
            WebP and 8-bit TIFF, resized where the sizes differ. Else, and with None, the file has 8 bits.

    Raises:
        ImageError: If the ending is not one of `image_endings`, or the picture is not finite.
        ValueError: If the tensor is not `[1 or 3, H, W]`.
    """
    path = Path(path)
    writable = {ending: name for ending, name in image_endings().items() if name in Image.SAVE and ending != ".pfm"}
    format_name = writable.get(path.suffix.lower())
    if format_name is None:
        raise ImageError(
            f"{path}: no format goes by that ending. Use .png, .jpg, .webp, .tif or another that Pillow writes."
        )
    if image.ndim != 3 or len(image) not in (1, 3):
        raise ValueError(f"An image to write must be [1 or 3, height, width], got {list(image.shape)}.")
    image = image.detach().float().cpu()
    if bad := int((~image.isfinite()).sum()):
        raise ImageError(f"{path} is not written: {bad} of its values are not finite.")

    alpha = like.alpha if like else None
    if alpha is not None:  # as one more channel in [-1, 1]
        alpha = to_float(resize_image(_unit(alpha), image.shape[-2:]))
    data = _encode(image, alpha, like.pixels.dtype if like else torch.uint8, format_name)

    # A picture can be made again, and there may be thousands to write.
    write_atomically(path, data, sync=False)


def _unit(pixels: Tensor) -> Tensor:
    """uint8, uint16 or float pixels as float32 in `[0, 1]`."""
    scale = {torch.uint8: 255, torch.uint16: 65535}.get(pixels.dtype, 1)
    return pixels.to(torch.float32).div(scale)


def _mix(colors: Tensor, channels: int) -> Tensor:
    """Float RGB to luma if `channels` is 1; anything else unchanged. The channel axis comes first."""
    if len(colors) <= channels:
        return colors
    return torch.tensordot(torch.tensor([_LUMA]), colors, dims=1).clamp(0, 1)


def _upright(pixels: Tensor, orientation: int) -> Tensor:
    """Undo an EXIF orientation, 1 to 8; other numbers mean nothing."""
    if orientation in _SIDEWAYS:
        pixels = pixels.transpose(-1, -2)
    flips = [axis for axis, turned in ((-1, (2, 3, 6, 7)), (-2, (3, 4, 7, 8))) if orientation in turned]
    return pixels.flip(flips) if flips else pixels


def _bits(image: ImageFile.ImageFile) -> int:
    """Bits per channel in an opened file that is not yet loaded; Pillow's colour modes have 8 whatever the file has."""
    raw = image.tile[0][3] if image.tile else None  # how the decoder is to understand the bytes
    if image.format == "TIFF":
        return int(max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))))  # type: ignore[attr-defined]
    if image.format == "PNG":
        return 16 if "16" in str(raw) else 8
    if image.format == "PPM" and isinstance(raw, tuple):
        return int(raw[1]).bit_length()  # (mode, largest value)
    return 8


def _pixels(image: ImageFile.ImageFile, file: IO[bytes], name: str, bits: int) -> tuple[Tensor, Tensor | None]:
    """Colour and alpha of a loaded Pillow image."""
    if image.format == "PNG" and bits == 16:
        return _png16(image, file)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_gray(image, name, bits), None
    if bits > 8:
        raise ImageError(
            f"{name} holds {bits} bits per channel, of which only 8 would be read. "
            "Convert it to 8 bits, to a 16-bit PNG, or to 16-bit gray."
        )
    gray = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        channels = _channels(image, "LA" if gray else "RGBA")
        return channels[:-1], channels[-1:]
    return _channels(image, "L" if gray else "RGB"), None


def _channels(image: Image.Image, mode: str | None = None) -> Tensor:
    """A Pillow image, of the mode wanted, as `[C, H, W]`: a view with the channels last in memory."""
    # `convert` would copy even what needs no conversion.
    array = np.array(image if mode in (None, image.mode) else image.convert(mode))
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return torch.from_numpy(array.reshape(*array.shape[:2], -1).transpose(2, 0, 1))


def _png16(image: ImageFile.ImageFile, file: IO[bytes]) -> tuple[Tensor, Tensor | None]:
    """Colour and alpha of a 16-bit PNG that Pillow has loaded: its gray in full, but the high bytes alone of colour."""
    values = np.array(image).astype(np.int32)
    file.seek(0)
    with Image.open(file) as again:
        *place, order = again.tile[0]
        if order == "I;16B":
            values = values[..., None]
        elif order == "LA;16B":  # told that it is RGBA, Pillow gives all four bytes
            again.tile = [(*place, "RGBA")]
            values = np.array(again).astype(np.int32).reshape(*values.shape[:2], 2, 2) @ np.array([256, 1])
        else:  # told that the low byte comes first, Pillow takes it for the high one
            again.tile = [(*place, str(order).replace("16B", "16L"))]
            values = values * 256 + np.array(again)

    channels = torch.from_numpy(values.astype(np.uint16)).permute(2, 0, 1)
    if len(channels) in (2, 4):
        return channels[:-1], channels[-1:]
    clear = image.info.get("transparency")  # the one gray or colour that stands for transparent
    if clear is None:
        return channels, None
    opaque = (channels.int() != torch.tensor(clear).view(-1, 1, 1)).any(0, keepdim=True)
    return channels, opaque.int().mul(65535).to(torch.uint16)


def _deep_gray(image: ImageFile.ImageFile, name: str, bits: int) -> Tensor:
    """16-bit or float gray, refused where its scale is not the usual one."""
    if image.format == "TIFF" and (bits not in (16, 32) or image.tag_v2.get(_PHOTOMETRIC) == 0):  # type: ignore[attr-defined]
        raise ImageError(
            f"{name} holds gray of {bits} bits with another scale than 16-bit gray has. "
            "Convert it to 16 bits, with 0 as black and 65535 as white."
        )
    pixels = _channels(image)
    if floats := pixels.is_floating_point():
        if bad := int((~pixels.isfinite()).sum()):
            raise ImageError(f"{name} holds {bad} pixels that are not finite. Give them values in [0, 1].")
    else:
        pixels = pixels.to(torch.int32)
    low, high = pixels.min().item(), pixels.max().item()
    if low < 0 or high > (1 if floats else 65535):
        raise ImageError(
            f"{name} holds values from {low:g} to {high:g}; expected {'floats in [0, 1]' if floats else '0 to 65535'}. "
            "Rescale all files alike."
        )
    return pixels if floats else pixels.to(torch.uint16)


def _encode(image: Tensor, alpha: Tensor | None, depth: torch.dtype, format_name: str) -> bytes:
    """The bytes of a file. Colour and alpha are in `[-1, 1]`; `depth` is what is wanted if the format can hold it."""
    deep_gray = len(image) == 1 and alpha is None and format_name in _DEEP_GRAY.get(depth, ())
    if alpha is not None and format_name in _WITH_ALPHA:
        image = torch.cat([image, alpha])
    if depth == torch.uint16 and format_name == "PNG":
        return _encode_png16(_to_uint16(image))
    if deep_gray:
        array = _to_uint16(image[0]) if depth == torch.uint16 else image[0].add(1).div(2).clamp(0, 1).numpy()
    else:
        array = to_uint8(image).permute(1, 2, 0).squeeze(-1).numpy()
    buffer = io.BytesIO()
    file = Image.fromarray(array)
    if format_name == "QOI" and len(image) == 1:  # which has colour only
        file = file.convert("RGB")
    file.save(buffer, format_name, **({"quality": 95} if format_name in _LOSSY else {}))
    return buffer.getvalue()


def _to_uint16(image: Tensor) -> NDArray[np.uint16]:
    """`to_uint8`, for 65536 levels."""
    return image.add(1).mul(32767.5).round().clamp(0, 65535).numpy().astype(np.uint16)


def _encode_png16(channels: NDArray[np.uint16]) -> bytes:
    """PNG of `[C, H, W]` uint16 with 1 to 4 channels; Pillow writes 16 bits in gray only."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    count, height, width = channels.shape
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[count]
    rows = channels.transpose(1, 2, 0).astype(">u2").reshape(height, -1).view(np.uint8)
    unfiltered = np.pad(rows, ((0, 0), (1, 0)))  # each row begins with its filter, 0 for none
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)),
            chunk(b"IDAT", zlib.compress(unfiltered.tobytes())),
            chunk(b"IEND", b""),
        ]
    )
