"""`lightning-gen directions`: what a model has learned to change, found in its weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lightning_gen.commands.common import device_of
from lightning_gen.commands.results import Results
from lightning_gen.commands.styled import Styled
from lightning_gen.data.grids import picture_grid
from lightning_gen.data.images import to_uint8
from lightning_gen.styles import drawn_styles, factorized_directions, mixed, parse_layers


def directions(
    checkpoint: Path,
    output: Path,
    number: int = 5,
    picture: int = 0,
    layers: int | str | None = None,
    strength: float = 3.0,
    steps: int = 7,
    seed: int = 0,
    label: int | str | None = None,
    sampling: dict[str, Any] | None = None,
    overwrite: bool = False,
    accelerator: str = "auto",
) -> int:
    """Show directions in w that need no labels: the closed-form factorisation of the style weights (SeFa, 2007.06600).

    Where styles move what the layers make of them the most, there pictures change the most. A row of OUTPUT_grid.png
    is one direction, the strongest first: the picture in the middle, and at both sides moved along it. Files are
    OUTPUT/direction_0/000.png and so on. OUTPUT/directions.csv has the share of each in what the weights do, the
    deviation of w along it, and how much the pictures at both ends differ, as the root of the mean square over pixels
    in [-1, 1]. For directions that words name, see `arithmetic --space w`.

    Args:
        checkpoint: Checkpoint of a model whose layers have styles, a file or RUN or RUN/best; it is all that is needed.
        output: Folder for the results; made if needed.
        number: How many directions.
        picture: The picture of the seed that is moved, by its number in the files of `sample`.
        layers: Whose weights are factorised, and whose styles are moved, such as 0-3,8; by default all.
        strength: How far it is moved to either side, in deviations of w along the direction.
        steps: Pictures in a row.
        seed: Of the latents, 0 or more.
        label: The class of the picture, by number or name; needed where the model has classes.
        sampling: Settings of the model's own `sample`, each an option, such as --psi 0.7.
        overwrite: Whether to write into a folder that holds pictures already, and remove those of this command first.
        accelerator: As in Lightning: auto, cpu, gpu, ...
    """
    if strength <= 0:
        raise ValueError(f"strength must be above 0, got {strength}.")
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}.")
    styled = Styled(checkpoint, label, sampling)
    chosen = list(range(styled.num_layers)) if layers is None else parse_layers(str(layers), styled.num_layers)
    weights = styled.model.style_weights()
    ways, shares = factorized_directions([weights[layer] for layer in chosen], number)
    results = Results(output, r"direction_\d+/\d{3,}\.png|directions\.csv", overwrite)
    styled.model.to(device_of(accelerator))
    start = styled.numbered([picture], seed)
    deviations = (drawn_styles(styled.model, 10_000, styled.label, seed) @ ways.T.to(start)).std(0)
    distances = torch.linspace(-strength, strength, steps).to(start)
    rows = []
    table: list[tuple[str | int | float, ...]] = [("direction", "share", "deviation", "difference")]
    for place, (way, share, deviation) in enumerate(zip(ways.to(start), shares, deviations, strict=True)):
        moved = start + (distances * deviation)[:, None, None] * way
        images = styled.draw(mixed(start, moved, chosen))
        for step, image in enumerate(images):
            results.write(f"direction_{place}/{step:03d}.png", image)
        rows.append(to_uint8(images))
        difference = (images[-1] - images[0]).square().mean().sqrt()
        table.append((place, share.item(), deviation.item(), difference.item()))
        print(f"direction {place}: {share:.1%} of what the weights do")
    results.table("directions.csv", table)
    titles = [f"{distance:+.1f}" for distance in distances]
    results.overview(picture_grid(list(zip(titles, zip(*rows, strict=True), strict=True))))
    print(f"{number} directions written into {output}, an overview to {results.grid}")
    return 0
