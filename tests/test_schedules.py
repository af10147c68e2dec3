"""Numbers that change in training: formulas, and that a run which goes on has them again."""

import math

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_gen.generative import GenerativeModule
from lightning_gen.schedules import Constant, Cosine, Exponential, Linear, Piecewise, Schedule

EVERY = [
    Constant(0.3),
    Linear(1.0, 0.25, until=30, begin=10, by="images"),
    Cosine(0.0, 6.6, until=5000),
    Exponential(1.0, half_life=1000.0, lowest=0.5, by="images"),
    Piecewise(((0, 0.0), (10, 1.0), (20, 1.0), (20, 0.5), (40, 0.0))),
]


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
