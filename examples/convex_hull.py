"""What the decoder of a discrete autoencoder is given: mixtures of codebook vectors, or the vectors themselves.

Eight codes in the plane, some of them corners of their convex hull and some within it. Relaxed by the Gumbel-softmax
(Jang et al. 2016, 1611.01144) a token is a mean of all codes: anywhere in the hull, never outside, and never at a code.
The lower the temperature, the nearer it comes to one; at 1/16, where DALL-E's discrete autoencoder ends (2102.12092), a
tenth of tokens are still between codes, and given the argmax in place of them the decoder sees something else.
Straight-through, and in a VQ-VAE (van den Oord et al. 2017, 1711.00937), whose features lie anywhere, it sees codes.

    python examples/convex_hull.py
"""

from itertools import pairwise

import torch
from plot import COLORS, Chart, output_folder, save, write_table
from torch import Tensor, nn

from lightning_gen.layers.quantize import GumbelQuantizer, Quantizer, VectorQuantizer

CODEBOOK = torch.tensor(
    [[-0.8, -0.5], [-0.1, -0.9], [0.8, -0.4], [0.6, 0.7], [-0.5, 0.8], [-0.2, 0.1], [0.3, -0.3], [0.25, 0.35]]
)
TOKENS, SHOWN, SIZE = 20_000, 1500, (372, 372)
TEMPERATURES = {"4": 4.0, "1": 1.0, "1/4": 1 / 4, "1/16": 1 / 16}


def relaxed(**settings: bool) -> GumbelQuantizer:
    """With this codebook, and features that are logits already."""
    quantizer = GumbelQuantizer(len(CODEBOOK), len(CODEBOOK), code_size=2, **settings)
    nn.init.eye_(quantizer.to_logits.weight)
    quantizer.codebook.weight.data = CODEBOOK.T.clone()
    return quantizer


def nearest() -> VectorQuantizer:
    """With this codebook, and features in its plane."""
    quantizer = VectorQuantizer(2, len(CODEBOOK)).eval()
    quantizer.codebook.copy_(CODEBOOK)
    return quantizer


@torch.no_grad()
def given(quantizer: Quantizer, features: Tensor, **settings: float) -> Tensor:
    """What the decoder is given, `[N, D]`, for features `[N, C]`."""
    return quantizer(features, **settings).quantized


def hull(points: Tensor) -> Tensor:
    """The corners `[corners, 2]` of the convex hull of points `[N, 2]`, counterclockwise (Andrew's monotone chain)."""
    ordered, corners = [complex(*point) for point in sorted(points.tolist())], list[complex]()
    for half in (ordered, ordered[::-1]):
        chain: list[complex] = []
        for point in half:
            while len(chain) > 1 and ((chain[-1] - chain[-2]).conjugate() * (point - chain[-1])).imag <= 0:
                chain.pop()  # no turn to the left
            chain.append(point)
        corners += chain[:-1]
    return torch.view_as_real(torch.tensor(corners))


def outside(points: Tensor, corners: Tensor) -> Tensor:
    """How far points `[N, 2]` are beyond an edge of a convex polygon, at most; negative within: `[N]`."""
    edges = corners.roll(-1, 0) - corners
    outward = nn.functional.normalize(torch.stack([edges[:, 1], -edges[:, 0]], 1), dim=1)
    return ((points[:, None] - corners) * outward).sum(2).amax(1)


def draw(title: str, points: Tensor, behind: Tensor | None = None) -> Chart:
    """Decoder inputs within the hull, over the features that they stand for."""
    chart = Chart(title, "", "", (-1.2, 1.2), (-1.2, 1.2), legend="lower left", size=SIZE)
    corners = [place for corner in hull(CODEBOOK).tolist() if (place := chart._place(*corner))]
    chart.draw.polygon(corners, fill="#eef1f4", outline=COLORS[5], width=2)
    if behind is not None:
        chart.dots(*behind[:SHOWN].T.tolist(), "features", "#b9c1ca", radius=1.2)
    chart.dots(*CODEBOOK.T.tolist(), "codes", COLORS[1], radius=7)
    chart.dots(*points[:SHOWN].T.tolist(), "decoder inputs", COLORS[0], radius=1.5)
    return chart


def main() -> None:
    """Quantize, draw, and check the claims."""
    folder, charts, rows = output_folder("convex_hull", __doc__), list[Chart](), []
    torch.manual_seed(0)
    logits, features = 2 * torch.randn(TOKENS, len(CODEBOOK)), 0.5 * torch.randn(TOKENS, 2)
    inputs = {
        **{f"temperature {name}": given(relaxed(), logits, temperature=t) for name, t in TEMPERATURES.items()},
        "straight-through": given(relaxed(straight_through=True), logits),
        "nearest code (VQ-VAE)": given(nearest(), features),
    }
    for name, points in inputs.items():
        distances, beyond = (
            (points[:, None] - CODEBOOK).norm(dim=2).amin(1),
            outside(points, hull(CODEBOOK)).amax().item(),
        )
        mean, between = distances.mean().item(), (distances > 0.05).float().mean().item()
        print(
            f"{name}: {mean:.4f} from the nearest code, {between:.1%} farther than 0.05, {beyond:.1e} out of the hull"
        )
        rows.append((name, mean, between, beyond))
        charts.append(draw(name, points, features if "VQ" in name else None))
    save(folder / "convex_hull.png", charts, columns=3)
    header = [
        "decoder input",
        "mean distance to the nearest code",
        "share farther than 0.05",
        "farthest out of the hull",
    ]
    write_table(folder / "convex_hull.csv", header, rows)

    assert all(beyond < 1e-6 for *_, beyond in rows), "nothing should lie out of the hull"
    *mixed, straight, vector = [mean for _, mean, _, _ in rows]
    assert all(warm > 1.1 * cold for warm, cold in pairwise(mixed)), "the colder, the nearer to a code"
    assert rows[3][2] > 0.05, "at 1/16 some tokens should still be between codes"
    assert max(straight, vector) < 1e-6, "one code should be given where one is taken"
    assert outside(features, hull(CODEBOOK)).amax() > 0.5, "features may lie anywhere"


if __name__ == "__main__":
    main()
