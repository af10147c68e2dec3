"""What styles and noise do in a StyleGAN (1812.04948, figures 3 and 4, section 3.2 and 3.1).

The small model of `truncation_trick.py` is trained. Pictures take styles of others in their coarse, middle or fine
layers; the same styles are drawn with a hundred different noises; and after every layer the mean and the deviation of
each channel are measured. Three claims: fine styles have the colours, and coarse ones do not; noise moves pixels
far less than styles do; and means and deviations are those that the style has written there, whatever came before
(AdaIN).

    python examples/styles_and_noise.py
"""

from pathlib import Path

import torch
from plot import output_folder, write_table
from torch import Tensor
from truncation_trick import train

from lightning_gen.data.grids import mixing_grid, picture_grid
from lightning_gen.data.images import to_uint8
from lightning_gen.models import StyleGAN
from lightning_gen.styles import bands_of, mixed

COUNT, NOISES = 200, 100


def styles_of(model: StyleGAN, count: int, seed: int) -> Tensor:
    """Styles `[count, layers, width]`."""
    return model.map_latents(model.draw_latents(count, torch.Generator().manual_seed(seed)))


def changes(model: StyleGAN, count: int) -> dict[str, tuple[float, float]]:
    """How far pictures move when a band has the styles of others, as a share of what all bands together do.

    First of their mean colours, then of what is left of them without.
    """
    own, others = styles_of(model, count, 0), styles_of(model, count, 1)
    before, after = model.synthesize(own), model.synthesize(others)

    def moved(images: Tensor) -> Tensor:
        change = images - before
        colour = change.mean((2, 3), keepdim=True)
        return torch.stack([part.square().mean().sqrt() for part in (colour, change - colour)])

    found = {}
    for name, layers in bands_of(own.shape[1]).items():
        colour, rest = (moved(model.synthesize(mixed(own, others, layers))) / moved(after)).tolist()
        found[name] = colour, rest
    return found


def noise_deviation(model: StyleGAN, styles: Tensor, noises: int) -> Tensor:
    """The deviation of each pixel over noises, `[N, 1, H, W]`, of pictures with these styles."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([model.synthesize(styles, noise="random", generator=generator) for _ in range(noises)])
    return drawn.std(0).mean(1, keepdim=True)


def written_and_found(model: StyleGAN, styles: Tensor) -> list[tuple[int, float, float]]:
    """Of each layer: how far channels' means are from what the style says, at most, and their deviations, the median.

    Where nothing varies nothing can be scaled, so not the largest.
    """
    outputs: list[Tensor] = []
    layers = model.synthesis.layers
    hooks = [layer.register_forward_hook(lambda _, __, output: outputs.append(output)) for layer in layers]
    model.synthesize(styles)
    for hook in hooks:
        hook.remove()
    rows = []
    for number, (layer, features) in enumerate(zip(layers, outputs, strict=True)):
        scale, shift = layer.style.affine(styles[:, number]).chunk(2, dim=1)
        means = (features.mean((2, 3)) - shift).abs()
        deviations = (features.std((2, 3), correction=0) - (1 + scale).abs()).abs()
        rows.append((number, means.max().item(), deviations.median().item()))
    return rows


def show(model: StyleGAN, folder: Path) -> None:
    """The mixing grid, and pictures beside the deviation over noises, four times as strong."""
    lent, own = styles_of(model, 5, 3), styles_of(model, 3, 4)
    bands = bands_of(lent.shape[1])
    pairs = zip(own, bands.values(), strict=True)
    mixtures = [list(to_uint8(model.synthesize(mixed(taker, lent, layers)))) for taker, layers in pairs]
    above, left = to_uint8(model.synthesize(lent)), to_uint8(model.synthesize(own))
    mixing_grid(list(above), list(left), mixtures, list(bands)).save(folder / "styles_and_noise.png")
    deviation = noise_deviation(model, lent, NOISES)
    shown = {"picture": model.synthesize(lent), "x 4": (4 * deviation).clamp(0, 1) * 2 - 1}
    picture_grid({name: list(to_uint8(images)) for name, images in shown.items()}).save(folder / "noise.png")


@torch.no_grad()
def main() -> None:
    """Train, exchange, measure, show, and check the claims."""
    folder = output_folder("styles_and_noise", __doc__)
    with torch.enable_grad():
        model = train()
    show(model, folder)
    shares, styles = changes(model, COUNT), styles_of(model, 50, 0)
    by_noise = noise_deviation(model, styles, NOISES).square().mean().sqrt().item()
    by_style = model.synthesize(styles).std(0).square().mean().sqrt().item()
    statistics = written_and_found(model, styles)
    rows = [(f"colour by {name} styles, share", colour) for name, (colour, _) in shares.items()]
    rows += [(f"the rest by {name} styles, share", rest) for name, (_, rest) in shares.items()]
    rows += [("deviation by noise", by_noise), ("deviation by styles", by_style)]
    rows += [(f"layer {number}, error of means", error) for number, error, _ in statistics]
    rows += [(f"layer {number}, error of deviations", error) for number, _, error in statistics]
    for name, value in rows:
        print(f"{name:36} {value:.4g}")
    write_table(folder / "styles_and_noise.csv", ["what", "value"], rows)
    assert shares["fine"][0] > 2 * shares["coarse"][0], "fine styles should have the colours"
    assert by_noise < by_style / 4, "noise should move pixels less than styles"
    assert max(max(means, deviations) for _, means, deviations in statistics) < 1e-3, "AdaIN should write both"


if __name__ == "__main__":
    main()
