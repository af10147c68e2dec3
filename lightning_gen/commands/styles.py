"""`lightning-gen styles`: pictures with styles of others in some of their layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_gen.commands.common import device_of
from lightning_gen.commands.results import Results
from lightning_gen.commands.styled import Styled
from lightning_gen.data.grids import mixing_grid
from lightning_gen.data.images import to_uint8
from lightning_gen.styles import bands_of, mixed, parse_layers


def styles(
    checkpoint: Path,
    output: Path,
    sources: int = 5,
    rows: int = 2,
    layers: list[int | str] | None = None,
    seed: int = 0,
    label: int | str | None = None,
    sampling: dict[str, Any] | None = None,
    overwrite: bool = False,
    accelerator: str = "auto",
) -> int:
    """Mix styles: pictures with those of others in their coarse, middle or fine layers (1812.04948, figure 3).

    OUTPUT_grid.png has a column for each source and rows for pictures that take styles from it: with the coarse ones,
    with the middle ones, with the fine ones. The sources stand above, the pictures as they are at the left. The first
    SOURCES pictures of the seed, as `sample` numbers them, are the sources, those that follow take their styles. Files
    are OUTPUT/coarse/005_000.png, for picture 5 with coarse styles of picture 0, and so on.

    Args:
        checkpoint: Checkpoint of a model whose layers have styles, a file or RUN or RUN/best; it is all that is needed.
        output: Folder for the results; made if needed.
        sources: How many pictures lend styles.
        rows: How many take them, for each band of layers.
        layers: The bands, such as [0-3,4-7,8-17]. By default coarse are 0 to 3, middle 4 to 7 and fine the rest, and in
            models of at most eight layers a third of the levels each.
        seed: Of the latents, 0 or more.
        label: The class of all pictures, by number or name; needed where the model has classes.
        sampling: Settings of the model's own `sample`, each an option, such as --psi 0.7.
        overwrite: Whether to write into a folder that holds pictures already, and remove those of this command first.
        accelerator: As in Lightning: auto, cpu, gpu, ...
    """
    for name, number in (("sources", sources), ("rows", rows)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}.")
    styled = Styled(checkpoint, label, sampling)
    if layers is None:
        bands = {name: list(band) for name, band in bands_of(styled.num_layers).items()}
    else:
        bands = {f"layers_{text}": parse_layers(str(text), styled.num_layers) for text in layers}
    results = Results(output, r"(coarse|middle|fine|layers_[\d\-]+)/\d{3,}_\d{3,}\.png", overwrite)
    styled.model.to(device_of(accelerator))
    takers = range(sources, sources + rows * len(bands))
    lent, own = styled.numbered(range(sources), seed), styled.numbered(takers, seed)
    above, left = to_uint8(styled.draw(lent)), to_uint8(styled.draw(own))
    names = [name for name in bands for _ in range(rows)]
    shown = []
    for number, styles_of_taker, name in zip(takers, own, names, strict=True):
        images = styled.draw(mixed(styles_of_taker, lent, bands[name]))
        for source, image in enumerate(images):
            results.write(f"{name}/{number:03d}_{source:03d}.png", image)
        shown.append(list(to_uint8(images)))
    captions = [f"{number}: {name.replace('_', ' ')}" for number, name in zip(takers, names, strict=True)]
    results.overview(mixing_grid(list(above), list(left), shown, captions))
    for name, band in bands.items():
        print(f"{name}: layers {', '.join(map(str, band))} of {styled.num_layers}")
    print(
        f"{len(takers)} pictures with styles of {sources} others written into {output}, an overview to {results.grid}"
    )
    return 0
