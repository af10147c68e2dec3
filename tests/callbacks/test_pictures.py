"""Pictures: exactly what the model gave, always of the same inputs, and training does not notice."""

import json
import random
from argparse import ArgumentError
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lightning_gen.callbacks.ema import EMA
from lightning_gen.callbacks.panels import (
    AugmentationPanel,
    FirstPictures,
    LatentMapPanel,
    PointPanel,
    RealPanel,
    ReconstructionPanel,
    SamplePanel,
    StylePanel,
    TranslationPanel,
)
from lightning_gen.callbacks.pictures import Pictures, SampleGrid, TranslationGrid, log_picture
from lightning_gen.data import Scenes
from lightning_gen.data.grids import GAP, MIN_CELL, MIN_SQUARE
from lightning_gen.data.images import from_uint8, to_uint8
from lightning_gen.data.toy import GridOfGaussians, TwoGaussians
from lightning_gen.generative import GenerativeModule
from lightning_gen.layers import ADA
from lightning_gen.sampling import LatentSampling
from tests.commands.test_styles import small as small_stylegan
from tests.shared import tile

SIZE = 8
SCALE = MIN_CELL // SIZE


class Toy(pl.LightningModule):
    """A translator of 1 x 1 convolutions that uses up all kinds of random numbers."""

    def __init__(self, directions=("AtoB", "BtoA"), updates=1, noise=0.0):
        super().__init__()
        self.noise = noise
        self.automatic_optimization = False
        self.directions = directions
        self.updates = updates
        torch.manual_seed(0)
        self.networks = nn.ModuleDict({d: nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(0.5)) for d in directions})
        self.frozen = nn.BatchNorm2d(3)
        self.frozen.eval()
        self.seen = []

    def translate(self, images, direction="AtoB"):
        self.seen.append((images.dtype, torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), self.training))
        noise = torch.rand(1).item() + random.random() + np.random.rand()  # noqa: NPY002
        return (self.networks[direction](images) + self.noise * noise).tanh()

    def training_step(self, batch, batch_idx):
        for _ in range(self.updates):
            self.optimizers().zero_grad()
            loss = sum((self.networks[d](batch[d[0]]) - batch[d[-1]]).square().mean() for d in self.directions)
            self.manual_backward(loss)
            self.optimizers().step()
        self.log("train/loss", loss)

    def validation_step(self, batch, batch_idx):
        pass

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.networks.parameters(), lr=0.1)


class Pairs(Dataset):
    def __init__(self, seed, num=8, paired=True):
        pictures = torch.Generator().manual_seed(seed)
        self.pictures = torch.rand(num, 2, 3, SIZE, SIZE, generator=pictures) * 2 - 1
        self.paired = paired

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, i):
        item = {"A": self.pictures[i, 0], "B": self.pictures[i, 1]}
        return {**item, "paired": True} if self.paired else item


def loader(seed, batch_size=1, **kwargs):
    return DataLoader(Pairs(seed, **kwargs), batch_size)


def trainer(folder, callbacks, **kwargs):
    settings = {
        "max_steps": 5,
        "accelerator": "cpu",
        "devices": 1,
        "enable_checkpointing": False,
        "logger": CSVLogger(folder, "run"),
    }
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return pl.Trainer(callbacks=callbacks, **{**settings, **quiet, **kwargs})


def steps_in(panel):
    return [int(path.stem[5:]) for path in sorted(Path(panel).glob("*.png"))]


def read(path):
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def translated(model, picture, *directions):
    """A picture that went through translators one after the other, quantized: what the callback must have drawn."""
    model.eval()
    with torch.no_grad():
        image = from_uint8(picture)[None]
        for direction in directions:
            image = model.translate(image, direction)
    return to_uint8(image[0])


# -- drawing while a model learns


def test_panels_show_exactly_what_translate_gives(tmp_path):
    model, callback = Toy(), TranslationGrid(every_n_steps=2, num_images=3)
    pl_trainer = trainer(tmp_path, [callback], num_sanity_val_steps=3)
    pl_trainer.fit(model, loader(0, batch_size=2), loader(1))
    folder = tmp_path / "run" / "version_0" / "images"

    assert sorted(path.name for path in folder.iterdir()) == ["AtoB", "BtoA"]
    validation = Pairs(1)
    for direction, back, source, target in (("AtoB", "BtoA", 0, 1), ("BtoA", "AtoB", 1, 0)):
        assert steps_in(folder / direction) == [0, 2, 4, 5]
        for step, state in ((0, Toy()), (5, model)):
            grid = read(folder / direction / f"step_{step:08d}.png")
            for row in range(3):
                real = to_uint8(validation.pictures[row, source])
                expected = [
                    real,
                    translated(state, real, direction),
                    translated(state, real, direction, back),
                    translated(state, real, back),
                    to_uint8(validation.pictures[row, target]),
                ]
                for column, picture in enumerate(expected):
                    assert torch.equal(tile(grid, row, column, rows=3), picture), (direction, step, row, column)
            assert grid.shape[2] == GAP + 5 * (MIN_CELL + GAP)


def test_one_direction_has_no_way_back(tmp_path):
    callback = TranslationGrid(num_images=2)
    trainer(tmp_path, [callback]).fit(Toy(("AtoB",)), loader(0), loader(1, paired=False))
    images = tmp_path / "run" / "version_0" / "images"
    assert [path.name for path in images.iterdir()] == ["AtoB"]
    assert read(images / "AtoB" / "step_00000005.png").shape[2] == GAP + 2 * (MIN_CELL + GAP)


def test_draws_when_a_multiple_is_passed_over(tmp_path):
    trainer(tmp_path, [TranslationGrid(every_n_steps=3)], max_steps=10).fit(Toy(updates=2), loader(0), loader(1))
    assert steps_in(tmp_path / "run" / "version_0" / "images" / "AtoB") == [0, 4, 6, 10]


def test_training_pictures_serve_where_there_is_no_validation(tmp_path):
    callback = TranslationGrid(num_images=4)
    pl_trainer = trainer(tmp_path, [callback], num_sanity_val_steps=0, limit_val_batches=2)
    pl_trainer.fit(Toy(), loader(0, batch_size=3), loader(1))
    assert callback.inputs.source == "training"
    expected = [to_uint8(picture) for picture in Pairs(0).pictures[:4, 0]]
    assert all(torch.equal(*pair) for pair in zip(callback.inputs.pictures["A"], expected, strict=True))


def test_pictures_of_8_bits_are_taken_as_they_are():
    taken = FirstPictures(3)
    bytes_ = torch.arange(192, dtype=torch.uint8).view(4, 3, 4, 4)
    taken.take({"A": bytes_, "B": from_uint8(bytes_)}, "training")
    assert all(torch.equal(*pair) for side in "AB" for pair in zip(taken.pictures[side], bytes_[:3], strict=True))


def test_first_validation_completes_what_the_sanity_check_began(tmp_path):
    callback = TranslationGrid(num_images=4)
    trainer(tmp_path, [callback], num_sanity_val_steps=2, max_steps=9).fit(Toy(), loader(0), loader(1))
    assert callback.inputs.source == "validation"
    # The sanity check has shown the first two, and the validation begins with these again.
    expected = [to_uint8(Pairs(1).pictures[i, 0]) for i in (0, 1, 2, 3)]
    assert all(torch.equal(*pair) for pair in zip(callback.inputs.pictures["A"], expected, strict=True))


class Notices:
    """Compares everything that training depends on before and after each drawing."""

    drawings = 0

    def draw(self, trainer, pl_module):
        before = self.condition(pl_module)
        super().draw(trainer, pl_module)
        assert self.condition(pl_module) == before
        self.drawings += 1

    def condition(self, model):
        weights = [value.numpy().tobytes() for value in model.state_dict().values()]
        modes = [module.training for module in model.modules()]
        randomness = torch.get_rng_state().numpy().tobytes(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
        return weights, modes, randomness, torch.is_grad_enabled()


class Noticing(Notices, TranslationGrid):
    pass


def test_training_does_not_notice(tmp_path):
    noticing, model, alone = Noticing(every_n_steps=2), Toy(), Toy()
    for callbacks, learner in (([EMA(["networks"]), noticing], model), ([], alone)):
        pl.seed_everything(3)
        trainer(tmp_path, callbacks).fit(learner, loader(0), loader(1))
    assert noticing.drawings == 4
    assert all(
        torch.equal(*pair) for pair in zip(model.state_dict().values(), alone.state_dict().values(), strict=True)
    )
    assert not any(gradients or training for _, _, gradients, training in model.seen), (
        "drawn with gradients, or in training"
    )
    assert not model.frozen.training


def test_noise_of_the_model_is_the_same_in_each_drawing(tmp_path):
    model = Toy(noise=1.0)
    model.configure_optimizers = lambda: torch.optim.SGD(model.networks.parameters(), lr=0.0)
    trainer(tmp_path, [TranslationGrid(every_n_steps=5)]).fit(model, loader(0), loader(1))
    panel = tmp_path / "run" / "version_0" / "images" / "AtoB"
    assert torch.equal(read(panel / "step_00000000.png"), read(panel / "step_00000005.png"))


@pytest.mark.parametrize(
    ("precision", "dtype", "autocast"),
    [("32-true", torch.float32, False), ("bf16-mixed", torch.float32, True), ("64-true", torch.float64, False)],
)
def test_draws_in_the_precision_of_training(tmp_path, precision, dtype, autocast):
    model = Toy()
    trainer(tmp_path, [TranslationGrid()], precision=precision).fit(model, loader(0), loader(1))
    assert model.seen[0][0] == dtype
    assert {seen[1] for seen in model.seen} == {autocast}


def test_draws_the_averaged_weights(tmp_path):
    model, ema = Toy(), EMA(["networks"], decay=0.9, ramp_up=False)
    trainer(tmp_path, [ema, TranslationGrid(num_images=2)]).fit(model, loader(0), loader(1))
    panel = read(tmp_path / "run" / "version_0" / "images" / "AtoB" / "step_00000005.png")
    averaged = Toy()
    averaged.load_state_dict({**model.state_dict(), **ema.average})
    real = to_uint8(Pairs(1).pictures[0, 0])
    assert torch.equal(tile(panel, 0, 1, rows=2), translated(averaged, real, "AtoB"))
    assert not torch.equal(translated(averaged, real, "AtoB"), translated(model, real, "AtoB"))


# -- samples


class Sampler(pl.LightningModule):
    """Pictures are a linear map of the noise, which is kept, and of the label."""

    def __init__(self, num_classes=None, channels=3):
        super().__init__()
        self.num_classes = num_classes
        torch.manual_seed(0)
        self.networks = nn.Sequential(nn.Linear(5, channels * SIZE * SIZE), nn.Dropout(0.5))
        self.channels, self.drawn = channels, []

    def sample(self, num_samples, *, labels=None, generator=None):
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        latents = torch.randn(num_samples, 5, generator=generator)
        self.drawn.append((latents, labels, self.training, torch.is_grad_enabled()))
        torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        images = self.networks(latents).unflatten(1, (self.channels, SIZE, SIZE)).tanh()
        return images if labels is None else images * 0 + labels.view(-1, 1, 1, 1) / 50

    def training_step(self, batch, batch_idx):
        return self.networks(torch.randn(4, 5)).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.networks.parameters(), lr=10.0)


class NoticingSamples(Notices, SampleGrid):
    pass


def cells(grid, columns, number):
    """The pictures of a grid of squares, from left to right and top to bottom, at their own size."""
    scale = -(-MIN_SQUARE // (SIZE * columns))
    size = SIZE * scale
    for i in range(number):
        row, column = divmod(i, columns)
        top, left = GAP + row * (size + GAP), GAP + column * (size + GAP)
        yield grid[:, top : top + size : scale, left : left + size : scale]


@pytest.mark.parametrize("channels", [1, 3])
def test_samples_of_the_same_noise_are_drawn_through_time(tmp_path, channels):
    model, start = Sampler(channels=channels), Sampler(channels=channels)
    trainer(tmp_path, [SampleGrid(every_n_steps=2, num_images=7)]).fit(model, loader(0))
    panel = tmp_path / "run" / "version_0" / "images" / "samples"
    assert steps_in(panel) == [0, 2, 4, 5]
    assert all(torch.equal(latents, model.drawn[0][0]) for latents, *_ in model.drawn)
    grids = []
    for step, state in ((0, start), (5, model)):
        state.eval()
        with torch.no_grad():
            expected = to_uint8(state.sample(7, generator=torch.Generator().manual_seed(0)))
        grid = read(panel / f"step_{step:08d}.png")
        grids.append(grid)
        for shown, picture in zip(cells(grid, 3, 7), expected, strict=True):
            assert torch.equal(shown, picture.expand(3, -1, -1))
    assert not torch.equal(*grids)


@pytest.mark.parametrize(
    ("num_classes", "num_images", "columns", "labels"),
    [
        (3, 16, 4, [0] * 4 + [1] * 4 + [2] * 4),
        (10, 64, 6, [label for label in range(10) for _ in range(6)]),
        (4, 9, 2, [0, 0, 1, 1, 2, 2, 3, 3]),
        (30, 40, 6, list(range(30))),  # no room for two of each
        (30, 9, 3, list(range(9))),
        (1, 9, 3, [0] * 3),
    ],
)
def test_a_row_of_samples_has_one_class(tmp_path, num_classes, num_images, columns, labels):
    model = Sampler(num_classes)
    trainer(tmp_path, [SampleGrid(num_images=num_images)], max_steps=1).fit(model, loader(0))
    grid = read(tmp_path / "run" / "version_0" / "images" / "samples" / "step_00000001.png")
    assert model.drawn[-1][1].tolist() == labels
    for shown, label in zip(cells(grid, columns, len(labels)), labels, strict=True):
        assert (shown == to_uint8(torch.tensor(label / 50))).all()


def test_training_does_not_notice_samples(tmp_path):
    noticing, model, alone = NoticingSamples(every_n_steps=2), Sampler(), Sampler()
    for callbacks, learner in (([EMA(["networks"]), noticing], model), ([], alone)):
        pl.seed_everything(3)
        trainer(tmp_path, callbacks).fit(learner, loader(0))
    assert noticing.drawings == 4
    assert all(map(torch.equal, model.state_dict().values(), alone.state_dict().values()))
    assert not any(training or gradients for _, _, training, gradients in model.drawn)


def test_samples_are_drawn_with_the_averaged_weights(tmp_path):
    model, ema = Sampler(), EMA(["networks"], decay=0.9, ramp_up=False)
    trainer(tmp_path, [ema, SampleGrid(num_images=4)]).fit(model, loader(0))
    grid = read(tmp_path / "run" / "version_0" / "images" / "samples" / "step_00000005.png")
    averaged = Sampler().eval()
    averaged.load_state_dict(ema.average)
    with torch.no_grad():
        expected = to_uint8(averaged.sample(4, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(*pair) for pair in zip(cells(grid, 2, 4), expected, strict=True))


def test_a_resumed_run_goes_on_drawing_samples(tmp_path):
    first = trainer(tmp_path, [SampleGrid(every_n_steps=4)], logger=CSVLogger(tmp_path, "run", 0))
    first.fit(Sampler(), loader(0))
    first.save_checkpoint(tmp_path / "last.ckpt")
    again = trainer(tmp_path, [SampleGrid(every_n_steps=4)], logger=CSVLogger(tmp_path, "run", 0), max_steps=9)
    again.fit(Sampler(), loader(0), ckpt_path=tmp_path / "last.ckpt")
    assert steps_in(tmp_path / "run" / "version_0" / "images" / "samples") == [0, 4, 5, 8, 9]


def test_models_without_pictures_to_sample_are_named(tmp_path):
    with pytest.raises(TypeError, match=r"SampleGrid needs .* Toy has no `sample` and no `num_classes`"):
        trainer(tmp_path, [SampleGrid()]).fit(Toy(), loader(0))

    class Points(GenerativeModule):
        num_classes, sample, training_step, configure_optimizers = (None, *[Sampler.sample] * 3)

    with pytest.raises(ValueError, match=r"1 or 3 channels .* Points has image_shape \(2, 1, 1\)"):
        trainer(tmp_path, [SampleGrid()]).fit(Points((2, 1, 1)), loader(0))


# -- what a model can do decides


class Translator(GenerativeModule):
    directions = ("AtoB",)

    def translate(self, images, direction="AtoB"):
        return images


class Draws(GenerativeModule):
    num_classes = None

    def sample(self, num_samples, *, labels=None, generator=None):
        return torch.zeros(num_samples, *self.image_shape)


class Conditioned(Draws):
    condition_channels = 1


class Encoder(Draws):
    """Draws noise, and reconstructs pictures as their negatives, darker by noise."""

    def __init__(self):
        super().__init__((3, SIZE, SIZE))
        self.weight = nn.Parameter(torch.ones(()))

    def sample(self, num_samples, *, labels=None, generator=None, temperature: float = 1.0):
        return torch.randn(num_samples, *self.image_shape, generator=generator).tanh() * temperature

    def reconstruct(self, images):
        assert not torch.is_grad_enabled()
        assert not self.training
        return -images - torch.rand(()) / 100

    def training_step(self, batch, batch_idx):
        return self.weight

    def validation_step(self, batch, batch_idx):
        pass

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Plane(LatentSampling):
    """Two latents, whose probabilities below are the shade of the left and of the right half."""

    def __init__(self, num_classes=None, latent_shape=(2,), latent_distribution="normal"):
        super().__init__((1, SIZE, SIZE))
        self.declare_context(num_classes=num_classes)
        self.latent_shape, self.latent_distribution = latent_shape, latent_distribution

    def generate_from(self, latents, labels=None):
        below = latents if self.latent_distribution == "uniform" else torch.special.ndtr(latents) * 2 - 1
        return below[:, None, None, :].repeat_interleave(SIZE // 2, 3).expand(-1, 1, SIZE, -1)


@pytest.mark.parametrize("prior", ["normal", "uniform"])
def test_a_map_of_latents_has_equal_shares_of_the_prior(prior):
    panel, model = LatentMapPanel(17), Plane(latent_distribution=prior)
    panel.check("Pictures", None, model)
    drawn = panel.draw(None, model, FirstPictures())["latent_map"]
    grid = torch.from_numpy(np.array(drawn)).permute(2, 0, 1)
    for i, shown in enumerate(cells(grid, 4, 16)):
        row, column = divmod(i, 4)
        expected = to_uint8(torch.tensor([(column + 0.5) / 4, (3 - row + 0.5) / 4]) * 2 - 1)
        assert torch.equal(shown[0, 0, [0, -1]], expected)


def test_styles_are_shown_mixed_and_truncated():
    panel, model = StylePanel(4), small_stylegan()
    panel.check("Pictures", None, model)
    drawn = panel.draw(None, model, FirstPictures())
    assert drawn.keys() == {"styles", "truncation"}
    styles = model.map_latents(model.draw_latents(7, torch.Generator().manual_seed(0)))
    sweep = np.array(drawn["truncation"])
    header = len(sweep) - 4 * (96 + GAP)
    for column, psi in enumerate((1, 0.7, 0.5, 0, -0.5, -1)):
        expected = to_uint8(model.synthesize(model.truncate(styles[:4], psi, 6))).permute(0, 2, 3, 1).numpy()
        for row in range(4):
            top, left = header + row * (96 + GAP), GAP + column * (96 + GAP)
            assert np.array_equal(sweep[top : top + 96 : 6, left : left + 96 : 6], expected[row])
    assert drawn["styles"].width == GAP + 5 * (144 + GAP)
    with pytest.raises(ValueError, match="of a model without classes"):
        panel.check("Pictures", None, small_stylegan(num_classes=2))


@pytest.mark.parametrize(
    ("model", "data", "kinds", "number"),
    [
        (Translator((3, 8, 8)), Scenes(16), [TranslationPanel], 4),
        (Draws((3, 8, 8)), Scenes(16), [SamplePanel, RealPanel], 64),
        (Draws((1, 1, 8)), Scenes(16), [SamplePanel, RealPanel], 64),
        (Draws((2, 1, 1)), GridOfGaussians(), [PointPanel], 1000),
        (Draws((1, 1, 1)), TwoGaussians(), [PointPanel], 1000),
        (Encoder(), Scenes(16), [SamplePanel, RealPanel, ReconstructionPanel], 64),
        (Plane(), Scenes(16), [SamplePanel, RealPanel, LatentMapPanel], 64),
        (Plane(latent_shape=(3,)), Scenes(16), [SamplePanel, RealPanel], 64),
        (Plane(num_classes=4), Scenes(16), [SamplePanel, RealPanel], 64),
        (small_stylegan(), Scenes(16), [SamplePanel, RealPanel, StylePanel], 64),
        (small_stylegan(augment=ADA()), Scenes(16), [SamplePanel, RealPanel, StylePanel, AugmentationPanel], 64),
        (Draws((2, 1, 1)), Scenes(16), [], 0),  # points of which nobody knows the truth
        (Draws((1, 1, 1)), Scenes(16), [], 0),
        (Draws((2, 8, 8)), Scenes(16), [], 0),  # two channels are no colours
        (Conditioned((3, 8, 8)), Scenes(16), [], 0),  # whoever draws has no maps to give
        (GenerativeModule((3, 8, 8)), Scenes(16), [], 0),
    ],
)
def test_panels_suit_the_model_and_its_data(tmp_path, model, data, kinds, number):
    run = trainer(tmp_path, [])
    run.datamodule = data
    chosen, asked = Pictures(), Pictures(7, 3)
    for callback in (chosen, asked):
        callback.setup(run, model, "fit")
        assert [type(panel) for panel in callback.panels] == kinds
    assert (chosen.every_n_steps, asked.every_n_steps) == (500, 7)
    assert not kinds or (chosen.panels[0].number, asked.panels[0].number) == (number, 3)


def test_a_model_that_can_do_more_has_more_panels(tmp_path):
    """Each as if it were the only one."""
    pictures = DataLoader([{"image": Pairs(1).pictures[i, 0]} for i in range(4)])
    trainer(tmp_path, [Pictures(2, 3)], num_sanity_val_steps=3).fit(Encoder(), pictures, pictures)
    images = tmp_path / "run" / "version_0" / "images"
    assert {path.name: steps_in(path) for path in images.iterdir()} == {
        "samples": [0, 2, 4, 5],
        "real": [0],
        "reconstructions": [0, 2, 4, 5],
    }
    real = read(images / "real" / "step_00000000.png")
    for row, shown in enumerate(cells(real, 2, 3)):
        assert torch.equal(shown, to_uint8(Pairs(1).pictures[row, 0]))
    panel = read(images / "reconstructions" / "step_00000005.png")
    torch.manual_seed(0)
    noise = torch.rand(()) / 100
    for row in range(3):
        picture = to_uint8(Pairs(1).pictures[row, 0])
        assert torch.equal(tile(panel, row, 0, rows=3), picture)
        assert torch.equal(tile(panel, row, 1, rows=3), to_uint8(-from_uint8(picture) - noise))
    trainer(tmp_path, [SampleGrid(2, 3)]).fit(Encoder(), pictures)
    same = tmp_path / "run" / "version_1" / "images" / "samples" / "step_00000005.png"
    assert same.read_bytes() == (images / "samples" / "step_00000005.png").read_bytes()

    alone, others = SampleGrid(5, 1), Pictures(5, 2)
    trainer(tmp_path, [others, alone]).validate(Encoder(), pictures)
    assert [[type(panel) for panel in callback.panels] for callback in (alone, others)] == [
        [SamplePanel],
        [RealPanel, ReconstructionPanel],
    ]

    trainer(tmp_path, [Pictures(num_images=2)]).test(Encoder(), pictures)
    assert [path.name for path in (tmp_path / "run").glob("version_*/images/test_*")] == ["test_reconstructions"]


def test_augmented_pictures_stand_beside_those_of_the_data_in_training_alone(tmp_path):
    pictures = DataLoader([{"image": Pairs(1).pictures[i, 0]} for i in range(4)], 4)
    for version, p in enumerate((0.0, 1.0)):
        model = small_stylegan(shape=(3, 8, 8), augment=ADA(target=None, p=p))
        run = trainer(tmp_path, [Pictures(1, 3)], max_steps=1, limit_val_batches=0)
        run.fit(model, pictures)
        run.test(model, pictures, verbose=False)
        images = tmp_path / "run" / f"version_{version}" / "images"
        panel = read(images / "augmented" / "step_00000001.png")
        for row in range(3):
            picture = to_uint8(Pairs(1).pictures[row, 0])
            assert torch.equal(tile(panel, row, 0, rows=3), picture)
            cells = [panel[:, :, GAP + column * (MIN_CELL + GAP) :][:, :, :MIN_CELL] for column in range(1, 5)]
            assert all(torch.equal(cell, cells[0]) for cell in cells[1:]) == (p == 0)
        assert not (images / "test_augmented").exists()


def test_real_pictures_are_drawn_again_only_where_there_are_more(tmp_path):
    pictures = DataLoader([{"image": Pairs(1).pictures[i, 0]} for i in range(4)])
    first = Pictures(2, 3)
    stopped = trainer(tmp_path, [first], num_sanity_val_steps=1, val_check_interval=3, max_steps=6)
    stopped.fit(Encoder(), pictures, pictures)
    panel = tmp_path / "run" / "version_0" / "images" / "real"
    assert steps_in(panel) == [0, 4], "one of the sanity check, three after the first validation"
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    again = trainer(tmp_path, [Pictures(2, 3)], logger=CSVLogger(tmp_path, "run", 0), max_steps=9)
    again.fit(Encoder(), pictures, pictures, ckpt_path=tmp_path / "last.ckpt")
    assert steps_in(panel) == [0, 4]


def test_there_are_fewer_real_pictures_of_a_large_size_which_checkpoints_keep(tmp_path):
    for size, number in ((8, 64), (128, 64), (256, 20), (1024, 4)):
        callback = Pictures()
        callback.setup(trainer(tmp_path, []), Draws((3, size, size)), "fit")
        assert callback.inputs.limit == number


class Named(pl.LightningDataModule):
    domains = ("day", "night")

    def train_dataloader(self):
        return loader(0)

    def val_dataloader(self):
        return loader(1)


def test_columns_have_the_data_s_names_and_say_where_their_cells_lie(tmp_path):
    trainer(tmp_path, [TranslationGrid(num_images=2)]).fit(Toy(), datamodule=Named())
    path = tmp_path / "run" / "version_0" / "images" / "BtoA" / "step_00000005.png"
    layout = json.loads(Image.open(path).text["layout"])
    assert layout["titles"] == ["night", "night to day", "night to day to night", "identity of night", "day (target)"]
    grid, (left, top) = read(path), (layout["left"] + layout["right"], layout["top"] + layout["down"])
    scale = layout["width"] // SIZE
    second = grid[:, top : top + layout["height"] : scale, left : left + layout["width"] : scale]
    assert torch.equal(second, tile(grid, 1, 1, rows=2))


def test_settings_of_the_model_s_own_arrive_and_unknown_ones_are_refused_by_name(tmp_path):
    pictures = DataLoader([{"image": Pairs(1).pictures[0, 0]}])
    for callback in (Pictures(num_images=1, sampling={"temperature": 0}), SampleGrid(5, 1, {"temperature": "0.0"})):
        run = trainer(tmp_path, [callback], max_steps=1)
        run.fit(Encoder(), pictures)
        grid = read(Path(run.logger.log_dir) / "images" / "samples" / "step_00000001.png")
        assert (grid[:, GAP:-GAP, GAP:-GAP] == 128).all(), "tanh(noise) * 0"
    with pytest.raises(ArgumentError, match=r"SampleGrid has sampling psi.*Encoder's `sample` takes.*temperature"):
        trainer(tmp_path, [SampleGrid(sampling={"psi": 1})]).fit(Encoder(), pictures)
    with pytest.raises(ArgumentError, match="Pictures has sampling psi"):
        trainer(tmp_path, [Pictures(sampling={"psi": 1})]).fit(Encoder(), pictures)
    with pytest.raises(ValueError, match=r"sampling {'psi': 1}, but draws no samples of Toy"):
        trainer(tmp_path, [Pictures(sampling={"psi": 1})]).fit(Toy(), loader(0))


# -- stopping and going on


@pytest.mark.parametrize(("model", "earlier"), [(Toy, TranslationGrid), (Sampler, SampleGrid)])
def test_runs_that_began_with_a_callback_of_one_kind_go_on_with_all(tmp_path, model, earlier):
    """As those of the command line, whose checkpoints of earlier versions have its state."""
    first = earlier(every_n_steps=4, num_images=2)
    stopped = trainer(tmp_path, [first], logger=CSVLogger(tmp_path, "run", 0))
    stopped.fit(model(), loader(0), loader(1))
    stopped.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt")
    if earlier is SampleGrid:
        del checkpoint["callbacks"]["SampleGrid"]["inputs"]  # which it had none of
    torch.save(checkpoint, tmp_path / "last.ckpt")
    second = Pictures(every_n_steps=4, num_images=2)
    again = trainer(tmp_path, [second], logger=CSVLogger(tmp_path, "run", 0), max_steps=9)
    again.fit(model(), loader(0), loader(7), ckpt_path=tmp_path / "last.ckpt")
    for panel in (tmp_path / "run" / "version_0" / "images").iterdir():
        # Real pictures came with the callback that shows all.
        assert steps_in(panel) == ([8] if panel.name == "real" else [0, 4, 5, 8, 9])
    assert all(map(torch.equal, first.inputs.pictures.get("B", []), second.inputs.pictures.get("B", [])))


def test_resumed_run_goes_on_with_the_same_pictures(tmp_path):
    checkpoint = tmp_path / "last.ckpt"
    first = TranslationGrid(every_n_steps=2, num_images=2)
    stopped = trainer(tmp_path, [first], logger=CSVLogger(tmp_path, "run", 0))
    stopped.fit(Toy(), loader(0), loader(1))
    stopped.save_checkpoint(checkpoint)
    late = tmp_path / "run" / "version_0" / "images" / "AtoB" / "step_00000099.png"
    late.write_bytes(late.with_name("step_00000005.png").read_bytes())

    second = TranslationGrid(every_n_steps=2, num_images=2)
    going_on = trainer(tmp_path, [second], logger=CSVLogger(tmp_path, "run", 0), max_steps=9)
    going_on.fit(Toy(), loader(0), loader(7), ckpt_path=checkpoint)  # other validation pictures
    assert steps_in(late.parent) == [0, 2, 4, 5, 6, 8, 9], "a picture from a later step belongs to what was taken back"
    assert all(map(torch.equal, first.inputs.pictures["B"], second.inputs.pictures["B"]))
    columns = [read(late.with_name(f"step_{step:08d}.png"))[:, :, : GAP + MIN_CELL] for step in (0, 9)]
    assert torch.equal(*columns)


def test_new_run_with_the_same_callback_starts_again(tmp_path):
    callback = TranslationGrid(every_n_steps=2)
    trainer(tmp_path, [callback], max_steps=6).fit(Toy(), loader(0), loader(1))
    trainer(tmp_path, [callback], max_steps=3).fit(Toy(), loader(0), loader(1))
    assert steps_in(tmp_path / "run" / "version_1" / "images" / "AtoB") == [0, 2, 3]


def test_test_draws_into_the_run_of_the_checkpoint(tmp_path):
    model = Toy()
    fitted = trainer(tmp_path, [TranslationGrid()])
    fitted.fit(model, loader(0), loader(1))
    run = tmp_path / "run" / "version_0"
    (run / "config.yaml").touch()
    fitted.save_checkpoint(run / "checkpoints" / "last.ckpt")

    callback = TranslationGrid(num_images=2)
    trainer(tmp_path, [callback]).test(Toy(), loader(5), ckpt_path=run / "checkpoints" / "last.ckpt")
    assert sorted(path.name for path in (run / "images").iterdir()) == ["AtoB", "BtoA", "test_AtoB", "test_BtoA"]
    assert steps_in(run / "images" / "test_AtoB") == [5]
    panel = read(run / "images" / "test_AtoB" / "step_00000005.png")
    real = to_uint8(Pairs(5).pictures[1, 0])
    assert torch.equal(tile(panel, 1, 1, rows=2), translated(model, real, "AtoB"))
    assert callback.inputs.source == "validation", "the pictures of training stay as they are"


def test_nothing_is_kept_in_a_fast_dev_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = Toy()
    trainer(tmp_path, [TranslationGrid()], fast_dev_run=2, logger=False).fit(model, loader(0), loader(1))
    assert model.seen, "it draws, so that faults show"
    assert not list(tmp_path.rglob("*.png"))


# -- faults


def test_model_that_does_not_translate_is_named(tmp_path):
    model = Toy()
    del model.directions
    with pytest.raises(TypeError, match=r"TranslationGrid needs .* Toy has no `directions`"):
        trainer(tmp_path, [TranslationGrid()]).test(model, loader(0))


@pytest.mark.parametrize("grid", [Pictures, TranslationGrid, SampleGrid])
@pytest.mark.parametrize("wrong", [{"every_n_steps": 0}, {"num_images": 0}])
def test_numbers_are_checked(grid, wrong):
    with pytest.raises(ValueError, match="at least 1, got 0"):
        grid(**wrong)


def test_full_disk_is_a_warning(tmp_path, monkeypatch):
    def replace(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", replace)
    pl_trainer = trainer(tmp_path, [TranslationGrid(every_n_steps=1)])
    with pytest.warns(UserWarning, match="No space left on device"):
        pl_trainer.fit(Toy(), loader(0), loader(1))
    assert pl_trainer.global_step == 5
    assert not [path for path in tmp_path.rglob("images/**/*") if path.is_file()], "no half-written file stays"


# -- loggers


def test_loggers_show_pictures_at_their_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = TensorBoardLogger(tmp_path, "board")
    picture = torch.randint(256, (3, 12, 10), dtype=torch.uint8)

    class DrawsEach(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            log_picture(trainer, "val/scene", picture)
            log_picture(trainer, "late", Image.fromarray(np.zeros((4, 4), dtype=np.uint8)), step=77)

    trainer(tmp_path, [DrawsEach()], max_steps=2, logger=[board, CSVLogger(tmp_path, "table")]).fit(Toy(), loader(0))
    folder = Path(board.log_dir)
    assert steps_in(folder / "images" / "val" / "scene") == [1, 2]
    assert torch.equal(read(folder / "images" / "val" / "scene" / "step_00000002.png"), picture)
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    assert [(e.step, e.width, e.height) for e in events.Images("val/scene")] == [(1, 10, 12), (2, 10, 12)]
    assert events.Images("late")[0].step == 77


def test_wandb_shows_pictures_and_its_run_has_one_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WandbLogger(project="toys", save_dir=tmp_path)
    logged = []
    log_image = logger.log_image
    monkeypatch.setattr(
        logger, "log_image", lambda *args, step: logged.append((args[0], step)) or log_image(*args, step=step)
    )
    trainer(tmp_path, [TranslationGrid()], logger=logger).fit(Toy(), loader(0), loader(1))
    images = tmp_path / "toys" / logger.version / "images"
    assert steps_in(images / "AtoB") == [0, 5]
    assert logged == [("AtoB", 0), ("BtoA", 0), ("AtoB", 5), ("BtoA", 5)]
    logger.experiment.finish()
    sent = sorted(tmp_path.glob("wandb/offline-run-*/files/media/images/AtoB_0_*.png"))
    assert len(sent) == 1
    assert torch.equal(read(sent[0]), read(images / "AtoB" / "step_00000000.png"))


def test_failing_logger_is_a_warning(tmp_path):
    board = TensorBoardLogger(tmp_path, "board")
    pl_trainer = trainer(tmp_path, [], logger=board)
    board.experiment.add_image = None
    with pytest.warns(UserWarning, match="TensorBoardLogger could not show the picture 'A'"):
        log_picture(pl_trainer, "A", torch.zeros(3, 4, 4, dtype=torch.uint8))
    assert steps_in(Path(board.log_dir) / "images" / "A") == [0]
