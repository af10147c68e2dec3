"""Orders in which LMConv generates pixels, and the masks that follow from them (Jain, Abbeel and Pathak 2020).

Left in each panel is the order: pale pixels come first, the circle marks the first of all, the square the last, and a
gray line is a step that is not to a neighbour. Right is the 3 x 3 kernel at every pixel: black the pixel itself, blue
the neighbours that it sees, since they come before it. Whatever the order, of two neighbours one sees the other. If the
hole in the middle is to be completed, it sees of the known pixels beside it the green ones and not the red ones: some,
in an order that knows nothing of the hole, and all, if the hole comes last.

    python examples/generation_orders.py
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from PIL import Image, ImageColor, ImageDraw, ImageFont
from plot import COLORS, output_folder, write_table
from torch import Tensor
from torchvision.utils import make_grid

from lightning_gen.layers import orders

SIZE, CELL = (518, 264), 54  # of a panel, and of a pixel, which is drawn twice as large and reduced
PALE, DARK = torch.tensor([255, 244, 204]), torch.tensor([118, 156, 214])  # of the first and the last pixel
# Taps outside the picture, not seen, seen, and the last two if from the hole to the known; then the pixel itself.
TAPS = ["#ffffff", "#e3e7ec", COLORS[0], "#f2a3ad", COLORS[2], "#20262d"]


def known(height: int, width: int) -> Tensor:
    """The mask of a picture with a hole in its middle: bool `[H, W]`, False in the hole."""
    mask = torch.ones(height, width, dtype=torch.bool)
    mask[height // 4 : height - height // 4, width // 4 : width - width // 4] = False
    return mask


def s_curve_hole_last(height: int, width: int) -> Tensor:
    """As `LMConv` completes: the S-curve through the known pixels, and then that through the hole."""
    return orders.hole_last(orders.s_curve_order(height, width), known(height, width))


ORDERS = {
    "Raster": (orders.raster_order, 8, 8),
    "S-curve": (orders.s_curve_order, 8, 8),
    "Hilbert": (orders.hilbert_order, 8, 8),
    "Generalised Hilbert": (orders.generalized_hilbert_order, 6, 9),
    "Random": (orders.random_order, 8, 8),
    "S-curve, hole last": (s_curve_hole_last, 8, 8),
}


def kinds(order: Tensor, height: int, width: int) -> Tensor:
    """What the 3 x 3 taps at each pixel are, int64 `[9, H * W]`: indices into `TAPS`."""
    under = F.unfold(F.pad(known(height, width)[None, None].double(), (1, 1, 1, 1), value=-1), 3)[0]
    across = (under == 1) & ~known(height, width).flatten()
    kind = 1 + orders.local_masks(order, height, width, 3, mask_type="A") + 2 * across
    kind[4] = 5
    return kind.masked_fill(under == -1, 0)


def jumps(order: Tensor, width: int) -> Tensor:
    """Bool `[H * W - 1]`: which steps are not up, down, left or right."""
    return torch.stack([order // width, order % width]).diff().abs().sum(0) != 1


def count(order: Tensor, height: int, width: int) -> tuple[int, int, int, int]:
    """Jumps; how often a pixel sees one beside it; how often one in the hole a known one; how many there are to see."""
    _, _, seen, missed, given, _ = kinds(order, height, width).flatten().bincount(minlength=6).tolist()
    return int(jumps(order, width).sum()), seen + given, given, missed + given


def panel(title: str, order: Tensor, height: int, width: int) -> Image.Image:
    """An order and its masks."""
    time = order.argsort().view(height, width, 1) / (len(order) - 1)
    shades = (PALE + time * (DARK - PALE)).byte().repeat_interleave(CELL, 0).repeat_interleave(CELL, 1)
    taps = torch.tensor([ImageColor.getrgb(color) for color in TAPS], dtype=torch.uint8)[kinds(order, height, width)]
    stencils = taps.permute(1, 2, 0).view(-1, 3, 3, 3).repeat_interleave(16, 2).repeat_interleave(16, 3)
    kernels = make_grid(stencils, width, padding=6, pad_value=255).permute(1, 2, 0)
    picture = Image.new("RGB", (2 * SIZE[0], 2 * SIZE[1]), "white")
    picture.paste(Image.fromarray(shades.numpy()), (32, 76))
    picture.paste(Image.fromarray(kernels.numpy()), (54 + width * CELL, 73))
    draw = ImageDraw.Draw(picture)
    draw.text((32, 24), title, "black", ImageFont.load_default(28))
    places = [(32 + (pixel % width + 0.5) * CELL, 76 + (pixel // width + 0.5) * CELL) for pixel in order.tolist()]
    for (start, end), jump in zip(pairwise(places), jumps(order, width).tolist(), strict=True):
        draw.line((*start, *end), "#9aa5b1" if jump else TAPS[5], 2 if jump else 4)
    draw.circle(places[0], 10, COLORS[1])
    draw.rectangle([side + shift for shift in (-9, 9) for side in places[-1]], COLORS[1])
    return picture.resize(SIZE, Image.Resampling.LANCZOS)


def main() -> None:
    """Count, draw, and check the claims."""
    folder, rows = output_folder("generation_orders", __doc__), []
    picture = Image.new("RGB", (2 * SIZE[0], 3 * SIZE[1]))
    for i, (name, (curve, height, width)) in enumerate(ORDERS.items()):
        order = curve(height, width)
        num_jumps, sights, given, beside = count(order, height, width)
        print(f"{name:20} {num_jumps:2} jumps, {sights} sights, from the hole {given} of {beside}")
        title = f"{name}: the hole sees {given} of {beside}"
        picture.paste(panel(title, order, height, width), (i % 2 * SIZE[0], i // 2 * SIZE[1]))
        seen = orders.local_masks(order, height, width, 3, mask_type="A").sum(0)
        rows += [(name, step, *divmod(pixel, width), int(seen[pixel])) for step, pixel in enumerate(order.tolist())]

        assert order.sort().values.equal(torch.arange(height * width)), f"{name} should visit each pixel once"
        assert num_jumps == 0 or name in ("Raster", "Random", "S-curve, hole last"), f"{name} should go to neighbours"
        pairs = height * (width - 1) + (height - 1) * width + 2 * (height - 1) * (width - 1)
        assert sights == pairs, f"{name}: of two neighbours one should see the other"
        assert (given == beside) == ("hole last" in name), f"{name}: only the hole last sees all"
    picture.save(folder / "generation_orders.png")
    write_table(folder / "generation_orders.csv", ["order", "step", "row", "column", "neighbours seen"], rows)


if __name__ == "__main__":
    main()
