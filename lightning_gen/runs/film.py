"""Pictures of a run one after the other, as a film."""

from __future__ import annotations

import io
import os
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from lightning_gen.files import write_atomically
from lightning_gen.runs.layout import FILMS, IMAGES, pictures_in
from lightning_gen.runs.rendering import thousands

SECONDS = 10.0  # of a film, at most
SLOWEST, FASTEST = 0.5, 0.08  # seconds of a picture
LAST = 2.0  # seconds that the last picture stays
MAX_WIDTH = 960
_GROUND, _INK, _HEADER = (32, 36, 44), (226, 230, 236), 26


def write_films(folder: str | os.PathLike[str]) -> list[Path]:
    """Write `films/PANEL.gif` of each panel of a run that has pictures of several steps.

    A film shows what the slider of the page does, with the step above; it lasts ten seconds at most, ends with the last
    picture for two more, and begins again. Wide pictures become 960 pixels wide.

    Args:
        folder: The run's folder.

    Raises:
        FileNotFoundError: If no panel has pictures of several steps.
        OSError: If a film cannot be written, or a picture not be read.
    """
    images = Path(folder) / IMAGES
    panels = {panel: files for panel in sorted({path.parent for path in images.rglob("step_*.png")})
              if len(files := pictures_in(panel)) > 1}  # fmt: skip
    if not panels:
        raise FileNotFoundError(
            f"{folder} has no pictures of several steps in {IMAGES}/, of which a film could be made."
        )
    return [
        _write_film(Path(folder) / FILMS / f"{panel.relative_to(images)}.gif", files) for panel, files in panels.items()
    ]


def _write_film(path: Path, files: dict[int, Path]) -> Path:
    pictures = []
    for file in files.values():
        with Image.open(file) as opened:
            pictures.append(opened.convert("RGB"))
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    if width > MAX_WIDTH:
        height, width = round(height * MAX_WIDTH / width), MAX_WIDTH
    frames = [_frame(picture, step, (width, height)) for step, picture in zip(files, pictures, strict=True)]
    seconds = max(FASTEST, min(SLOWEST, SECONDS / len(frames)))
    lasting = [round(1000 * seconds)] * (len(frames) - 1) + [round(1000 * LAST)]
    film = io.BytesIO()
    frames[0].save(film, "GIF", save_all=True, append_images=frames[1:], duration=lasting, loop=0)
    write_atomically(path, film.getvalue())
    return path


def _frame(picture: Image.Image, step: int, size: tuple[int, int]) -> Image.Image:
    """A picture under its step, in 256 colours of its own."""
    frame = Image.new("RGB", (size[0], size[1] + _HEADER), _GROUND)
    words, font = f"step {thousands(step)}".replace("\u2009", " "), ImageFont.load_default(size=14)
    ImageDraw.Draw(frame).text((8, _HEADER / 2), words, font=font, fill=_INK, anchor="lm")
    scale = min(1.0, size[0] / picture.width, size[1] / picture.height)
    if scale < 1:
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
        )
    frame.paste(picture, (0, _HEADER))
    return frame.quantize(256, dither=Image.Dither.NONE)
