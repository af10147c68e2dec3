"""The blind spot of PixelCNN, and what becomes of it in other networks (van den Oord et al. 2016, 1606.05328).

Which earlier pixels have a say in the distribution of one of them, by derivatives. A stack of masked convolutions never
sees a wedge to the right above, however many there are. Gated PixelCNN sees the rows above in a stack of its own, under
no mask, and has no blind spot. But this stack must be shifted down by a row only once, where the other takes it. If
every layer shifts it, a common mistake, the wedge is back, and nothing tells: no future leaks, the loss falls. Row LSTM
has the wedge by design; the Diagonal BiLSTM misses one pixel, the last in the row above, and PixelCNN++ none here.

    python examples/blind_spot.py
"""

from collections.abc import Callable

import torch
from PIL import Image, ImageColor
from plot import COLORS, Chart, output_folder, save, write_table
from torch import Tensor, nn

from lightning_gen.layers.masked import VerticalConv2d, shift_down
from lightning_gen.networks.gated_pixelcnn import GatedPixelCNNNetwork
from lightning_gen.networks.pixel_rnn import DiagonalBiLSTMNetwork, RowLSTMNetwork
from lightning_gen.networks.pixelcnn import PixelCNNNetwork
from lightning_gen.networks.pixelcnn_pp import PixelCNNPPNetwork
from lightning_gen.testing import ReceptiveField, receptive_field_report

SHAPE, ROW, COLUMN = (1, 16, 20), 9, 9  # of the picture, and the pixel
UP, RIGHT = ROW - torch.arange(SHAPE[1])[:, None], torch.arange(SHAPE[2]) - COLUMN  # of it, in rows and columns
NOTHING = torch.zeros(SHAPE[1:], dtype=torch.bool)
WEDGE = (UP > 0) & (RIGHT > UP + 2)  # u rows up it begins u + 3 columns to the right
LAST_ABOVE = (UP == 1) & (SHAPE[2] - 1 - COLUMN <= RIGHT)
SHADES = {"seen": COLORS[0], "blind spot": COLORS[1], "out of reach": "#f3cfd5", "": "#dfe3e8", "the pixel": "#20262d"}
F = 6  # features: narrow networks see as much as wide ones


class ShiftedVerticalConv2d(VerticalConv2d):
    """The mistake: each layer wins a column on each side, and loses a row."""

    def forward(self, input: Tensor) -> Tensor:
        """`[N, in, H, W]` to `[N, out, H, W]`."""
        return super().forward(shift_down(input))


def pixelcnn(layers: int) -> nn.Module:
    """Of a 7 x 7 convolution and so many of 3 x 3."""
    return PixelCNNNetwork(SHAPE, outputs=1, filters=F, layers=layers, head_filters=F)


def gated(layers: int, *, mistaken: bool = False) -> nn.Module:
    """Of the same kernels, in two stacks."""
    network = GatedPixelCNNNetwork(SHAPE, outputs=1, filters=F, layers=layers, kernel_size=3, head_filters=F)
    for layer in network.layers[1:] if mistaken else []:  # the one right shift stands for that of the first
        layer.vertical = ShiftedVerticalConv2d(F, 2 * F, 3)
    return network


# Each with its reach, beyond which it is not blind but short-sighted, and the blind spot that it should have.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, Tensor]] = {
    "PixelCNN, 2 layers": (lambda: pixelcnn(2), 5, WEDGE),
    "PixelCNN, 7 layers": (lambda: pixelcnn(7), 10, WEDGE),
    "PixelCNN, 14 layers": (lambda: pixelcnn(14), 17, WEDGE),
    "Gated PixelCNN, 2 layers": (lambda: gated(2), 5, NOTHING),
    "Gated PixelCNN, 7 layers": (lambda: gated(7), 10, NOTHING),
    "Gated, shifted in each layer": (lambda: gated(7, mistaken=True), 10, WEDGE),
    "Row LSTM": (lambda: RowLSTMNetwork(SHAPE, outputs=1, filters=F, layers=7, head_filters=F), 10, WEDGE),
    "Diagonal BiLSTM": (
        lambda: DiagonalBiLSTMNetwork(SHAPE, outputs=1, filters=F, layers=7, head_filters=F), 10, LAST_ABOVE
    ),
    "PixelCNN++": (lambda: PixelCNNPPNetwork(SHAPE, outputs=F, filters=F, num_blocks=2), 10, NOTHING),
}  # fmt: skip


def within(reach: int) -> Tensor:
    """Bool `[H, W]`: at most so many rows up and columns to a side."""
    return torch.maximum(UP, RIGHT.abs()) <= reach


def draw(title: str, field: ReceptiveField, blind: Tensor, legend: bool) -> Chart:
    """The picture, each pixel in its shade."""
    x_range, y_range = (-COLUMN - 0.5, SHAPE[2] - COLUMN - 0.5), (ROW + 0.5 - SHAPE[1], ROW + 0.5)
    chart = Chart(title, "columns to the right", "rows up", x_range, y_range, legend="lower left", size=(378, 336))
    kinds = torch.where(field.influence, 0, 2).where(field.before, 3).masked_fill(blind, 1)
    kinds[ROW, COLUMN] = 4
    shades = torch.tensor([ImageColor.getrgb(shade) for shade in SHADES.values()], dtype=torch.uint8)[kinds]
    chart.area.paste(Image.fromarray(shades.numpy()).resize(chart.inner, Image.Resampling.NEAREST))
    for edge in range(0, chart.inner[0], chart.inner[0] // SHAPE[2]):  # all cells are squares
        chart.draw.line((edge, 0, edge, chart.inner[1]), "white", 2)
        chart.draw.line((0, edge, chart.inner[0], edge), "white", 2)
    chart.entries = [(label, shade) for label, shade in SHADES.items() if label and legend]
    return chart


def main() -> None:
    """Measure, draw, and check the claims."""
    folder, charts, rows = output_folder("blind_spot", __doc__), list[Chart](), []
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, (make, reach, expected) in NETWORKS.items():
        field = receptive_field_report(make(), SHAPE, (ROW, COLUMN))
        blind = field.blind_spot & within(reach)
        seen, before = sum(field.seen_per_row), int(field.before.sum())
        print(f"{name}: {blind.sum()} in the blind spot\n{field}\n", flush=True)
        charts.append(draw(f"{name}: {seen} of {before} seen", field, blind, legend=not charts))
        counts = zip(field.seen_per_row, blind.sum(1).tolist(), strict=True)
        rows += [(name, ROW - row, *numbers) for row, numbers in enumerate(counts) if row <= ROW]

        assert not field.leaks.any(), f"{name} should not see the future"
        assert blind.equal(expected & within(reach)), f"{name} should have another blind spot"
    save(folder / "blind_spot.png", charts, columns=3)
    write_table(folder / "blind_spot.csv", ["network", "rows up", "pixels seen", "blind spot"], rows)


if __name__ == "__main__":
    main()
