"""Whether pictures show what was asked for, on a model that shows what it is told, and on one that does not listen."""

from argparse import ArgumentError

import pytest
import torch

from lightning_gen.callbacks import CaptionMetrics, Pictures, caption_metrics
from lightning_gen.callbacks.panels import CaptionPanel, FirstPictures, SamplePanel
from lightning_gen.data import CaptionedScenes, Scenes
from lightning_gen.data.base import in_order
from lightning_gen.data.grids import captioned_grid
from lightning_gen.data.scene_captions import ATTRIBUTES
from lightning_gen.evaluation.sources import loader_of
from lightning_gen.generative import GenerativeModule
from lightning_gen.models import KDE
from lightning_gen.text import ByteTokenizer
from tests.shared import trainer

NAMES = list(ATTRIBUTES)


class Reader(torch.nn.Module):
    """Reads attributes from the first row of pixels, where `Painter` writes them."""

    attributes = ATTRIBUTES

    def forward(self, images):
        return ((images[:, 0, 0, : len(NAMES)] + 1) * 4).round().long()


class Painter(GenerativeModule):
    """Writes into its pictures what the data meant by a caption; one that is `deaf` writes zeros."""

    num_classes = None

    def __init__(self, image_shape: tuple[int, int, int], deaf: bool = False) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.declare_context(text=ByteTokenizer(length=200))
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.deaf, self.known, self.noise = deaf, {}, []

    def sample(self, num_samples, *, captions=None, labels=None, generator=None, guidance: float = 1.0):
        self.noise.append(torch.rand(1, generator=generator).item())
        asked = torch.stack([self.known[caption] for caption in captions])
        images = torch.zeros(num_samples, *self.image_shape)
        images[:, 0, 0, : len(NAMES)] = (asked * (not self.deaf)).float() / 4 - 1
        return images

    def validation_step(self, batch, batch_idx):
        pass

    test_step = validation_step


DATA = {"num_train": 40, "num_val": 10, "num_test": 6, "num_workers": 0, "batch_size": 8}


def painter(data, deaf=False):
    model = Painter((3, 16, 16), deaf)
    for split in ("train", "val", "test"):
        for _, batch in in_order(loader_of(data, split), 8):
            model.known |= dict(zip(batch["caption"], batch["attributes"], strict=True))
    return model


def measured(deaf=False, run="validate", **settings):
    data = CaptionedScenes(16, **DATA)
    model = painter(data, deaf)
    callback = CaptionMetrics(
        **{"num_samples": 8, "test_num_samples": 6, "reader": Reader(), "batch_size": 5, **settings}
    )
    loop = trainer(callbacks=[callback])
    return model, getattr(loop, run)(model, datamodule=data, verbose=False)[0]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("run", "part"), [("validate", "val"), ("test", "test")])
def test_a_model_that_listens_is_all_right_and_one_that_does_not_is_not(run, part):
    model, figures = measured(run=run)
    names = {"", "_pictures", "_held_out", "_held_out_pictures", "_chance", "_marginal", "_shuffled"}
    assert figures.keys() == {f"{part}/attributes{name}" for name in names | {f"_{name}" for name in NAMES}}
    assert [figures[f"{part}/attributes{name}"] for name in ("", "_pictures", "_held_out", "_roof")] == [1.0] * 4
    chance = sum(1 / len(values) for values in ATTRIBUTES.values()) / len(NAMES)
    assert figures[f"{part}/attributes_chance"] == pytest.approx(chance)
    assert len(model.noise) == len(set(model.noise)) == 4  # two batches of either split, each with noise of its own
    again, same = measured(run=run)
    assert (again.noise, same) == (model.noise, figures)
    figures = measured(deaf=True, run=run)[1]
    assert 0 < figures[f"{part}/attributes"] < 0.5
    assert figures[f"{part}/attributes_held_out"] < 0.5
    # Combinations that training never shows all have a house.
    assert figures[f"{part}/attributes_held_out_pictures"] == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_processes_draw_and_count_what_one_does(monkeypatch):
    class Keeps(CaptionMetrics):
        def on_validation_epoch_end(self, trainer, pl_module):
            self.kept = self.metric.counts

    def counted(place, number):
        monkeypatch.setattr(caption_metrics, "rank", lambda: place)
        monkeypatch.setattr(caption_metrics, "world_size", lambda: number)
        data = CaptionedScenes(16, **DATA)
        model, callback = painter(data, deaf=True), Keeps(8, reader=Reader(), batch_size=3)
        trainer(callbacks=[callback]).validate(model, datamodule=data, verbose=False)
        return callback.kept, sorted(model.noise)

    (whole, noise), (one, first), (other, second) = (counted(*place) for place in ((0, 1), (0, 2), (1, 2)))
    assert torch.equal(one + other, whole)
    assert sorted(first + second) == noise
    assert one.sum() > 0 < other.sum()


def test_what_does_not_fit_is_said():
    data = CaptionedScenes(16, **DATA)
    with pytest.raises(ValueError, match="at least 1"):
        CaptionMetrics(0)
    with pytest.raises(TypeError, match="KDE does not"):
        trainer(callbacks=[CaptionMetrics()]).validate(KDE((3, 16, 16)), datamodule=data)
    with pytest.raises(ArgumentError, match="sampling warmth"):
        trainer(callbacks=[CaptionMetrics(sampling={"warmth": 1.0})]).validate(painter(data), datamodule=data)
    with pytest.raises(ValueError, match="needs data with a 'caption' and 'attributes'"):
        trainer(callbacks=[CaptionMetrics()]).validate(painter(data), datamodule=Scenes(16, **DATA))


# The panel


def test_captions_stand_below_pictures():
    plain = captioned_grid([torch.zeros(3, 8, 8, dtype=torch.uint8)] * 3, ["", "", ""], 2)
    grid = captioned_grid([torch.zeros(3, 8, 8, dtype=torch.uint8)] * 3, ["a house " * 10, "a", "b"], 2)
    assert grid.width == plain.width
    assert grid.height > plain.height + 2 * 15
    assert len(grid.crop((0, 148, grid.width // 2, 190)).getcolors(10_000)) > 2  # something is written


def test_the_panel_draws_what_data_says_and_other_samples_are_left_to_it():
    data = CaptionedScenes(16, **DATA)
    model = painter(data)
    inputs, of_codes = FirstPictures(limit=3), FirstPictures(limit=3)
    for _ in range(2):  # a pass that begins anew shows nothing new
        inputs.passed = of_codes.passed = 0
        for _, batch in in_order(loader_of(data, "val"), 2):
            batch["caption"] = model.text(batch["caption"])  # as a model leaves it
            inputs.take(batch, "validation")
            of_codes.take({"codes": [torch.zeros(len(batch["caption"]), 2, 2)], "caption": batch["caption"]}, "codes")
        assert len(inputs.captions) == len(inputs.pictures["image"]) == 3
    assert of_codes.captions == inputs.captions
    assert (of_codes.source, of_codes.pictures) == ("codes", {})
    asked = [model.known[model.text.decode(said)].tolist() for said in inputs.captions]
    assert asked == next(iter(data.val_dataloader()))["attributes"][:3].tolist()
    panel = CaptionPanel(2)
    panel.check("Pictures", None, model)
    assert panel.draw(None, model, inputs).keys() == {"captions"}
    with pytest.raises(ValueError, match=r"has image_shape .* and captions"):
        SamplePanel().check("Pictures", None, model)
    assert CaptionPanel in Pictures.kinds
