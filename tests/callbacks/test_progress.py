"""Progress: a rate in images, one line on a terminal, and log files without carriage returns."""

import fcntl
import logging
import os
import pty
import re
import struct
import sys
import termios
import traceback
from contextlib import suppress
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_gen.callbacks import progress, throughput
from lightning_gen.callbacks.progress import ProgressBar, chosen_figures
from lightning_gen.callbacks.throughput import Throughput
from lightning_gen.data.batches import batch_size
from lightning_gen.models import WGANGP, CycleGAN
from lightning_gen.networks import MLPDiscriminator, MLPGenerator, PatchDiscriminator, ResNetGenerator

SECONDS = 0.5  # that each training batch takes


class Clock:
    """Stands still until it is told."""

    now = 1000.0

    def monotonic(self):
        return self.now


class Toy(pl.LightningModule):
    def __init__(self, clock):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.clock = clock

    def training_step(self, batch, batch_idx):
        self.clock.now += SECONDS
        self.log("train/loss", 0.123456, prog_bar=True)
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        self.clock.now += 100

    test_step = predict_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 48

    def __getitem__(self, i):
        return {"A": torch.zeros(3, 2, 2), "B": torch.zeros(3, 2, 2)}


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (progress, throughput):
        monkeypatch.setattr(module, "time", clock)
    return clock


def fit(folder, clock, bar, **kwargs):
    settings = {"max_steps": 12, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1, "num_sanity_val_steps": 0}
    settings |= {"enable_checkpointing": False, "enable_model_summary": False, "logger": CSVLogger(folder, "run")}
    trainer = pl.Trainer(callbacks=bar, **{**settings, **kwargs})
    trainer.fit(Toy(clock), DataLoader(Pairs(), 4), DataLoader(Pairs(), 4))
    return trainer


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (torch.zeros(5, 3), 5),
        ({"A": torch.zeros(4, 3), "B": torch.zeros(7, 3)}, 4),
        ({"path": ["a", "b"], "pictures": (torch.zeros(2, 3), torch.zeros(9))}, 2),
        ([torch.tensor(1.0), torch.zeros(6)], 6),
        ("no pictures", 0),
    ],
)
def test_batch_size_is_the_length_of_the_first_tensor(batch, size):
    assert batch_size(batch) == size


def test_rate_counts_images_once_over_all_ranks_and_without_validation(tmp_path, clock, monkeypatch):
    bar = ProgressBar()
    shown = []
    monkeypatch.setattr(pl.Trainer, "world_size", property(lambda self: 3))
    monkeypatch.setattr(bar, "on_train_epoch_end", lambda *_: shown.append(bar.throughput.images_per_second))
    fit(tmp_path, clock, bar, val_check_interval=5, limit_val_batches=2)
    assert shown == [4 * 3 / SECONDS]


def test_rate_is_that_of_the_last_seconds(clock):
    rate = Throughput()
    for seconds in (1.0, 0.01):
        for _ in range(2000):
            rate.count(8)
            clock.now += seconds
    assert rate.images_per_second == pytest.approx(8 / 0.01, rel=1e-3)


def lines_of(out):
    return [line for line in out.splitlines() if line.startswith("step")]


def test_plain_lines_where_nobody_watches(tmp_path, clock, capsys):
    fit(tmp_path, clock, ProgressBar(every_n_seconds=2.5), max_steps=13, limit_val_batches=0)
    out, err = capsys.readouterr()
    assert "\r" not in out + err
    assert "it/s" not in out + err
    # Batches end every half second: lines after 5 and 10 of them, and at the end.
    assert lines_of(out) == [
        "step 5/13, 8 img/s, left 00:04, loss 0.123",
        "step 10/13, 8 img/s, left 00:02, loss 0.123",
        "step 13/13, 8 img/s, loss 0.123",
    ]


def test_time_left_follows_whichever_end_comes_first(tmp_path, clock, capsys):
    fit(tmp_path, clock, ProgressBar(every_n_seconds=2.0), max_steps=1000, max_epochs=2, limit_val_batches=0)
    first = lines_of(capsys.readouterr().out)[0]
    assert first == "step 4/24, 8 img/s, left 00:10, loss 0.123", "24 batches, of which 4 took 2 seconds"


def test_steps_are_those_of_max_steps_where_several_batches_make_one(tmp_path, clock, capsys):
    settings = {"limit_val_batches": 0, "accumulate_grad_batches": 5, "max_steps": -1, "max_epochs": 2}
    fit(tmp_path, clock, ProgressBar(every_n_seconds=2.5), **settings)
    lines = lines_of(capsys.readouterr().out)
    assert lines[0].startswith("step 1/6, 8 img/s, left 00:12")
    assert lines[-1].startswith("step 6/6")

    class ThreeToOne(Toy):
        def steps_in(self, batches):
            return batches // 3

    trainer = pl.Trainer(accelerator="cpu", max_epochs=2, max_steps=7, logger=False, barebones=True)
    trainer.fit_loop.max_batches = 12
    assert progress.last_step(trainer, ThreeToOne(clock)) == 7
    trainer.fit_loop.epoch_loop.max_steps = -1
    assert progress.last_step(trainer, ThreeToOne(clock)) == 8
    trainer.fit_loop.max_epochs = -1
    assert progress.last_step(trainer, ThreeToOne(clock)) is None


def test_figures_are_few():
    metrics = {f"train/{name}": value for name, value in zip("abcd", range(4), strict=True)}
    assert chosen_figures(metrics) == {"a": 0, "b": 1, "c": 2}
    metrics = {"train/cycle_A": 1.0, "train/cycle_B": 2.0, "train/identity_A": 5.0, "train/generator_AtoB": 3.0}
    assert list(chosen_figures(metrics, CycleGAN.progress_figures).items()) == [
        ("generator", 3), ("cycle", 1.5), ("identity_A", 5)
    ]  # fmt: skip
    metrics = {"train/discriminator": 1.0, "train/GradientPenalty": 2.0, "train/generator": 3.0}
    assert list(chosen_figures(metrics, WGANGP.progress_figures)) == ["generator", "discriminator", "GradientPenalty"]


@pytest.mark.parametrize("bar", [ProgressBar(refresh_rate=0), ProgressBar(every_n_seconds=1e9)])
def test_no_lines_when_turned_off_or_not_due(tmp_path, clock, capsys, bar):
    fit(tmp_path, clock, bar)
    assert len(lines_of(capsys.readouterr().out)) == (0 if bar.refresh_rate == 0 else 1)


class Talk(pl.Callback):
    """Says something after each batch, in every way that there is."""

    def on_train_batch_end(self, trainer, *_):
        step = trainer.global_step
        print(f"printed {step}", end="")
        print(" in two pieces")
        print(f"warned {step}", file=sys.stderr)  # as warnings are
        logging.getLogger("lightning.pytorch").info(f"logged {step}")


def on_terminal(columns, folder, *arguments):
    """What `function(*arguments)` leaves on a terminal of so many columns, as lines; and all lines that it ever had."""
    process, terminal = pty.fork()
    if process == 0:  # the child
        try:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
            sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
            for handler in progress._stream_handlers():
                handler.setStream(sys.stderr)
            arguments[0](folder, *arguments[1:])
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    text = b""
    with suppress(OSError):  # how a terminal says that it has ended
        while piece := os.read(terminal, 65536):
            text += piece
    os.waitpid(process, 0)
    lines, row, column, frames = [""], 0, 0, set()
    for piece in re.findall("\x1b\\[A|\r|\n|[^\x1b\r\n]+", text.decode()):
        if piece == "\r":
            frames.add(lines[row].rstrip())
            column = 0
        elif piece == "\n":
            frames.add(lines[row].rstrip())
            row += 1
            lines += [""] * (row == len(lines))
        elif piece == "\x1b[A":
            row -= 1
        else:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + piece + line[column + len(piece) :]
            column += len(piece)
            assert "| step" not in piece or len(lines[row].rstrip()) <= columns, "which would break the line in two"
    return [line.rstrip() for line in lines], frames


def fit_and_talk(folder):
    clock = Clock()
    progress.time = throughput.time = clock
    settings = {"val_check_interval": 5, "limit_val_batches": 3, "logger": False}
    fit(folder, clock, [ProgressBar(), Talk()], **settings)


@pytest.mark.parametrize("columns", [80, 160])
def test_one_line_on_a_terminal_and_whatever_is_said_above_it(tmp_path, columns):
    lines, frames = on_terminal(columns, tmp_path, fit_and_talk)
    text = "\n".join(lines)
    for step in range(1, 13):
        assert f"printed {step} in two pieces" in lines, text
        assert f"INFO: logged {step}" in lines, text
        assert f"warned {step}" in lines, text
    bars = [line for line in lines if "| step" in line]
    assert len(bars) == 1, text
    assert bars[0].endswith("| step 12/12, 8 img/s, loss 0.123")
    assert len(bars[0]) == columns - 1
    assert bars[0].startswith("\u2588" * 20)
    shown = {frame.partition("| ")[2] for frame in frames if "| step" in frame}
    assert "step 4/12, 8 img/s, left 00:04, loss 0.123" in shown
    assert any(re.search("step 5/12, .* validating 2/3", words) for words in shown)
    assert not any("it/s" in frame for frame in frames)


class TalkAtTest(pl.Callback):
    """Says something when a test, a validation or a prediction begins, and after each batch of it."""

    def on_test_start(self, *_):
        print("begun")

    def on_test_batch_end(self, *_):
        print("batch")

    on_validation_start = on_predict_start = on_test_start
    on_validation_batch_end = on_predict_batch_end = on_test_batch_end


def look_and_talk(folder, what):
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = pl.Trainer(callbacks=[ProgressBar(), TalkAtTest()], default_root_dir=folder, **settings)
    getattr(trainer, what)(
        Toy(Clock()), DataLoader(torch.zeros(3, 1), 1), **({} if what == "predict" else {"verbose": False})
    )


@pytest.mark.parametrize("what", ["test", "validate", "predict"])
def test_whatever_is_said_comes_above_the_other_bars_too(tmp_path, what):
    lines, _ = on_terminal(80, tmp_path, look_and_talk, what)
    said = [line for line in lines if "begun" in line or "batch" in line]
    assert said == ["begun", "batch", "batch", "batch"], "\n".join(lines)
    assert sum("3/3" in line for line in lines) == 1


class Stop(pl.Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step == 6


def fit_cyclegan(folder):
    image = torch.zeros(3, 16, 16)
    model = CycleGAN(
        (3, 16, 16), partial(ResNetGenerator, filters=2, blocks=1), partial(PatchDiscriminator, filters=2, layers=1)
    )
    data = DataLoader([{"A": image, "B": image}] * 8, 1)
    trainer = pl.Trainer(
        callbacks=[ProgressBar(), Stop()], max_steps=3600, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, data)


@pytest.mark.parametrize(("columns", "number"), [(80, 2), (160, 3)])
def test_figures_of_a_model_that_has_many_fit_the_width(tmp_path, columns, number):
    (line,) = [line for line in on_terminal(columns, tmp_path, fit_cyclegan)[0] if "| step 6/3600, " in line]
    bar, _, words = line.partition("| ")
    assert len(bar) >= progress.SHORTEST
    names = ["G", "D", "cycle"][:number]
    assert [part.split()[0] for part in words.split(", ")[3:]] == names, line


def fit_gan(folder):
    model = WGANGP((2, 1, 1), MLPGenerator, partial(MLPDiscriminator, maxout=1), latent_size=2, n_critic=5)
    trainer = pl.Trainer(
        callbacks=[ProgressBar()], max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(model, DataLoader(torch.zeros(80, 2, 1, 1), 4))


def test_critic_updates_are_no_steps(tmp_path):
    lines, frames = on_terminal(160, tmp_path, fit_gan)
    steps = {int(step) for frame in frames for step in re.findall(r"step (\d+)/3,", frame)}
    assert max(steps) == 3
    assert any("step 3/3, " in line for line in lines), lines


def test_the_terminal_is_given_back(tmp_path, clock, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    streams = sys.stdout, sys.stderr

    class Fails(pl.Callback):
        def on_train_batch_end(self, *_):
            assert isinstance(sys.stdout, progress.Above)
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fit(tmp_path, clock, [ProgressBar(), Fails()])
    assert (sys.stdout, sys.stderr) == streams


def test_time_between_lines_is_checked():
    with pytest.raises(ValueError, match="above 0, got 0"):
        ProgressBar(every_n_seconds=0)
