"""Several pictures in one."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

GAP = 2  # pixels around every picture of a grid
MIN_CELL = 96  # pictures narrower than this are enlarged, so that a title fits above them
MIN_SQUARE = 512  # grids without titles are enlarged until they are about as wide
MIN_CAPTIONED = 144  # pictures narrower than this are enlarged, so that a caption below them has few lines
LAYOUT = "layout"  # where a grid with titles says, in its `info`, how its cells lie
LINE = 15  # pixels from one line of a caption to the next
_GROUND, _INK = (32, 36, 44), (226, 230, 236)  # quiet on light and on dark pages


def picture_grid(
    columns: Mapping[str, Iterable[Tensor]] | Sequence[tuple[str, Iterable[Tensor]]],
    captions: Mapping[tuple[int, int], str] | None = None,
) -> Image.Image:
    """Pictures in rows under a row of column titles, if any of them has words.

    Pixels are kept as they are; pictures narrower than `MIN_CELL` are enlarged by repeating each pixel a whole number
    of times. All cells are as large as the largest picture, with `GAP` pixels around them; where these lie stands in
    `info[LAYOUT]` of the grid, for whoever takes it apart.

    Args:
        columns: Title of each column, and its pictures from top to bottom: each uint8 `[1 or 3, H, W]`. Pairs allow a
            title to come twice.
        captions: What stands below pictures, by their places (row, column). With captions, pictures narrower than
            `MIN_CAPTIONED` are enlarged.

    Raises:
        ValueError: If there is nothing to show, or a picture is not uint8 `[1 or 3, H, W]`.
    """
    pairs = list(columns.items() if isinstance(columns, Mapping) else columns)
    cells = {(r, c): _pil(picture) for c, (_, column) in enumerate(pairs) for r, picture in enumerate(column)}
    titles = [title for title, _ in pairs]
    return _grid(cells, MIN_CAPTIONED if captions else MIN_CELL, titles if any(titles) else (), captions)


def square_grid(pictures: Sequence[Tensor], columns: int | None = None) -> Image.Image:
    """Pictures side by side in rows, without titles.

    Pixels are kept as they are; if all columns together are narrower than `MIN_SQUARE`, pictures are enlarged by
    repeating each pixel a whole number of times.

    Args:
        pictures: From left to right and top to bottom: each uint8 `[1 or 3, H, W]`.
        columns: Pictures in a row; None makes a square, or the narrowest grid that is wider than a square.

    Raises:
        ValueError: As `picture_grid`.
    """
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    cells = {divmod(i, columns): _pil(picture) for i, picture in enumerate(pictures)}
    return _grid(cells, math.ceil(MIN_SQUARE / max(1, columns)))


def captioned_grid(pictures: Sequence[Tensor], captions: Sequence[str], columns: int | None = None) -> Image.Image:
    """Pictures side by side in rows, each above its caption, which is broken into lines.

    Args:
        pictures: As in `square_grid`, but enlarged until each is `MIN_CAPTIONED` wide.
        captions: One each.
        columns: As in `square_grid`.

    Raises:
        ValueError: As `picture_grid`.
    """
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    cells = {divmod(i, columns): _pil(picture) for i, picture in enumerate(pictures)}
    return _grid(cells, MIN_CAPTIONED, captions={divmod(i, columns): caption for i, caption in enumerate(captions)})


def mixing_grid(
    above: Sequence[Tensor], left: Sequence[Tensor], mixed: Sequence[Sequence[Tensor]], captions: Sequence[str]
) -> Image.Image:
    """Pictures that each have something of the one above their column, and the rest of the one at the left.

    Args:
        above: S pictures, as in `picture_grid`.
        left: R pictures.
        mixed: R rows of S pictures.
        captions: What stands below the pictures at the left: what is taken from above in this row.
    """
    columns = [("", [torch.full_like(above[0], 255), *left])]
    columns += [("", [top, *column]) for top, column in zip(above, zip(*mixed, strict=True), strict=True)]
    return picture_grid(columns, {(row, 0): caption for row, caption in enumerate(captions, 1)})


def _grid(
    cells: Mapping[tuple[int, int], Image.Image],
    min_cell: int,
    titles: Sequence[str] = (),
    captions: Mapping[tuple[int, int], str] | None = None,
) -> Image.Image:
    """Pictures at their places (row, column), under the titles of the columns and above their captions, if any."""
    if not cells:
        raise ValueError("A grid needs at least one picture.")
    width, height = max(p.width for p in cells.values()), max(p.height for p in cells.values())
    scale = math.ceil(min_cell / width)
    width, height = width * scale, height * scale
    font = ImageFont.load_default(size=min(20, max(12, width // 10)))
    headings = [_broken(title, font, width) for title in titles]
    lines_above = max((heading.count("\n") + 1 for heading in headings), default=0)
    header = round((lines_above + 0.9) * font.size) if titles else GAP  # type: ignore[union-attr]
    small = ImageFont.load_default(size=12)
    lines = {place: textwrap.wrap(text, max(8, width // 6)) for place, text in (captions or {}).items()}
    footer = max(map(len, lines.values()), default=0) * LINE
    rows, columns = max(r for r, _ in cells) + 1, max(c for _, c in cells) + 1
    columns = max(columns, len(titles))
    grid = Image.new("RGB", (GAP + columns * (width + GAP), header + rows * (height + footer + GAP)), _GROUND)
    if titles:
        places = {"left": GAP, "top": header, "width": width, "height": height, "rows": rows}
        steps = {"right": width + GAP, "down": height + footer + GAP}
        grid.info[LAYOUT] = json.dumps({"titles": list(titles), **places, **steps})
    draw = ImageDraw.Draw(grid)
    for c, heading in enumerate(headings):
        place = GAP + c * (width + GAP) + width / 2, header / 2
        draw.text(place, heading, font=font, fill=_INK, anchor="mm", align="center", spacing=1)
    for (r, c), picture in cells.items():
        enlarged = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
        left, top = GAP + c * (width + GAP), header + r * (height + footer + GAP)
        grid.paste(enlarged, (left, top))
        for number, line in enumerate(lines.get((r, c), ())):
            draw.text((left + 2, top + height + number * LINE), line, font=small, fill=_INK)
    return grid


def _broken(title: str, font: Any, width: int) -> str:
    """A title in lines that are no wider than a picture, as far as its words allow."""
    lines: list[str] = []
    for word in title.split():
        if lines and font.getlength(longer := f"{lines[-1]} {word}") <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def _pil(image: Tensor) -> Image.Image:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(
            f"A picture is a uint8 tensor [1 or 3, H, W], got {image.dtype} {list(image.shape)}. "
            "Pictures in [-1, 1] become one by lightning_gen.data.images.to_uint8."
        )
    return Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy())
