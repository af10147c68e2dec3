"""The report: a strict history that survives stops, and a page that needs nothing from anywhere."""

import json
import math
import re
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from lightning_gen.callbacks import report
from lightning_gen.callbacks.checkpoint import LastCheckpoint
from lightning_gen.callbacks.report import Report
from lightning_gen.files import write_atomically
from lightning_gen.generative import GenerativeModule
from lightning_gen.runs.curves import curves_of
from lightning_gen.runs.folder import run_folder
from lightning_gen.runs.page import write_report
from tests.shared import repeatable


class Toy(pl.LightningModule):
    """Descends to zero; `updates` generator updates a batch; a metric on every second batch only."""

    def __init__(self, updates=1, fail_at=None, error=None):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.updates, self.fail_at, self.error = updates, fail_at, error
        self.images_seen = 0

    def on_save_checkpoint(self, checkpoint):
        checkpoint["images_seen"] = self.images_seen

    def on_load_checkpoint(self, checkpoint):
        self.images_seen = checkpoint["images_seen"]

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == self.fail_at:
            raise self.error
        for _ in range(self.updates):
            self.optimizers().zero_grad()
            self.manual_backward(self.weight**2)
            self.optimizers().step()
        self.images_seen += len(batch)
        self.log("train/loss", self.weight**2)
        if batch_idx % 2 == 0:
            self.log("train/sometimes", self.weight)
        self.log("train/broken", torch.tensor(math.nan if batch_idx % 2 else math.inf))
        self.log("step", float(self.trainer.global_step))

    def validation_step(self, batch, batch_idx):
        self.log("val/psnr_AtoB", self.weight * 2)
        self.log("step", float(self.trainer.global_step))

    def test_step(self, batch, batch_idx):
        self.log_dict({"test/psnr_AtoB": 21.5, "test/psnr_BtoA": 20.25, "test/fid": math.nan})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Model(GenerativeModule):
    """The same as a model of ours, which goes on exactly."""

    training_step, validation_step = Toy.training_step, Toy.validation_step
    configure_optimizers = Toy.configure_optimizers
    updates, fail_at = 1, None

    def __init__(self):
        super().__init__((1, 1, 1))
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.ones(()))


def batches(num=20):
    return DataLoader(torch.zeros(num, 1))


def trainer(folder, *callbacks, **kwargs):
    settings = {"max_steps": 6, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 2, "num_sanity_val_steps": 1}
    settings |= {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    if "logger" not in kwargs:
        settings["logger"] = CSVLogger(folder, "run")
    return pl.Trainer(callbacks=list(callbacks), **{**settings, **kwargs})


def strict(text):
    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def history(run):
    return [strict(line) for line in (run / "history.jsonl").read_text().splitlines()]


@pytest.fixture
def run(tmp_path):
    """Where the first run of a test lies."""
    return tmp_path / "run" / "version_0"


# -- the history


def test_history_has_a_line_whenever_a_multiple_is_passed_and_after_validation(tmp_path, run):
    trainer(tmp_path, Report(), max_steps=12, log_every_n_steps=4, val_check_interval=3).fit(
        Toy(updates=3), batches(), batches(1)
    )
    lines = history(run)
    # Batches end at steps 3, 6, 9, 12; of these, 6, 9 and 12 pass 4, 8 and 12; validation follows batch 3 = step 9.
    assert [line["step"] for line in lines] == [6, 9, 9, 12]
    assert [line["images_seen"] for line in lines] == [2, 3, 3, 4]
    assert lines[0]["train/loss"] == pytest.approx(0.98 ** (2 * 6))
    assert [line.get("val/psnr_AtoB") for line in lines] == [None, None, pytest.approx(2 * 0.98**9), None]
    assert not any({"step_step", "epoch"} & line.keys() for line in lines)


def test_history_has_values_once_and_is_strict_json(tmp_path, run):
    trainer(tmp_path, Report(), LearningRateMonitor(), log_every_n_steps=1).fit(Toy(), batches())
    lines = history(run)
    assert ["train/sometimes" in line for line in lines] == [True, False] * 3
    assert [line["train/broken"] for line in lines] == ["Infinity", "NaN"] * 3
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert all(0 <= moment < 60 for moment in seconds)
    assert all(0.05 < line["memory_gib"] < 1000 for line in lines)


def test_learning_rates_are_recorded(tmp_path, run):
    class Scheduled(Toy):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1), "name": "lr-generator"}]

    trainer(tmp_path, LearningRateMonitor("step"), Report()).fit(Scheduled(), batches())
    assert history(run)[0]["lr-generator"] == pytest.approx(0.01)


def test_learning_rates_are_recorded_without_a_monitor_and_shown_where_they_change(tmp_path, run):
    class Scheduled(Toy):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            self.trainer.optimizers[0].param_groups[0]["lr"] = 0.01 / self.trainer.global_step

    trainer(tmp_path, Report()).fit(Scheduled(), batches())
    rates = [line["lr"] for line in history(run)]
    assert rates == pytest.approx([0.01 / 2, 0.01 / 4, 0.01 / 6])
    assert curves_of(history(run))["lr"] == ([2, 4, 6], rates)
    assert "lr" not in curves_of(history(run)[:1]), "a straight line says nothing"


def test_stopped_and_resumed_history_is_that_of_one_run(tmp_path, run):
    trainer(tmp_path, Report(), max_steps=12, val_check_interval=4).fit(Toy(), batches(), batches(1))
    expected = history(run)

    stopped, again = tmp_path / "run" / "version_1", tmp_path / "run" / "version_2"
    checkpoint = tmp_path / "half.ckpt"

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 6:
                trainer.save_checkpoint(checkpoint)

    trainer(tmp_path, Report(), Saves(), max_steps=10, val_check_interval=4).fit(Toy(), batches(), batches(1))
    with (stopped / "history.jsonl").open("a") as file:
        file.write('{"step": 10, "seco')  # as a full disk leaves it
    (stopped / "checkpoints").mkdir()
    checkpoint = checkpoint.rename(stopped / "checkpoints" / "half.ckpt")

    def go_on(**kwargs):
        going_on = trainer(tmp_path, Report(), max_steps=12, val_check_interval=4, **kwargs)
        going_on.fit(Toy(), batches(), batches(1), ckpt_path=checkpoint)

    go_on()
    assert repeatable(history(again)) == repeatable(expected), "a new folder begins with what the old one had"
    go_on(logger=CSVLogger(tmp_path, "run", version=1))
    assert repeatable(history(stopped)) == repeatable(expected), "what came after the checkpoint is taken back"
    seconds = [line["seconds"] for line in history(stopped)]
    assert seconds == sorted(seconds)
    assert strict((stopped / "environment.json").read_text())["resumed_from"] == str(checkpoint)


def test_new_run_in_an_old_folder_begins_a_new_history(tmp_path, run):
    for _ in range(2):
        trainer(tmp_path, Report(), logger=CSVLogger(tmp_path, "run", 0)).fit(Toy(), batches())
    assert [line["step"] for line in history(run)] == [2, 4, 6]


def test_fit_called_again_goes_on(tmp_path, run):
    pl_trainer = trainer(tmp_path, Report(), max_steps=4)
    model = Toy()
    pl_trainer.fit(model, batches())
    pl_trainer.fit_loop.epoch_loop.max_steps = 8
    pl_trainer.fit(model, batches())
    lines = history(run)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_end"])
def test_a_validation_at_the_step_of_a_checkpoint_is_recorded_once(tmp_path, run, hook):
    """Before it or after it the checkpoint was written, and what is not in it had been recorded when the run died."""

    class Saves(pl.callbacks.Checkpoint):
        def save(self, trainer):
            if trainer.global_step == 6:
                trainer.save_checkpoint(run / "checkpoints" / "half.ckpt")

    setattr(Saves, hook, lambda self, trainer, *_: self.save(trainer))
    settings = {"max_steps": 8, "val_check_interval": 3, "enable_checkpointing": True}
    trainer(tmp_path, Report(), Saves(), **settings).fit(Model(), batches(), batches(1))
    expected = history(run)
    assert [line["step"] for line in expected] == [2, 3, 4, 6, 6, 8]
    again = trainer(tmp_path, Report(), logger=CSVLogger(tmp_path, "run", 0), **settings)
    again.fit(Model(), batches(), batches(1), ckpt_path=run / "checkpoints" / "half.ckpt")
    assert repeatable(history(run)) == repeatable(expected)


def test_what_came_after_the_last_line_before_a_checkpoint_is_in_the_next_line_after_going_on(tmp_path, run):
    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 3:
                trainer.save_checkpoint(run / "checkpoints" / "half.ckpt")

    trainer(tmp_path, Report(), Saves()).fit(Toy(), batches())
    expected = history(run)
    assert "train/sometimes" in expected[1], "logged in the third step, recorded with the fourth"
    again = trainer(tmp_path, Report(), logger=CSVLogger(tmp_path, "run", 0))
    again.fit(Toy(), batches(), ckpt_path=run / "checkpoints" / "half.ckpt")
    assert repeatable(history(run)) == repeatable(expected)


def test_each_line_is_written_at_once_and_on_the_disk_before_a_checkpoint(tmp_path, run, monkeypatch):
    order = []
    monkeypatch.setattr(report, "sync_history", lambda path: order.append((path.name, len(history(path.parent)))))

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / "some.ckpt")
            order.append("saved")

    trainer(tmp_path, Report(), Saves(), max_steps=2, log_every_n_steps=1).fit(Toy(), batches())
    assert order == [("history.jsonl", 1), "saved", ("history.jsonl", 2), "saved"]


def test_a_damaged_record_is_gone_on_with(tmp_path, run, damage):
    fitted = trainer(tmp_path, Report(), max_steps=4)
    fitted.fit(Toy(), batches())
    fitted.save_checkpoint(run / "checkpoints" / "last.ckpt")
    with (run / "history.jsonl").open("a") as file:
        file.write(damage)
    for name in ("environment.json", "results.json"):
        (run / name).write_text(damage)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The report could not")
        again = trainer(tmp_path, Report(0), logger=CSVLogger(tmp_path, "run", 0))
        again.fit(Toy(), batches(), ckpt_path=run / "checkpoints" / "last.ckpt")
    assert [line["step"] for line in history(run)] == [2, 4, 6]


# -- how a run ends


def test_page_says_how_the_run_goes(tmp_path, run, monkeypatch):
    pages, said = [], []
    monkeypatch.setattr(report, "rank_zero_info", said.append)
    callback = Report()

    class Reads(pl.Callback):
        def on_train_batch_end(self, *_):
            pages.append((run / "index.html").read_text())
            callback.next_page = 0.0

    trainer(tmp_path, callback, Reads()).fit(Toy(), batches())
    for text in pages:
        assert '<meta http-equiv="refresh" content="30">' in text
        assert '<span class="pill running">running</span>' in text
    assert "step <b>4</b> of 6" in pages[-2]
    last = (run / "index.html").read_text()
    assert 'http-equiv="refresh"' not in last
    assert '<span class="pill finished">finished</span>' in last
    assert said == [f"Watch: {run / 'index.html'}"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("The <discriminator> diverged."), "stopped: The &lt;discriminator&gt; diverged."),
        (NotImplementedError(), "stopped: NotImplementedError"),
    ],
)
def test_page_says_what_stopped_the_run(tmp_path, run, error, text):
    with pytest.raises(type(error)) as raised:
        trainer(tmp_path, Report()).fit(Toy(fail_at=5, error=error), batches())
    assert raised.value is error
    page = (run / "index.html").read_text()
    assert text in page
    assert 'http-equiv="refresh"' not in page
    assert page == write_report(run).read_text(), "the files alone must tell it too"
    assert [line["step"] for line in history(run)] == [2, 4]


def test_interrupted_run(tmp_path, run):
    with pytest.raises(SystemExit):
        trainer(tmp_path, Report()).fit(Toy(fail_at=3, error=KeyboardInterrupt()), batches())
    assert strict((run / "environment.json").read_text())["status"] == "stopped: interrupted"


def test_page_is_renewed_as_often_as_asked(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(report, "write_report", lambda folder, status=None: written.append(status))
    trainer(tmp_path, Report(every_n_seconds=1000)).fit(Toy(), batches())
    assert written == ["running", "finished"]
    monkeypatch.setattr(report, "write_report", lambda folder, status=None: time.sleep(0.01))
    callback = Report(every_n_seconds=0)
    trainer(tmp_path, callback).fit(Toy(), batches())
    assert callback.next_page - time.monotonic() > 0.1, "a page that takes long is written seldom"


def test_nothing_is_written_in_a_fast_dev_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer(tmp_path, Report(0), fast_dev_run=2, logger=False).fit(Toy(), batches(), batches())
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("method", ["replace", "open"])
def test_full_disk_costs_the_report_and_not_the_run(tmp_path, run, monkeypatch, method):
    write_atomically(run / "index.html", "earlier")

    def full(path, *args, **kwargs):
        if path.suffix in (".jsonl", ".json", ".html", ".tmp") and "page.html" not in path.name:
            raise OSError(28, "No space left on device")
        return original(path, *args, **kwargs)

    original = getattr(Path, method)
    monkeypatch.setattr(Path, method, full)
    pl_trainer = trainer(tmp_path, Report(0), logger=CSVLogger(tmp_path, "run", 0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pl_trainer.fit(Toy(), batches(), batches(1))
    monkeypatch.undo()
    assert pl_trainer.global_step == 6
    assert sum("No space left on device" in str(warning.message) for warning in caught) == 1
    assert (run / "index.html").read_text() == "earlier"
    assert not list(run.glob(".*"))


# -- test


def test_results_of_a_checkpoint_go_to_its_run(tmp_path, run):
    fitted = trainer(tmp_path, Report())
    fitted.fit(Toy(), batches())
    fitted.save_checkpoint(run / "checkpoints" / "last.ckpt")
    before = history(run)
    trainer(tmp_path, Report()).test(Toy(), batches(1), ckpt_path=run / "checkpoints" / "last.ckpt")
    results = strict((run / "results.json").read_text())
    assert results["metrics"] == {"test/psnr_AtoB": 21.5, "test/psnr_BtoA": 20.25, "test/fid": "NaN"}
    assert (results["checkpoint"], results["step"]) == ("last.ckpt", 6)
    page = (run / "index.html").read_text()
    words = " ".join(re.sub(r"<[^>]*>", " ", page).split())
    assert "PSNR, A to B ↑ 21.5 dB" in words
    assert "PSNR, B to A ↑ 20.25 dB" in words
    assert "FID ↓ nan" in words
    assert '<span class="pill finished">finished</span>' in page
    assert history(run) == before
    assert not (tmp_path / "run" / "version_1" / "index.html").exists()


class Measures(pl.Callback):
    """Says what its figures are of."""

    def __init__(self):
        self.measured_on = {}

    def on_validation_epoch_end(self, *_):
        self.measured_on["val/modes"] = {"samples": 70, "most": 25}

    def on_test_epoch_end(self, *_):
        self.measured_on["test/psnr_BtoA"] = {"samples": 80}


def test_figures_are_recorded_with_the_number_of_pictures_that_they_are_of(tmp_path, run):
    fitted = trainer(tmp_path, Report(), Measures(), val_check_interval=2)
    fitted.fit(Toy(), batches(), batches(1))
    environment = strict((run / "environment.json").read_text())
    assert environment["measured_on"] == {"val/modes": {"samples": 70, "most": 25}}
    fitted.save_checkpoint(run / "checkpoints" / "last.ckpt")
    three = DataLoader(torch.zeros(7, 1), batch_size=3)
    trainer(tmp_path, Report(), Measures()).test(Toy(), three, ckpt_path=run / "checkpoints" / "last.ckpt")
    results = strict((run / "results.json").read_text())
    assert (results["pictures"], results["measured_on"]) == (7, {"test/psnr_BtoA": {"samples": 80}})
    words = " ".join(re.sub(r"<[^>]*>", " ", (run / "index.html").read_text()).split())
    assert "PSNR, A to B ↑ 21.5 dB 7 test pictures PSNR, B to A ↑ 20.25 dB 80 samples" in words

    again = trainer(tmp_path, Report(), max_steps=8, logger=CSVLogger(tmp_path, "run", 0))
    again.fit(Toy(), batches(), ckpt_path=run / "checkpoints" / "last.ckpt")
    assert strict((run / "environment.json").read_text())["measured_on"] == environment["measured_on"]


def test_the_page_knows_the_best_checkpoint_and_the_last(tmp_path, run):
    best = ModelCheckpoint(monitor="val/psnr_AtoB", filename="{step}", mode="max")
    saves = LastCheckpoint(every_n_steps=5)
    settings = {"enable_checkpointing": True, "max_steps": 6, "val_check_interval": 2}
    trainer(tmp_path, Report(), best, saves, **settings).fit(Toy(), batches(), batches(1))
    environment = strict((run / "environment.json").read_text())
    (found,) = environment["best_checkpoints"]
    assert found["value"] == pytest.approx(2 * 0.98**2)
    assert (found["monitor"], found["step"], found["path"]) == ("val/psnr_AtoB", 2, "checkpoints/step=2.ckpt")
    assert environment["last_checkpoint"] == 6
    words = " ".join(re.sub(r"<[^>]*>", " ", (run / "index.html").read_text()).split())
    assert "best checkpoint checkpoints/step=2.ckpt val/psnr_AtoB: 1.921 dB , step 2" in words
    assert "last checkpoint checkpoints/last.ckpt step 6" in words


def test_the_data_s_names_of_domains_are_recorded(tmp_path, run):
    class Data(pl.LightningDataModule):
        domains = ("day", "<night>")

        def train_dataloader(self):
            return batches()

    trainer(tmp_path, Report()).fit(Toy(), datamodule=Data())
    assert strict((run / "environment.json").read_text())["domains"] == ["day", "<night>"]


def test_results_without_a_run_have_a_page_of_their_own(tmp_path, run):
    trainer(tmp_path, Report()).test(Toy(), batches(1))
    assert "<td>21.5 dB</td>" in (run / "index.html").read_text()


# -- processes


def test_ranks_agree_on_the_folder_and_only_the_first_writes(tmp_path):
    class LikeWandb(CSVLogger):
        """Knows the run's identity on rank zero only."""

        @property
        def version(self):
            return "first" if rank_zero_only.rank == 0 else None

    class Tells(pl.Callback):
        def on_train_end(self, trainer, _):
            (tmp_path / f"rank{trainer.global_rank}").write_text(str(run_folder(trainer)))

    run = tmp_path / "run" / "first"
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo")
    logger = LikeWandb(tmp_path, "run")
    trainer(tmp_path, Report(0), Tells(), devices=2, strategy=strategy, logger=logger).fit(Toy(), batches())
    assert (tmp_path / "rank0").read_text() == (tmp_path / "rank1").read_text() == str(run)
    assert [line["step"] for line in history(run)] == [2, 4, 6]
    assert [path.name for path in run.parent.iterdir()] == ["first"]
    assert strict((run / "environment.json").read_text())["world_size"] == 2
