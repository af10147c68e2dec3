"""The report: a strict history that survives stops, and a page that needs nothing from anywhere."""

import json
import math
import os
import re
import time
import warnings
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch.utils.data import DataLoader

from lightning_gen.callbacks import report
from lightning_gen.callbacks.report import Report
from lightning_gen.files import write_atomically
from lightning_gen.generative import GenerativeModule
from lightning_gen.runs import page
from lightning_gen.runs.folder import run_folder
from lightning_gen.runs.page import MAX_POINTS, write_report


class Toy(pl.LightningModule):
    """Descends to zero; `updates` generator updates a batch; a metric on every second batch only."""

    def __init__(self, updates=1, fail_at=None, error=None):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.updates, self.fail_at, self.error = updates, fail_at, error
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.int64))

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


# What a kill, a full disk, a failing one or a person may leave in a file of records.
DAMAGE = [
    '{"step": 6, "tr',
    '{"step": 6, "train/loss": [[1], {"a": null}], "train/x": {"b": 2}, "model": [1], "status": 7, "max_steps": []}',
    '{"step": true, "seconds": {}, "metrics": [1, 2], "checkpoint": {"a": 1}, "model": {}, "data": 1e999}',
    '{"step": 6, "train/loss": 1'
    + "0" * 4000
    + ', "max_steps": 1'
    + "0" * 400
    + ', "images_seen": 1'
    + "0" * 400
    + "}",
    '{"step": 1' + "0" * 400 + ', "seconds": 1e308, "max_steps": NaN, "images_seen": "many"}',
    '{"step": 1' + "0" * 5000 + "}",
    '{"step": 6, "seconds": -1e308, "images_seen": NaN, "\\ud800": "\\udfff", "": 1, "max_steps": -Infinity}',
    '{"step": 6, "a": ' + "[" * 900 + "]" * 900 + ', "metrics": {"a": ' + "[" * 900 + "]" * 900 + "}}",
    "[" * 90_000,
    "\x00" * 40,
    "null",
]


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


def metrics(lines):
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def page_data(run):
    page = (run / "index.html").read_text()
    return strict(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


@pytest.fixture
def run(tmp_path):
    """Where the first run of a test lies."""
    return tmp_path / "run" / "version_0"


@pytest.fixture
def folder(tmp_path):
    """A finished run's folder, made by hand."""
    folder = tmp_path / "runs" / "a & <b>"
    lines = [
        {
            "step": s,
            "seconds": s / 2,
            "train/generator": 1 / s,
            "train/discriminator": "NaN",
            "val/psnr_AtoB": s,
            "val/psnr_BtoA": -s,
        }
        for s in range(1, 50)
    ]
    write_atomically(folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    write_atomically(folder / "config.yaml", "note: </pre><script>alert(1)</script>\n")
    write_atomically(folder / "environment.json", json.dumps({"model": "<i>GAN", "data": "A&B", "status": "finished"}))
    for panel, steps in {"AtoB": (0, 10, 20), "val/50% #1": (5, 20), "test_AtoB": (20,)}.items():
        for step in steps:
            path = folder / "images" / panel / f"step_{step:08d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(path)
    return folder


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


def test_learning_rates_are_recorded(tmp_path, run):
    class Scheduled(Toy):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1), "name": "lr-generator"}]

    trainer(tmp_path, LearningRateMonitor("step"), Report()).fit(Scheduled(), batches())
    assert history(run)[0]["lr-generator"] == pytest.approx(0.01)


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
    assert metrics(history(again)) == metrics(expected), "a new folder begins with what the old one had"
    go_on(logger=CSVLogger(tmp_path, "run", version=1))
    assert metrics(history(stopped)) == metrics(expected), "what came after the checkpoint is taken back"
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
    assert metrics(history(run)) == metrics(expected)


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
    assert metrics(history(run)) == metrics(expected)


def test_each_line_is_written_at_once_and_on_the_disk_before_a_checkpoint(tmp_path, run, monkeypatch):
    order = []
    monkeypatch.setattr(report, "sync_history", lambda path: order.append((path.name, len(history(path.parent)))))

    class Saves(pl.Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / "some.ckpt")
            order.append("saved")

    trainer(tmp_path, Report(), Saves(), max_steps=2, log_every_n_steps=1).fit(Toy(), batches())
    assert order == [("history.jsonl", 1), "saved", ("history.jsonl", 2), "saved"]


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
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


def test_page_says_how_the_run_goes(tmp_path, run, capsys):
    pages = []
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
    assert f"Report: {run / 'index.html'}" in capsys.readouterr().out


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
    assert re.search(r"<th>A to B</th><th>B to A</th>.*<th>psnr</th><td>21.5</td><td>20.25</td>", page)
    assert "<th>fid</th><td>nan</td>" in page
    assert '<span class="pill finished">finished</span>' in page
    assert history(run) == before
    assert not (tmp_path / "run" / "version_1" / "index.html").exists()


def test_results_without_a_run_have_a_page_of_their_own(tmp_path, run):
    trainer(tmp_path, Report()).test(Toy(), batches(1))
    assert "<td>21.5</td>" in (run / "index.html").read_text()


# -- the page


class References(HTMLParser):
    """All that a page would fetch, and all tags."""

    def __init__(self, page):
        super().__init__()
        self.found, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [
            value for name, value in attributes if name in ("src", "href", "srcset", "data", "action", "poster")
        ]


def test_page_needs_nothing_from_outside(folder):
    page = write_report(folder).read_text()
    references = References(page)
    assert not re.search(r"https?:|//|@import|url\((?!#)", re.sub(r"(?s)<pre>.*?</pre>", "", page).replace("url(#", ""))
    assert not {"link", "iframe", "object"} & set(references.tags)
    pictures = {reference for reference in references.found if reference.endswith(".png")}
    assert pictures == set(references.found)
    assert len(pictures) == 3
    for picture in pictures:
        assert (folder / unquote(picture)).is_file()


def test_page_has_all_curves_and_panels(folder):
    write_report(folder)
    data = page_data(folder)
    curves = {chart["title"]: {line["name"]: line for line in chart["lines"]} for chart in data["charts"]}
    assert {title: list(lines) for title, lines in curves.items()} == {
        "train": ["generator", "discriminator"],
        "val/psnr": ["AtoB", "BtoA"],
    }
    assert curves["val/psnr"]["BtoA"]["x"] == list(range(1, 50))
    assert curves["val/psnr"]["BtoA"]["y"] == [-s for s in range(1, 50)]
    assert curves["train"]["discriminator"]["y"] == [None] * 49
    assert curves["train"]["discriminator"]["last"] == "NaN"
    assert [(panel["name"], panel["steps"]) for panel in data["panels"]] == [
        ("AtoB", [0, 10, 20]),
        ("val/50% #1", [5, 20]),
        ("test_AtoB", [20]),
    ]


def test_page_escapes_what_it_shows(folder):
    write_atomically(
        folder / "results.json", json.dumps({"checkpoint": "<c>", "metrics": {"test/<m>_AtoB": 1, "x": None}})
    )
    with (folder / "history.jsonl").open("a") as file:
        file.write(json.dumps({"step": 50, "</script><b>": 1}) + "\n")
    page = write_report(folder, "stopped: <s>").read_text()
    for raw in ("<script>alert", "<i>GAN", "<c>", "<m>", "<s>", "<b>GAN", "</script><b>"):
        assert raw not in page
    assert "<title>&lt;i&gt;GAN on A&amp;B</title>" in page
    assert "a &amp; &lt;b&gt;" in page
    assert page_data(folder)["charts"][-1]["title"] == "</script><b>"


@pytest.mark.parametrize("damage", DAMAGE, ids=range(len(DAMAGE)))
def test_page_of_damaged_files_shows_what_can_be_read(folder, damage):
    good = (folder / "history.jsonl").read_text()
    for name in ("environment.json", "results.json"):
        (folder / name).write_text(damage)
    (folder / "history.jsonl").write_text(f"{damage}\n{good}{damage}")
    write_report(folder)
    curves = {line["name"]: line for chart in page_data(folder)["charts"] for line in chart["lines"]}
    assert curves["BtoA"]["x"] == list(range(1, 50))


def test_pictures_of_odd_names_are_shown_or_left_out(folder):
    images, names = folder / "images", {panel["name"] for panel in panels_of(folder)}
    for name in (
        "step_².png",
        "step_5.png",
        "step_0000000x.png",
        f"step_{'9' * 200}.png",
        "step_-0000001.png",
        "step_.png",
    ):
        (images / "AtoB" / name).write_bytes(b"")
        (images / "odd only").mkdir(exist_ok=True)
        (images / "odd only" / name).write_bytes(b"")
    strange = [
        images / os.fsdecode(b"\xff\xfe"),
        images / '"><script>',
        images / "a\nb",
        images / "%2e%2e",
        images / "AtoB" / "x",
    ]
    for panel in strange:
        panel.mkdir()
        Image.new("RGB", (4, 4)).save(panel / "step_00000003.png")
    shown = panels_of(folder)
    assert {panel["name"] for panel in shown} == names | {path.relative_to(images).as_posix() for path in strange}
    assert next(panel["steps"] for panel in shown if panel["name"] == "AtoB") == [0, 10, 20]
    for panel in shown:
        assert (folder / os.fsdecode(unquote_to_bytes(panel["folder"]))).is_dir()
    assert "<script>" not in (folder / "index.html").read_text().replace("<script>\n", "")


def panels_of(folder):
    write_report(folder)
    return page_data(folder)["panels"]


def test_page_is_a_function_of_the_folder(folder):
    assert write_report(folder).read_bytes() == write_report(str(folder)).read_bytes()
    assert (folder / "index.html").exists()


def test_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither history.jsonl nor pictures in images/"):
        write_report(tmp_path)


def test_many_losses_are_grouped_by_kind():
    kinds = ("generator", "cycle", "identity", "discriminator")
    names = [f"train/{kind}_{domain}" for kind in kinds for domain in "AB"] + [
        "train/total",
        "lr-generator",
        "lr-discriminator",
    ]
    groups = page._groups(names)
    assert list(groups) == [f"train/{kind}" for kind in kinds] + ["train", "lr"]
    assert groups["train"] == ["train/total"]
    assert groups["lr"] == ["lr-generator", "lr-discriminator"]


def test_a_figure_and_its_error_share_a_chart_and_so_do_shares_of_samples():
    shares = [f"val/{name}-lenet64" for name in ("precision", "recall", "density", "coverage")]
    names = ["val/fid-lenet64", "val/is", "val/is_std", "val/kid-lenet64", "val/kid_stderr-lenet64", *shares]
    assert list(page._groups(names).values()) == [names[:1], names[1:3], names[3:5], shares]


def test_long_curves_keep_mean_and_range():
    values = [float(v) for v in torch.rand(7 * MAX_POINTS, dtype=torch.float64)]
    values[3] = math.nan
    curve = page._thinned(list(range(len(values))), values)
    assert len(curve["x"]) == len(curve["y"]) == MAX_POINTS
    assert curve["x"][-1] == len(values) - 1
    for i in (0, 17, MAX_POINTS - 1):
        stretch = [v for v in values[7 * i : 7 * i + 7] if math.isfinite(v)]
        assert curve["y"][i] == pytest.approx(sum(stretch) / len(stretch), rel=1e-5)
        assert (curve["low"][i], curve["high"][i]) == pytest.approx((min(stretch), max(stretch)), rel=1e-5)


@pytest.mark.parametrize(
    ("seconds", "text"), [(59, "59 s"), (3540, "59 min"), (3600, "1 h 00 min"), (3630 * 48, "2.0 days")]
)
def test_durations_read_well(seconds, text):
    assert page._duration(seconds) == text


# -- the folder


@pytest.mark.parametrize("make", [CSVLogger, TensorBoardLogger])
def test_folder_is_that_of_the_logger_and_of_the_checkpoints(tmp_path, make):
    pl_trainer = trainer(tmp_path, logger=make(tmp_path, "run"), enable_checkpointing=True)
    pl_trainer.fit(Toy(), batches())
    assert run_folder(pl_trainer) == Path(pl_trainer.logger.log_dir) == tmp_path / "run" / "version_0"
    assert run_folder(pl_trainer) == Path(pl_trainer.checkpoint_callback.dirpath).parent


def test_folder_without_a_logger(tmp_path):
    assert run_folder(trainer(tmp_path, logger=False, default_root_dir=tmp_path)) == tmp_path


def test_asking_for_the_folder_starts_no_wandb_run(tmp_path):
    logger = WandbLogger(project="toys", save_dir=tmp_path, id="abc")
    assert run_folder(trainer(tmp_path, logger=[logger, CSVLogger(tmp_path)])) == tmp_path / "toys" / "abc"
    assert logger._experiment is None
    assert not list(tmp_path.iterdir())


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
