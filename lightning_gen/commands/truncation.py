"""`lightning-gen truncation`: pictures whose styles are drawn to their mean, and beyond."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_gen.commands.common import device_of
from lightning_gen.commands.results import Results
from lightning_gen.commands.styled import Styled
from lightning_gen.data.grids import picture_grid
from lightning_gen.data.images import to_uint8


def truncation(
    checkpoint: Path,
    output: Path,
    psis: Sequence[float] = (1.0, 0.7, 0.5, 0.0, -0.5, -1.0),
    rows: int = 6,
    seed: int = 0,
    label: int | str | None = None,
    sampling: dict[str, Any] | None = None,
    overwrite: bool = False,
    accelerator: str = "auto",
) -> int:
    """Sweep psi, the truncation of styles: a row for each picture, a column for each psi (1812.04948, figure 8).

    All layers are truncated, unless `--truncated_layers` says how many. It is told how much the pictures of each psi
    deviate from their mean, as the root of the mean square over pixels in [-1, 1]; at 0 all pictures are one. Files are
    OUTPUT/psi_0.7/000.png and so on, OUTPUT/deviations.csv, and OUTPUT_grid.png.

    Args:
        checkpoint: Checkpoint of a model whose layers have styles, a file or RUN or RUN/best; it is all that is needed.
        output: Folder for the results; made if needed.
        psis: From -2 to 2: 1 leaves styles alone, 0 gives their mean, below 0 lies the opposite.
        rows: How many pictures, the first of the seed, as `sample` numbers them.
        seed: Of the latents, 0 or more.
        label: The class of all pictures, by number or name; needed where the model has classes.
        sampling: Settings of the model's own `sample` but psi, each an option, such as --noise none.
        overwrite: Whether to write into a folder that holds pictures already, and remove those of this command first.
        accelerator: As in Lightning: auto, cpu, gpu, ...
    """
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}.")
    if not psis or len(set(psis)) < len(psis):
        raise ValueError(f"psis must be one number or several, each once; got {list(psis)}.")
    if sampling and "psi" in sampling:
        raise ValueError("truncation draws several psi. Give them with --psis, such as --psis [1,0.5,0].")
    styled = Styled(checkpoint, label, sampling)
    layers = styled.points.truncation.pop("truncated_layers", styled.num_layers)
    styles = styled.numbered(range(rows), seed)
    for psi in psis:
        styled.model.truncate(styles[:1], psi, layers)  # before anything is drawn
    results = Results(output, r"psi_[\-\de.]+/\d{3,}\.png|deviations\.csv", overwrite)
    styled.model.to(device_of(accelerator))
    columns, deviations = [], []
    for psi in psis:
        images = styled.draw(styled.model.truncate(styles.to(styled.model.device), psi, layers))
        for number, image in enumerate(images):
            results.write(f"psi_{psi:g}/{number:03d}.png", image)
        columns.append((f"{psi:g}", list(to_uint8(images))))
        deviations.append((images - images.mean(0)).square().mean().sqrt().item())
        print(f"psi {psi:g}: pictures deviate by {deviations[-1]:.4f}")
    results.table("deviations.csv", [("psi", "deviation"), *zip(psis, deviations, strict=True)])
    results.overview(picture_grid(columns))
    print(f"{rows} pictures at {len(psis)} psi written into {output}, an overview to {results.grid}")
    return 0
