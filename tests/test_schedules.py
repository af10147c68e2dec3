"""Numbers that change in training: formulas, and that a run which goes on has them again."""

import math
from dataclasses import replace
from itertools import groupby
from operator import itemgetter

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_gen.generative import GenerativeModule
from lightning_gen.schedules import Constant, Cosine, Exponential, Growing, Linear, Piecewise, Schedule, Stage, ends

EVERY = [
    Constant(0.3),
    Linear(1.0, 0.25, until=30, begin=10, by="images"),
    Cosine(0.0, 6.6, until=5000),
    Exponential(1.0, half_life=1000.0, lowest=0.5, by="images"),
    Piecewise(((0, 0.0), (10, 1.0), (20, 1.0), (20, 0.5), (40, 0.0))),
]


def test_a_number_ends_where_it_begins_whoever_made_it():
    assert ends(Linear(1.0, 0.25, until=30)) == (1.0, 0.25)
    for number in (0.5, 1, np.float32(0.5), np.int64(2)):
        assert ends(number) == (number, number)
    for other in (None, "0.5"):
        with pytest.raises(TypeError, match="A number or a schedule was expected, got"):
            ends(other)


def test_a_line_is_exact_at_its_ends_and_constant_beyond():
    line = Linear(0.3, 0.1, until=30, begin=10)
    assert [line(place) for place in (0, 10, 30, 99)] == [0.3, 0.3, 0.1, 0.1]
    assert line(15) == pytest.approx(0.25)
    assert [Linear(1.0, 2.0, until=5, begin=5)(place) for place in (4, 5)] == [1.0, 2.0]


def test_half_a_cosine_as_dall_e_has_it():
    # 2102.12092, appendix A.2: the temperature goes from 1 to 1/16 over the first 150,000 updates.
    temperature = Cosine(1.0, 1 / 16, until=150_000)
    assert (temperature(0), temperature(150_000), temperature(10**6)) == (1.0, 1 / 16, 1 / 16)
    for step in (1, 37_500, 75_000, 140_000):
        expected = 1 / 16 + (1 - 1 / 16) * 0.5 * (1 + math.cos(math.pi * step / 150_000))
        assert temperature(step) == pytest.approx(expected, rel=1e-12)
    slope = (temperature(1) - temperature(0), temperature(75_001) - temperature(75_000))
    assert abs(slope[0]) < 1e-4 * abs(slope[1]), "it sets out gently"


def test_a_temperature_is_halved_down_to_its_lowest():
    # 1611.01144: max(0.5, exp(-r t)).
    rate = 1e-4
    temperature = Exponential(1.0, half_life=math.log(2) / rate, lowest=0.5)
    for step in (0, 1, 1000, 6931, 6932, 50_000):
        assert temperature(step) == pytest.approx(max(0.5, math.exp(-rate * step)), rel=1e-12)


def test_pieces_rise_hold_jump_and_fall():
    number = EVERY[-1]
    places = (0, 5, 10, 15, 19.999, 20, 30, 40, 100)
    assert [number(place) for place in places] == pytest.approx([0, 0.5, 1, 1, 1, 0.5, 0.25, 0, 0])
    assert Piecewise(((10, 2.0), (20, 3.0)))(0) == 2.0


@pytest.mark.parametrize("schedule", EVERY)
def test_each_is_asked_by_its_own_clock(schedule):
    place, other = {"images": 17, "step": 3}, {"images": 3, "step": 17}
    here, there = schedule.at(**place), schedule.at(**other)
    assert (here, there) == ((schedule(17), schedule(3)) if schedule.by == "images" else (schedule(3), schedule(17)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Linear(1.0, 0.0, until=5, begin=6), "0 <= begin <= until.* begin=6 and until=5"),
        (lambda: Cosine(1.0, 0.0, until=math.inf), "Cosine needs .* a finite place"),
        (lambda: Linear(1.0, 0.0, until=math.nan), "a finite place"),
        (lambda: Exponential(1.0, half_life=0.0), "half_life above 0, got 0.0"),
        (lambda: Piecewise(()), "ascending order from 0 on, got"),
        (lambda: Piecewise(((2, 0.0), (1, 1.0))), "ascending order from 0 on, got"),
        (lambda: Piecewise(((-1, 0.0), (1, 1.0))), "ascending order from 0 on, got"),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# -- in a model -----------------------------------------------------------------------------------------------------


class Tempered(GenerativeModule):
    """Its loss has a weight by the images seen and a temperature by the steps."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        kl_weight: float | Schedule = 1.0,
        temperature: Schedule | None = None,
    ) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.kl_weight, self.temperature = kl_weight, temperature or Constant(1.0)
        self.weight = torch.nn.Parameter(torch.ones(image_shape))
        self.used: list[tuple[float, float]] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        weight, temperature = self.scheduled(self.kl_weight), self.scheduled(self.temperature)
        self.used.append((weight, temperature))
        images, _ = self.images_and_labels(batch)
        self.images_seen += len(images) * self.trainer.world_size
        noise = torch.randn_like(images)
        return ((images - self.weight) / temperature + noise).square().mean() + weight * self.weight.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


def fit(model, steps, path=None):
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, DataLoader(torch.linspace(-1, 1, 6 * 4).view(6, 1, 2, 2), 2), ckpt_path=path)
    return trainer


WEIGHT, TEMPERATURE = Cosine(0.0, 6.6, until=10, by="images"), Exponential(2.0, half_life=2.0, lowest=0.6)


def test_a_run_that_goes_on_has_the_numbers_that_it_would_have_had(tmp_path):
    settings = {"kl_weight": WEIGHT, "temperature": TEMPERATURE}
    pl.seed_everything(0, verbose=False)
    through = Tempered((1, 2, 2), **settings)
    fit(through, 8)
    expected = [(WEIGHT(2 * step), TEMPERATURE(step)) for step in range(8)]
    assert through.used == expected
    assert len(set(expected)) == 6, "both have arrived"

    pl.seed_everything(0, verbose=False)
    fit(Tempered((1, 2, 2), **settings), 3).save_checkpoint(tmp_path / "a.ckpt")
    again = Tempered.load_from_checkpoint(tmp_path / "a.ckpt")
    fit(again, 8, tmp_path / "a.ckpt")
    assert again.used == expected[3:]
    assert torch.equal(again.weight, through.weight)


def test_a_number_is_a_number():
    model = Tempered((1, 2, 2), kl_weight=0.5)
    fit(model, 2)
    assert model.used == [(0.5, 1.0)] * 2


@pytest.mark.parametrize("schedule", EVERY)
def test_from_a_configuration_to_a_checkpoint_and_back(schedule, tmp_path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(GenerativeModule, "model")
    arguments = {name: getattr(schedule, name) for name in schedule.__dataclass_fields__}
    if isinstance(schedule, Piecewise):
        arguments["points"] = [list(point) for point in schedule.points]  # as YAML has it
    by_name = {"class_path": type(schedule).__name__, "init_args": arguments}
    settings = {"class_path": "Tempered", "init_args": {"image_shape": [1, 2, 2], "kl_weight": by_name}}
    model = parser.instantiate(parser.parse_object({"model": settings})).model
    assert model.kl_weight == schedule
    trainer = fit(model, 1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["hyper_parameters"]["kl_weight"]
    assert saved["class_path"] == f"lightning_gen.schedules.{type(schedule).__name__}"
    assert Tempered.load_from_checkpoint(tmp_path / "a.ckpt").kl_weight == schedule


# -- growth ---------------------------------------------------------------------------------------------------------

PAPER = Growing(
    (4, 8, 16, 32, 64, 128), batch_sizes=(512, 256, 128, 64, 32, 16), learning_rates=(1e-3,) * 5 + (1.5e-3,)
)


def level_of_detail(kimg, stable=600.0, fade=600.0, doublings=5):
    """How many doublings are still to come, the one that is fading in as a fraction, as in the paper's code."""
    phase, within = divmod(kimg, stable + fade)
    return max(0.0, doublings - phase - max(within - stable, 0.0) / fade)


@pytest.mark.parametrize("kimg", [0, 1, 599, 600, 601, 750, 900, 1199, 1200, 1799, 1800, 2100, 2400, 3000.5, 4200, 4500,
                                  5999, 6000, 7200, 25_000])  # fmt: skip
def test_stages_are_those_of_the_papers_code(kimg):
    stage, detail = PAPER(int(kimg * 1000)), level_of_detail(kimg)
    place = 5 - math.floor(detail)  # of the newest resolution
    assert stage.resolution == 128 / 2 ** math.floor(detail) == PAPER.resolutions[place]
    assert stage.batch_size == PAPER.batch_sizes[place]
    assert stage.learning_rate == PAPER.learning_rates[place]
    assert stage.fade == pytest.approx(1 - detail % 1)
    # Their discriminators see pictures enlarged by repetition, so gradients are by pixels of 128 x 128.
    assert stage.enlargement == 2 ** math.floor(detail)
    assert stage.penalty_scale == (stage.resolution / 128) ** 2


def test_a_fade_begins_above_none_and_ends_at_all_of_a_resolution():
    growing = Growing((4, 8), batch_sizes=(6, 2), stable_images=10, fade_images=5)
    assert growing(10) == Stage(4, 1.0, 6, 0.001, 2)
    assert growing(11) == Stage(8, 0.2, 2, 0.001, 1)
    assert growing(13) == Stage(8, 0.6, 2, 0.001, 1)
    assert growing(15) == growing(10**9) == Stage(8, 1.0, 2, 0.001, 1)
    at_once = replace(growing, fade_images=0)
    assert (at_once(9), at_once(10)) == (Stage(4, 1.0, 6, 0.001, 2), Stage(8, 1.0, 2, 0.001, 1))


def test_where_the_batch_size_changes_alone_nothing_fades_in():
    growing = Growing((4, 4, 8), batch_sizes=(6, 3, 2), stable_images=10, fade_images=5)
    assert [growing(place).fade for place in (10, 12, 15, 25, 26, 30)] == [1, 1, 1, 1, 0.2, 1]
    assert [growing(place).batch_size for place in (10, 12, 25, 26)] == [6, 3, 3, 2]


# In the code of the paper and of StyleGAN, for 1024 x 1024: thousands of pictures seen, and what holds then on eight
# GPUs. The last number is the learning rate in thousandths.
OFFICIAL = Growing(
    (8, 16, 32, 64, 128, 256, 512, 1024),
    batch_sizes=(256, 128, 64, 32, 32, 32, 32, 32),
    learning_rates=(1e-3, 1e-3, 1e-3, 1e-3, 1.5e-3, 2e-3, 3e-3, 3e-3),
)
LISTED = [
    (0, 8, 1.0, 256, 1.0), (300, 8, 1.0, 256, 1.0), (600, 8, 1.0, 256, 1.0), (606, 16, 0.01, 128, 1.0),
    (900, 16, 0.5, 128, 1.0), (1199, 16, 599 / 600, 128, 1.0), (1200, 16, 1.0, 128, 1.0), (1800, 16, 1.0, 128, 1.0),
    (2100, 32, 0.5, 64, 1.0), (2400, 32, 1.0, 64, 1.0), (3150, 64, 0.25, 32, 1.0), (3600, 64, 1.0, 32, 1.0),
    (4500, 128, 0.5, 32, 1.5), (4800, 128, 1.0, 32, 1.5), (5850, 256, 0.75, 32, 2.0), (6000, 256, 1.0, 32, 2.0),
    (6900, 512, 0.5, 32, 3.0), (7800, 512, 1.0, 32, 3.0), (8100, 1024, 0.5, 32, 3.0), (25_000, 1024, 1.0, 32, 3.0),
]  # fmt: skip


@pytest.mark.parametrize(("kimg", "resolution", "fade", "batch_size", "rate"), LISTED)
def test_stages_of_stylegan(kimg, resolution, fade, batch_size, rate):
    stage = OFFICIAL(1000 * kimg)
    assert stage == (resolution, pytest.approx(fade), batch_size, pytest.approx(rate / 1000), 1024 // resolution)
    assert stage.penalty_scale == (resolution / 1024) ** 2


@pytest.mark.parametrize(
    "growing",
    [
        Growing((4, 8, 16), (7, 3, 2), stable_images=25, fade_images=10),
        Growing((4, 8, 16), (8, 4, 2), stable_images=16, fade_images=8),
        Growing((4, 4, 8), (5, 3, 2), stable_images=10, fade_images=5),
        Growing((4, 8), (9, 4), stable_images=3, fade_images=2),
        Growing((4, 8, 16), (64,), stable_images=10, fade_images=5),
        Growing((2, 4), (3, 2), stable_images=10, fade_images=0),
        Growing((4,), (3,)),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_phases_are_what_a_run_goes_through(growing, processes):
    """Batch by batch; a new phase begins with another resolution, another batch size, or the end of a fade."""
    seen, walked = [0], []
    for _ in range(60):
        stage = growing(seen[-1])
        kind = (stage.resolution, stage.batch_size, stage.fade < 1)
        walked.append((kind, seen[-1]))
        seen.append(seen[-1] + processes * stage.batch_size)
    expected = [[place for _, place in group] for _, group in groupby(walked, key=itemgetter(0))]
    found = growing.phases(processes)
    assert [phase.start for phase in found] == [places[0] for places in expected]
    assert [phase.batches for phase in found] == [*map(len, expected[:-1]), None]
    assert [phase.middle for phase in found] == [*(places[len(places) // 2] for places in expected[:-1]), found[-1][0]]
    assert [phase.stage for phase in found] == [growing(phase.middle) for phase in found]
    assert [growing.images_after(n, processes) for n in range(61)] == seen


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolutions": ()}, r"resolutions must be one height or more"),
        ({"resolutions": (0, 4)}, r"resolutions must be one height or more, each at least 1, got \(0, 4\)"),
        ({"resolutions": (4, 6)}, r"must be a multiple of the one before; 6 is none of 4"),
        ({"resolutions": (8, 4)}, r"must be a multiple of the one before; 4 is none of 8"),
        (
            {"batch_sizes": (1, 2, 3)},
            r"batch_sizes must be one .* for each of 2 resolutions.*got \(1, 2, 3\)",
        ),
        ({"batch_sizes": (4, 0)}, r"batch_sizes must be .* each at least 1; got \(4, 0\)"),
        ({"learning_rates": ()}, r"learning_rates must be one number"),
        ({"stable_images": 0}, r"stable_images must be at least 1"),
        ({"fade_images": -1}, r"fade_images at least 0, got 600000 and -1"),
    ],
)
def test_what_cannot_grow_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Growing(**{"resolutions": (4, 8), **settings})


def test_growth_is_named_on_the_command_line():
    parser = ArgumentParser()
    parser.add_argument("--growing", type=Growing | None)
    given = parser.parse_args(["--growing.resolutions=[4, 8]", "--growing.batch_sizes=[16, 8]"])
    assert parser.instantiate(given).growing == Growing((4, 8), (16, 8))
