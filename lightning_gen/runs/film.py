"""Pictures of a run one after the other, as a film."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageDraw, ImageFont

from lightning_gen.files import write_atomically
from lightning_gen.runs.layout import FILMS, IMAGES, pictures_in
from lightning_gen.runs.rendering import thousands

Format = Literal["gif", "mp4"]
SECONDS = 10.0  # of a film, at most
SLOWEST, FASTEST = 0.5, 0.08  # seconds of a picture
LAST = 2.0  # seconds that the last picture stays
RATE = 25  # frames per second of an MP4
MAX_WIDTH = 960
_GROUND, _INK, _HEADER = (32, 36, 44), (226, 230, 236), 26


def write_films(folder: str | os.PathLike[str], form: Format = "gif") -> list[Path]:
    """Write `films/PANEL.gif` of each panel of a run that has pictures of several steps.

    A film shows what the slider of the page does, with the step above; it lasts ten seconds at most, ends with the last
    picture for two more, and, as a GIF, begins again. Wide pictures become 960 pixels wide.

    Args:
        folder: The run's folder.
        form: "gif"; or "mp4", which needs the library PyAV (`pip install av`).

    Raises:
        FileNotFoundError: If no panel has pictures of several steps.
        ModuleNotFoundError: If an MP4 is asked for and there is no PyAV.
        OSError: If a film cannot be written, or a picture not be read.
    """
    images = Path(folder) / IMAGES
    panels = {panel: files for panel in sorted({path.parent for path in images.rglob("step_*.png")})
              if len(files := pictures_in(panel)) > 1}  # fmt: skip
    if not panels:
        raise FileNotFoundError(
            f"{folder} has no pictures of several steps in {IMAGES}/, of which a film could be made."
        )
    video = _video_library() if form == "mp4" else None
    written = []
    for panel, files in panels.items():
        frames, lasting = _frames(files)
        path = Path(folder) / FILMS / f"{panel.relative_to(images)}.{form}"
        write_atomically(path, _gif(frames, lasting) if video is None else _mp4(frames, lasting, video))
        written.append(path)
    return written


def _video_library() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError:
        raise ModuleNotFoundError(
            "A film as MP4 needs the library PyAV: pip install av. Without it, --film gif writes a GIF."
        ) from None


def _frames(files: dict[int, Path]) -> tuple[list[Image.Image], list[int]]:
    """The pictures under their steps, all of one size, and how many milliseconds each is shown."""
    pictures = []
    for file in files.values():
        with Image.open(file) as opened:
            pictures.append(opened.convert("RGB"))
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    if width > MAX_WIDTH:
        height, width = round(height * MAX_WIDTH / width), MAX_WIDTH
    frames = [_frame(picture, step, (width, height)) for step, picture in zip(files, pictures, strict=True)]
    seconds = max(FASTEST, min(SLOWEST, SECONDS / len(frames)))
    return frames, [round(1000 * seconds)] * (len(frames) - 1) + [round(1000 * LAST)]


def _gif(frames: Sequence[Image.Image], lasting: Sequence[int]) -> bytes:
    """Each frame in 256 colours of its own."""
    few = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames]
    film = io.BytesIO()
    few[0].save(film, "GIF", save_all=True, append_images=few[1:], duration=list(lasting), loop=0)
    return film.getvalue()


def _mp4(frames: Sequence[Image.Image], lasting: Sequence[int], av: Any) -> bytes:
    """H.264 as all browsers play it, whose width and height must be even."""
    width, height = (side + side % 2 for side in frames[0].size)
    film = io.BytesIO()
    with av.open(film, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame, milliseconds in zip(frames, lasting, strict=True):
            even = frame.crop((0, 0, width, height))
            for _ in range(round(RATE * milliseconds / 1000)):
                container.mux(stream.encode(av.VideoFrame.from_image(even)))
        container.mux(stream.encode())  # what it has held back
    return film.getvalue()


def _frame(picture: Image.Image, step: int, size: tuple[int, int]) -> Image.Image:
    """A picture under its step."""
    frame = Image.new("RGB", (size[0], size[1] + _HEADER), _GROUND)
    words, font = f"step {thousands(step)}".replace("\u2009", " "), ImageFont.load_default(size=14)
    ImageDraw.Draw(frame).text((8, _HEADER / 2), words, font=font, fill=_INK, anchor="lm")
    scale = min(1.0, size[0] / picture.width, size[1] / picture.height)
    if scale < 1:
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
        )
    frame.paste(picture, (0, _HEADER))
    return frame
