"""The networks of a model and their parameters, and nothing else."""

from functools import partial

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelSummary
from torch import nn
from torchmetrics import MeanMetric

from lightning_gen.callbacks import EMA, NetworkSummary
from lightning_gen.commands.trainer import Trainer, quiet_lightning
from lightning_gen.models import KDE, CycleGAN
from lightning_gen.networks import PatchDiscriminator, ResNetGenerator


def said(capsys, model, *callbacks):
    summary = NetworkSummary()
    summary.on_fit_start(pl.Trainer(accelerator="cpu", logger=False, callbacks=[summary, *callbacks]), model)
    return capsys.readouterr().out.splitlines()


def test_networks_and_their_average_are_counted(capsys):
    generator = partial(ResNetGenerator, filters=2, blocks=1)
    model = CycleGAN((3, 16, 16), generator, partial(PatchDiscriminator, filters=2, layers=1))
    counts = {name: sum(p.numel() for p in getattr(model, name).parameters()) for name, _ in model.named_children()}
    one, other = counts["generator_AtoB"], counts["discriminator_A"]
    average = "average of generator_AtoB, generator_BtoA"
    lines = said(capsys, model, EMA(["generator_AtoB", "generator_BtoA"]))
    assert lines[0] == "CycleGAN, parameters:"
    rows = [line.split("  ", 2)[1:] for line in lines[1:]]
    assert {name: int(number.replace(",", "")) for name, number in rows} == {
        "generator_AtoB": one,
        "generator_BtoA": one,
        "discriminator_A": other,
        "discriminator_B": other,
        average: 2 * one,
    }
    assert len({len(line) for line in lines[1:]}) == 1


class Odd(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network, self.loss, self.metric = nn.Linear(3, 1234), nn.MSELoss(), MeanMetric()
        self.scale = nn.Parameter(torch.zeros(2))
        self.unseen = nn.LazyLinear(4)


def test_losses_metrics_and_what_has_no_shape_yet_are_left_out(capsys):
    assert said(capsys, Odd()) == ["Odd, parameters:", "  network     4,936", "  of its own      2"]
    assert said(capsys, KDE((1, 4, 4))) == ["KDE, parameters:", "  of its own  1"]


def test_the_command_lines_trainer_has_it_in_place_of_lightnings(caplog):
    quiet_lightning()
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    summaries = [c for c in Trainer(**quiet).callbacks if isinstance(c, ModelSummary)]
    assert [type(summary) for summary in summaries] == [NetworkSummary]
    assert "model summary" not in caplog.text
    assert not any(isinstance(c, ModelSummary) for c in Trainer(**quiet, enable_model_summary=False).callbacks)
    chosen = ModelSummary(max_depth=2)
    assert [c for c in Trainer(**quiet, callbacks=[chosen]).callbacks if isinstance(c, ModelSummary)] == [chosen]
