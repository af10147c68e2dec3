"""Pictures of what a caption says, in combinations that training never showed (2102.12092), and guidance (2207.12598).

An autoencoder makes 8 x 8 codes of built-in landscapes, and a small GPT learns captions followed by codes. A reader of
attributes then tells which share of what was asked for pictures show: colours, numbers and places. The captions are of
walls, roofs and trees that training shows in pairs, but never all three. Guidance s draws codes from logits that are s
times as far from those without a caption. The claim: with guidance 2 more of what was said is there, and pictures of
one caption are more alike. With 8 it is too much: codes no longer fit together, and less is right.

    python examples/what_was_said.py
"""

from functools import partial

import lightning.pytorch as pl
import torch
from plot import fit, output_folder, write_table
from torch import Tensor

from lightning_gen import networks as nets
from lightning_gen.data import CaptionedScenes
from lightning_gen.data.grids import captioned_grid
from lightning_gen.data.images import to_uint8
from lightning_gen.layers import VectorQuantizer
from lightning_gen.metrics import AttributeAccuracy
from lightning_gen.models import VQVAE, TextToImage
from lightning_gen.text import BPETokenizer

SHAPE, CODES, COUNT, EACH = (3, 32, 32), 256, 200, 2
SIZE = {"filters": 64, "residual_filters": 32}
STEPS = 500, 800
GUIDANCE = 1.0, 2.0, 4.0, 8.0


def scenes(batch_size: int) -> CaptionedScenes:
    """Landscapes of 32 x 32 and their captions; those of validation are of combinations that training never shows."""
    return CaptionedScenes(32, num_val=COUNT, num_test=1, batch_size=batch_size, eval_batch_size=COUNT, num_workers=0)


def train() -> TextToImage:
    """An autoencoder of pictures, then a model of captions and codes."""
    pl.seed_everything(0, verbose=False)
    parts = partial(nets.VQVAEEncoder, **SIZE), partial(nets.VQVAEDecoder, **SIZE)
    first = VQVAE(SHAPE, *parts, partial(VectorQuantizer, num_codes=CODES), channels=32, learning_rate=1e-3)
    fit(first, scenes(32), max_steps=STEPS[0])
    network = partial(nets.TextGPTNetwork, width=96, layers=3, heads=3, dropout=0.0)
    tokenizer = BPETokenizer(length=40, num_tokens=256)
    model = TextToImage(SHAPE, first, network, tokenizer, learning_rate=2e-3, lr_decay=0.998)
    fit(model, scenes(64), max_steps=STEPS[1], gradient_clip_val=1.0)
    return model.eval()


def spread(images: Tensor) -> float:
    """The root of the mean squared difference of two pictures of one caption, of `[captions, each, C, H, W]`."""
    return (2 * images.var(1)).mean().sqrt().item()


def main() -> None:
    """Train, draw, read, show, and check the claims."""
    folder = output_folder("what_was_said", __doc__)
    torch.set_num_threads(1)
    model, data = train(), scenes(64)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    captions, asked = batch["caption"], batch["attributes"]

    def share(images: Tensor) -> dict[str, float]:
        accuracy = AttributeAccuracy()
        accuracy.update(images, asked.repeat_interleave(len(images) // COUNT, 0))
        return {name: figure.item() for name, figure in accuracy.compute().items()}

    rows, shown = [], []
    for guidance in GUIDANCE:
        noise, repeated = torch.Generator().manual_seed(0), [said for said in captions for _ in range(EACH)]
        images = model.sample(len(repeated), captions=repeated, guidance=guidance, generator=noise)
        rows.append((f"guidance {guidance:g}", share(images)["overall"], spread(images.unflatten(0, (-1, EACH)))))
        shown += list(to_uint8(images[: 4 * EACH : EACH]))
    kept = share(model.first_stage.reconstruct(batch["image"]))
    rows += [("true pictures, encoded", kept["overall"], "")]
    rows += [(f"without listening, {name}", kept[name], "") for name in ("chance", "marginal")]
    for name, right, differing in rows:
        print(f"{name:28} {right:6.1%} of attributes right, differences {differing}")
    captioned_grid(shown, [f"{guidance:g}: {said}" for guidance in GUIDANCE for said in captions[:4]], 4).save(
        folder / "what_was_said.png"
    )
    write_table(folder / "what_was_said.csv", ["by", "share of attributes right", "differences"], rows)

    right, differing = ({row[0]: row[column] for row in rows} for column in (1, 2))
    none, some, too_much = (f"guidance {guidance:g}" for guidance in (1, 2, 8))
    assert right[none] > kept["marginal"] + 0.1, "pictures should show some of what was said"
    assert right[some] > right[none] + 0.03, "guidance should make it more"
    assert differing[some] < differing[none], "and pictures of one caption more alike"
    assert right[too_much] < right[some] - 0.03, "too much should break pictures"
    assert differing[too_much] > differing[some], "each in its way"


if __name__ == "__main__":
    main()
