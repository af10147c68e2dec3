"""`lightning-gen project`: the styles whose picture is nearest to a given one."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lightning_gen.commands.common import device_of, fitted, input_files
from lightning_gen.commands.results import Results
from lightning_gen.commands.styled import Styled
from lightning_gen.data.grids import picture_grid
from lightning_gen.data.images import Kernel, background_color, read_image, to_float, to_uint8
from lightning_gen.extractors.base import FeatureExtractor
from lightning_gen.extractors.distance import FeatureDistance
from lightning_gen.extractors.scenes import SceneFeatures
from lightning_gen.files import write_atomically
from lightning_gen.losses.perceptual import LPIPSDistance, PerceptualLoss
from lightning_gen.styles import Distance, pixel_distance, reduced
from lightning_gen.styles import project as project_picture

Eye = Literal["lpips", "scenes", "pixels"]


def project(
    checkpoint: Path,
    input: Path,
    output: Path,
    space: Literal["w", "w+"] = "w",
    distance: Eye | None = None,
    extractor: FeatureExtractor | None = None,
    steps: int = 1000,
    learning_rate: float = 0.1,
    style_noise: float = 0.05,
    noise: Literal["fixed", "optimised"] = "fixed",
    resize: Kernel | None = None,
    seed: int = 0,
    label: int | str | None = None,
    background: str = "white",
    overwrite: bool = False,
    accelerator: str = "auto",
) -> int:
    """Project pictures into w: by gradient descent, as in the StyleGAN2 paper (1912.04958, appendix D).

    Of each picture NAME it writes OUTPUT/pictures/NAME.png, the nearest that was found, and OUTPUT/styles/NAME.npz, its
    styles `w`, float32 [layers, width], and with optimised noise its maps `noise_0` and so on. OUTPUT/distances.csv has
    the distances at six places on the way, from the picture of the mean of all styles to the last. OUTPUT_grid.png
    shows each target, the way and the result. Each picture is projected by itself.

    Args:
        checkpoint: Checkpoint of a model whose layers have styles, a file or RUN or RUN/best; it is all that is needed.
        input: A picture file, or a folder that is searched recursively.
        output: Folder for the results; made if needed.
        space: w has one style for all layers; w+ one for each, which comes nearer, but may leave what the model knows.
        distance: lpips judges as people do and needs the weights of VGG-16; scenes by a network that is trained on the
            built-in Scenes; pixels by squared differences. By default lpips where it can be had, else pixels.
        extractor: Judges by its layers, in place of a distance: ClassifierFeatures, InceptionFeatures or one of your
            own that shows them.
        steps: Of the optimizer.
        learning_rate: Of Adam, at its height.
        style_noise: On w at the start, as a share of its deviation.
        noise: Of the layers: fixed as the model has it, so that the picture is one of styles alone, or optimised too,
            as in the paper, which comes nearer.
        resize: Brings pictures of another size to that of the model's by this kernel, with antialiasing: bicubic or
            bilinear. They are cut, at the center, to the model's aspect ratio first.
        seed: Of the styles of which the mean is taken, and of the noise.
        label: The class of the mean, by number or name; needed where the model has classes.
        background: Colour behind transparent pixels.
        overwrite: Whether to write into a folder that holds pictures already, and remove those of this command first.
        accelerator: As in Lightning: auto, cpu, gpu, ...
    """
    background_color(background)
    for name, value in (("steps", steps), ("learning_rate", learning_rate)):
        if value <= 0:
            raise ValueError(f"{name} must be above 0, got {value}.")
    if style_noise < 0:
        raise ValueError(f"style_noise must be 0 or more, got {style_noise}.")
    if distance and extractor:
        raise ValueError(f"Pictures are judged by a distance or by an extractor; got {distance} and {extractor.name}.")
    styled = Styled(checkpoint, label)
    channels, *size = styled.model.image_shape
    files, root = input_files(input, output)
    names = [file.relative_to(root).with_suffix("").as_posix() for file in files]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{input} has several pictures that differ in their endings alone, such as {twice[0]}.")
    targets: list[Tensor] = []
    for file in files:
        pixels = fitted(read_image(file, channels, background), (size[0], size[1]), file, resize, "--resize bicubic")
        targets.append(to_float(pixels))
    results = Results(output, r"(pictures/.*\.png)|(styles/.*\.npz)|distances\.csv", overwrite)
    measure = _distance(distance, extractor, styled.model.image_shape)
    styled.model.to(device_of(accelerator))
    table: list[tuple[str | int | float, ...]] = [("picture", "step", "distance")]
    shown: list[tuple[str, list[Tensor]]] = []
    captions: dict[tuple[int, int], str] = {}
    for row, (name, target) in enumerate(zip(names, targets, strict=True)):
        found = project_picture(
            styled.model, target, measure,
            space=space, steps=steps, learning_rate=learning_rate, style_noise=style_noise, noise=noise,
            label=styled.label, seed=seed,
        )  # fmt: skip
        images = found.images.cpu()
        results.write(f"pictures/{name}.png", images[-1])
        arrays: dict[str, Any] = {"w": found.styles.float().cpu().numpy()}
        if noise == "optimised":
            arrays |= {f"noise_{layer}": each.float().cpu().numpy() for layer, each in enumerate(found.noise)}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_atomically(results.file(f"styles/{name}.npz"), buffer.getvalue())
        shown = shown or [("target", []), *((f"step {step}", []) for step in found.steps)]
        for (_, column), image in zip(shown, [target, *images], strict=True):
            column.append(to_uint8(image))
        for place, (step, far) in enumerate(zip(found.steps, found.distances.tolist(), strict=True), 1):
            table.append((name, step, far))
            captions[row, place] = f"{far:.4g}"
        print(f"{name}: distance {found.distances[-1]:.4g}, and {found.distances[0]:.4g} at the mean of styles")
    results.table("distances.csv", table)
    results.overview(picture_grid(shown, captions))
    print(f"{len(names)} pictures projected into {space}, written into {output}, an overview to {results.grid}")
    return 0


def _distance(name: Eye | None, extractor: FeatureExtractor | None, image_shape: tuple[int, int, int]) -> Distance:
    """What judges, tried on a blank picture; it is told what was chosen where nothing was given."""
    if name == "pixels":
        return pixel_distance
    perceptual: PerceptualLoss = LPIPSDistance("vgg")
    if extractor is not None or name == "scenes":
        perceptual = FeatureDistance(SceneFeatures if extractor is None else lambda: extractor)

    def distance(images: Tensor, targets: Tensor) -> Tensor:
        return perceptual(reduced(images, 256), reduced(targets, 256))

    try:
        distance(torch.zeros(1, *image_shape), torch.zeros(1, *image_shape))
    except (FileNotFoundError, ValueError) as error:
        if name is not None or extractor is not None:
            raise
        print(f"By squared differences of pixels, for LPIPS cannot be had: {error}", file=sys.stderr)
        return pixel_distance
    if name is None and extractor is None:
        print("By LPIPS on VGG-16.")
    return distance
