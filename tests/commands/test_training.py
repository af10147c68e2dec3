import csv
import json
import logging
import os
import re
import shutil
import struct
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from jsonargparse import Namespace
from PIL import Image

from benchmarks.shipped import small_model
from lightning_gen.callbacks import LastCheckpoint
from lightning_gen.checkpoints import read_checkpoint
from lightning_gen.cli import main
from lightning_gen.commands import beforehand
from lightning_gen.commands.configs import config_folder
from lightning_gen.commands.going_on import limit_reached, with_configs
from lightning_gen.commands.loggers import prepare_wandb, run_name
from lightning_gen.commands.trainer import Trainer, quiet_lightning
from lightning_gen.commands.training import CommandLine
from lightning_gen.commands.what_next import say_next_of_run
from lightning_gen.data import UnpairedScenes
from lightning_gen.data.images import read_image, to_uint8
from lightning_gen.generative import GenerativeModule
from lightning_gen.models import DCGAN, GAN, VQVAE, CycleGAN, PixelCNN
from lightning_gen.runs.folder import find_checkpoint, find_checkpoints
from tests.shared import repeatable

RUN = Path("runs/cyclegan/version_0")
LAST = RUN / "checkpoints" / "last.ckpt"


def exit_code(*arguments):
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code or 0


def with_warnings(*arguments):
    """The exit code, and the warnings that a user would see."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):  # as in Python
            warnings.simplefilter("ignore", hidden)
        code = exit_code(*arguments)
    return code, [str(warning.message) for warning in caught]


def table(run=RUN):
    return repeatable((run / "history.jsonl").read_text().splitlines())


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- configurations -------------------------------------------------------------------------------------------------


def test_shipped_configurations_are_given_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cyclegan, paper = (str(config_folder() / name) for name in ("cyclegan.yaml", "paper/pix2pix_facades.yaml"))
    found = with_configs(
        ["fit", "--config", "cyclegan", "-c", "paper/pix2pix_facades", "--config=configs/cyclegan.yaml"]
    )
    assert found == ["fit", "--config", cyclegan, "-c", paper, f"--config={cyclegan}"]
    assert with_configs(["fit", "--model", "CycleGAN", "--config"]) == ["fit", "--model", "CycleGAN", "--config"]
    with pytest.raises(FileNotFoundError, match=r"Did you mean cyclegan\?"):
        with_configs(["fit", "--config", "cycelgan"])


def test_a_checkpoint_brings_the_configuration_of_its_run(tmp_path, fresh_process):
    run, checkpoint = tmp_path, str(tmp_path / "checkpoints" / "last.ckpt")
    Path(checkpoint).parent.mkdir()
    Path(checkpoint).touch()
    with pytest.raises(ValueError, match=r"last\.ckpt lies in the folder of no run, .* Name that config"):
        with_configs(["fit", "--ckpt_path", checkpoint])
    whole = ["fit", "--model", "CycleGAN", "--data=Scenes", "--ckpt_path", checkpoint]
    assert with_configs(whole) == whole
    (run / "config.yaml").write_text("")
    config = str(run / "config.yaml")
    # Before all other options, which have the last word.
    for given in (["--ckpt_path", checkpoint], [f"--ckpt_path={checkpoint}"], ["--ckpt_path", str(run)]):
        options = ["--trainer.max_steps", "7", *given]
        # In a process of its own, for what such a configuration may name is restricted for good.
        assert fresh_process(with_configs, ["fit", *options]) == ["fit", "--config", config, *options]
        options = ["--config", config, *given]
        assert with_configs(["test", *options]) == ["test", *options]


def limits_of(config, *arguments):
    cli = CommandLine(
        GenerativeModule,
        pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        trainer_class=Trainer,
        save_config_callback=None,
        args=["--config", config, *arguments],
        run=False,
    )
    return [repr(getattr(cli.trainer, f"limit_{name}_batches")) for name in ("train", "val", "test", "predict")]


def test_one_batch_is_not_all_of_them(tiny, fresh_process):
    tiny["trainer"] |= {"limit_train_batches": 1, "limit_val_batches": 1, "limit_test_batches": 1.0}
    found = fresh_process(limits_of, tiny.write(), "--trainer.limit_predict_batches", "1")
    assert found == ["1", "1", "1.0", "1"]


# -- one run, one folder --------------------------------------------------------------------------------------------


def fit_until_killed(*arguments):
    """The process dies, as by kill -9, after the third step."""

    def die(self, trainer, *_):
        if trainer.global_step == 3:
            os._exit(9)

    LastCheckpoint.on_train_batch_start = die
    main([str(argument) for argument in arguments])


def test_a_checkpoint_is_enough_to_go_on_in_its_run(tiny, command, fresh_process):
    tiny["trainer"] |= {"max_steps": 5, "val_check_interval": 2, "check_val_every_n_epoch": None}
    tiny["checkpoint"] = {"every_n_steps": 2}
    config = tiny.write()
    assert command("fit", "--config", config, "--trainer.default_root_dir", "through").code == 0
    fresh_process(fit_until_killed, "fit", "--config", config)
    before = (RUN / "config.yaml").read_text()
    assert read_checkpoint(LAST)["global_step"] == 2
    assert [row["step"] for row in table() if "train/cycle_A" in row] == [1, 2, 3]

    ended = command("fit", "--ckpt_path", LAST)
    assert ended.code == 0, ended.err
    # The x-axis counts generator updates, and the run of two pieces has recorded what the whole one has.
    assert [row["step"] for row in table() if "train/cycle_A" in row] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in table() if "val/psnr_AtoB" in row] == [2, 4]
    assert table() == table(Path("through/cyclegan/version_0"))
    assert read_checkpoint(LAST)["global_step"] == 5
    assert [path.name for path in Path("runs/cyclegan").iterdir()] == ["version_0"]
    # It can be started anew, too: nothing of this start stands in the configuration.
    assert (RUN / "config.yaml").read_text() == before
    assert yaml.safe_load(before)["ckpt_path"] is None

    # The other commands make no folders of their own.
    for name in ("test", "validate"):
        ended = command(name, "--ckpt_path", LAST)
        assert ended.code == 0, ended.err
    assert json.loads((RUN / "results.json").read_text())["step"] == 5
    assert [path.name for path in Path("runs/cyclegan").iterdir()] == ["version_0"]
    assert [row["step"] for row in table() if "train/cycle_A" in row] == [1, 2, 3, 4, 5]
    assert not Path("lightning_logs").exists()


def test_checkpoints_named_by_a_metric_stay_with_their_run(tiny, command):
    """In one folder, and known by the same names to all commands; brackets in the run's path are letters."""
    best = {"monitor": "val/psnr_AtoB", "mode": "max", "save_top_k": 2, "filename": "{step}-{val/psnr_AtoB:.1f}"}
    tiny["trainer"]["callbacks"] = [{"class_path": "ModelCheckpoint", "init_args": best}]
    tiny["trainer"] |= {"default_root_dir": "[runs]", "val_check_interval": 2, "check_val_every_n_epoch": None}
    assert command("fit", "--config", tiny.write()).code == 0
    run = "[runs]" / RUN.relative_to("runs")
    names = [re.sub(r"=[\d.]+", "=N", path.stem) for path in find_checkpoints(str(run))]
    assert names == ["last", "step=N-val_psnr_AtoB=N", "step=N-val_psnr_AtoB=N"]
    assert sorted(path.name for path in run.iterdir() if path.is_dir()) == ["checkpoints", "images"]
    kept = find_checkpoint(run / "best").name
    for name, tested in ((run, "last.ckpt"), (run / "best", kept), (run / "checkpoints" / kept, kept)):
        ended = command("test", "--ckpt_path", name)
        assert ended.code == 0, ended.err
        assert json.loads((run / "results.json").read_text())["checkpoint"] == tested
    Path("in").mkdir()
    Image.new("RGB", (16, 16)).save("in/a.png")
    assert command("translate", "--checkpoint", run / "best", "--input", "in", "--output", "out").code == 0
    # A copy says what is missing.
    shutil.copy(run / "checkpoints" / kept, "copy.ckpt")
    assert_one_message(command("test", "--ckpt_path", "copy.ckpt"), "copy.ckpt lies in the folder of no run, whose con")
    assert command("test", "--ckpt_path", "copy.ckpt", "--config", run / "config.yaml").code == 0


def test_the_best_is_one_option(tiny, command):
    tiny["trainer"] |= {"val_check_interval": 2, "check_val_every_n_epoch": None}
    assert command("fit", "--config", tiny.write(), "--checkpoint.best", "val/psnr_AtoB").code == 0
    best = find_checkpoint(RUN / "best")
    assert re.fullmatch(r"best-step=\d+\.ckpt", best.name)
    assert command("test", "--ckpt_path", RUN / "best").code == 0
    assert json.loads((RUN / "results.json").read_text())["checkpoint"] == best.name


def test_what_is_given_with_the_checkpoint_has_the_last_word(tiny, command):
    config = tiny.write()
    assert command("fit", "--config", config, "--trainer.max_steps", 2).code == 0
    changed = ["--model.lambda_A", 7, "--model.learning_rate", 1e-5, "--model.decay_start", 1]
    assert command("fit", "--ckpt_path", LAST, "--trainer.max_steps", 3, *changed).code == 0
    # What is recorded is what was used.
    checkpoint, config = read_checkpoint(LAST), yaml.safe_load((RUN / "config.yaml").read_text())["model"]["init_args"]
    assert [state["param_groups"][0]["lr"] for state in checkpoint["optimizer_states"]] == [1e-5, 1e-5]
    for recorded in (checkpoint["hyper_parameters"], config):
        assert (recorded["lambda_A"], recorded["learning_rate"]) == (7, 1e-5)
    assert [row["step"] for row in table() if "train/cycle_A" in row] == [1, 2, 3]


def test_a_run_that_has_ended_says_what_to_raise(tiny, command):
    assert command("fit", "--config", tiny.write(), "--test_after_fit", "true").code == 0
    before = contents(RUN)
    ended = command("fit", "--ckpt_path", RUN)
    words = "This run has ended at step 4: it has reached trainer.max_steps (4). Raise that to go on. To test it: "
    also = f"To start another run from its weights: lightning-gen fit --config FILE --init_from {LAST}\n"
    assert (ended.code, ended.out) == (0, f"{words}lightning-gen test --ckpt_path {LAST}. {also}")
    assert contents(RUN) == before
    epochs = ["--trainer.max_steps", -1, "--trainer.max_epochs"]  # there are 3 batches in one
    ended = command("fit", "--ckpt_path", RUN, *epochs, 1)
    assert "it has reached trainer.max_epochs (1). Raise that" in ended.out
    assert command("fit", "--ckpt_path", RUN, *epochs, 2).code == 0
    assert read_checkpoint(LAST)["global_step"] == 6
    assert json.loads((RUN / "results.json").read_text())["step"] == 6
    # A run that was killed in its last moments has its record finished.
    environment = json.loads((RUN / "environment.json").read_text())
    (RUN / "environment.json").write_text(json.dumps({**environment, "status": "running"}))
    (RUN / "index.html").unlink()
    assert "it has reached trainer.max_epochs (2)" in command("fit", "--ckpt_path", RUN).out
    assert json.loads((RUN / "environment.json").read_text()) == environment
    assert 'http-equiv="refresh"' not in (RUN / "index.html").read_text()


def test_time_and_patience_that_are_used_up_are_limits_too(tiny, command):
    patience = {"monitor": "val/psnr_AtoB", "patience": 1, "min_delta": 100, "mode": "max"}
    tiny["trainer"] |= {"max_steps": 20, "val_check_interval": 2, "check_val_every_n_epoch": None}
    tiny["trainer"]["callbacks"] = [{"class_path": "EarlyStopping", "init_args": patience}]
    assert command("fit", "--config", tiny.write()).code == 0
    assert "it has reached the patience of EarlyStopping (1). Raise that" in command("fit", "--ckpt_path", RUN).out
    checkpoint = read_checkpoint(LAST)
    checkpoint["callbacks"]["Timer"] = {"time_elapsed": {"train": 100.0}}
    settings = Namespace(max_steps=-1, max_epochs=None, max_time="00:00:01:40", callbacks=None)
    assert limit_reached(checkpoint, settings) == "trainer.max_time (00:00:01:40)"
    settings.max_time = "00:00:01:41"
    assert limit_reached(checkpoint, settings) is None


def fit_while_another_does(*arguments):
    """While the fifth step is made, other processes ask to go on in the same run, and to test it; their exit codes."""
    codes = []

    def ask(self, trainer, *_):
        if trainer.global_step == 4 and not codes:
            for name in ("fit", "test"):
                process = os.fork()
                if not process:
                    os._exit(exit_code(name, "--ckpt_path", LAST))
                codes.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))

    LastCheckpoint.on_train_batch_start = ask
    return exit_code(*arguments), codes


def test_only_one_process_trains_in_a_run(tiny, fresh_process, capfd):
    tiny["checkpoint"] = {"every_n_steps": 1}
    fresh_process(fit_until_killed, "fit", "--config", tiny.write())
    # A killed process holds nothing, whatever it has left.
    (RUN / ".lock").write_text("Process 1 on another machine, which was killed")
    capfd.readouterr()
    steps = ["--trainer.max_steps", 6]
    assert fresh_process(fit_while_another_does, "fit", "--ckpt_path", LAST, *steps) == (0, [1, 0])
    error = capfd.readouterr().err
    assert re.search(
        rf"error: Process \d+ on \S+ is training in {RUN.absolute()}, and two would write over each", error
    )
    assert not (RUN / ".lock").exists()


def test_new_runs_get_new_folders(tiny, command):
    tiny["trainer"]["max_steps"] = 1
    tiny["trainer"]["default_root_dir"] = "elsewhere"
    for number in range(2):
        command("fit", "--config", tiny.write())
        assert len(table(Path(f"elsewhere/cyclegan/version_{number}"))) == 1


def events(folder):
    """Steps of all scalars and pictures that TensorBoard shows of a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    shown.Reload()
    scalars = {tag: [event.step for event in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}
    return scalars | {tag: [event.step for event in shown.Images(tag)] for tag in shown.Tags()["images"]}


def test_runs_of_tensorboard_lie_where_others_do_and_have_no_figure_of_minus_one(tiny, command):
    pytest.importorskip("tensorboard")
    tiny["trainer"]["max_steps"] = 1
    assert command("fit", "--config", tiny.write(), "--trainer.logger", "TensorBoardLogger").code == 0
    tiny["trainer"]["logger"] = {"class_path": "lightning.pytorch.loggers.TensorBoardLogger"}
    assert command("fit", "--config", tiny.write(), "--trainer.default_root_dir", "elsewhere").code == 0
    for run in (RUN, Path("elsewhere/cyclegan/version_0")):
        assert (run / "history.jsonl").is_file()
        shown = events(run)
        assert shown["train/cycle_A"] == [1]
        assert not [name for name in shown if "hp_metric" in name]
    ended = command("fit", "--ckpt_path", run / "checkpoints/last.ckpt", "--trainer.max_steps", 2)
    assert ended.code == 0, ended.err
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    assert events(run)["train/cycle_A"] == [1, 2]
    tiny["trainer"]["logger"] = ["CSVLogger"]
    assert command("fit", "--config", tiny.write(), "--trainer.default_root_dir", "third").code == 0
    command("fit", "--config", tiny.write(), "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "named")
    for folder in ("third", "named"):
        assert Path(f"{folder}/cyclegan/version_0/metrics.csv").is_file()


@pytest.mark.parametrize(
    ("files", "model", "name"),
    [
        (["wgan_gp"], "lightning_gen.models.WGANGP", "wgan_gp"),
        (["wgan_gp", "own.yaml"], "lightning_gen.models.WGANGP", "wgan_gp"),
        (["paper/wgan_gp_cifar10"], "lightning_gen.models.WGANGP", "wgan_gp_cifar10"),
        (["vqvae_prior"], "lightning_gen.models.CodePrior", "vqvae_prior"),
        ([], "lightning_gen.models.WGANGP", "wgan_gp"),
        (["own.yaml"], "lightning_gen.models.TextToImage", "text_to_image"),
        (["runs/wgan_gp/version_0/config.yaml"], "WGANGP", "wgan_gp"),
        (["own.yaml"], "mine.OwnGAN", "owngan"),
    ],
)
def test_runs_are_called_as_configurations_are(files, model, name):
    files = [str(config_folder() / f"{file}.yaml") if ".yaml" not in file else file for file in files]
    assert run_name(Namespace(config=files, model=Namespace(class_path=model))) == name


def test_tensorboard_goes_on_in_the_folder_of_the_run(tiny, command, fresh_process):
    pytest.importorskip("tensorboard")
    tiny["checkpoint"] = {"every_n_steps": 2}
    tiny["trainer"]["logger"] = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "logs", "name": "tb"}}
    fresh_process(fit_until_killed, "fit", "--config", tiny.write())
    assert command("fit", "--ckpt_path", "logs/tb/version_0/checkpoints/last.ckpt").code == 0
    assert [path.name for path in Path("logs/tb").iterdir()] == ["version_0"]
    shown = events("logs/tb/version_0")
    assert shown["train/cycle_A"] == [1, 2, 3, 4]
    assert shown["AtoB"] == [0, 4]


def csv_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("version", [None, "mine"])
def test_lightning_s_csv_logger_goes_on_in_the_folder_of_the_run(tiny, command, fresh_process, version):
    tiny["checkpoint"] = {"every_n_steps": 2}
    csv_logger = {"save_dir": "logs", "name": "csv", "version": version, "flush_logs_every_n_steps": 1}
    tiny["trainer"]["logger"] = {"class_path": "CSVLogger", "init_args": csv_logger}
    fresh_process(fit_until_killed, "fit", "--config", tiny.write())
    run = Path("logs/csv") / (version or "version_0")
    with (run / "metrics.csv").open("a") as table:
        table.write("0.1,0.2")  # the disk was full
    last = run / "checkpoints" / "last.ckpt"
    ended = command("fit", "--ckpt_path", run, "--test_after_fit", "true")
    assert ended.code == 0, ended.err
    assert [path.name for path in Path("logs/csv").iterdir()] == [run.name]
    rows = csv_rows(run / "metrics.csv")
    assert [row["step"] for row in rows if row["train/cycle_A"]] == ["1", "2", "3", "4"]
    assert [row["step"] for row in rows if row["test/cycle_A"]] == ["4"]
    config = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["logger"]
    assert (config["class_path"], config["init_args"]["version"]) == ("lightning.pytorch.loggers.CSVLogger", version)
    # A test of its own has the step, too.
    elsewhere = ["--trainer.logger.save_dir", "tests", "--trainer.logger.version", "here"]
    assert command("test", "--ckpt_path", last, *elsewhere).code == 0
    assert [row["step"] for row in csv_rows(Path("tests/csv/here/metrics.csv"))] == ["4"]


# -- Weights & Biases -----------------------------------------------------------------------------------------------


def wandb_logger(**arguments):
    return Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=Namespace(**arguments))


def test_the_wandb_run_of_a_checkpoint_goes_on(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    # As the command line gives it: resume=None would make W&B overwrite the run.
    loggers = [Namespace(class_path="RunLogger", init_args=Namespace()), wandb_logger(id=None, resume=None)]
    prepare_wandb(loggers, {"wandb_id": "abc"})
    assert loggers[1].init_args.as_dict() == {"id": "abc", "resume": "allow"}
    chosen = wandb_logger(id="mine", resume="must")
    prepare_wandb(chosen, {"wandb_id": "abc"})
    assert chosen.init_args.as_dict() == {"id": "mine", "resume": "must"}
    for checkpoint in ({"state_dict": {}}, None):
        new = wandb_logger(id=None)
        prepare_wandb(new, checkpoint)
        assert new.init_args.as_dict() == {"id": None, "resume": "allow"}
    prepare_wandb(False, None)


def fit_with_wandb(*arguments):
    import wandb

    ended = with_warnings("fit", *arguments)
    wandb.finish()  # which W&B does by itself when a process ends in the usual way
    return ended


def wandb_records(path):
    """The records of a run file: a header of 7 bytes, then protobuf in LevelDB's log format (blocks of 32 KiB)."""
    from wandb.proto import wandb_internal_pb2

    data, place, message = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:  # too little for a header: the block is filled up
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        message += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole, or the last part
            yield wandb_internal_pb2.Record.FromString(message)
            message = b""


def wandb_contents(folder):
    """Run id, config, history and pictures of a run recorded offline."""
    (path,) = folder.glob("*.wandb")
    run_id, config, history = None, {}, []
    for record in wandb_records(path):
        match record.WhichOneof("record_type"):
            case "run":
                run_id = record.run.run_id
            case "config":
                config |= {item.key: json.loads(item.value_json) for item in record.config.update if item.key}
            case "history":
                items = record.history.item
                history.append({"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items})
    return run_id, config, history


def test_wandb_records_offline_where_nobody_is_logged_in(tiny, fresh_process, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.setenv("WANDB_SILENT", "true")
    tiny["trainer"]["logger"] = {"class_path": "WandbLogger", "init_args": {"project": "translation"}}
    config = tiny.write()
    code, (warning,) = fresh_process(fit_with_wandb, "--config", config, "--trainer.max_steps", "2")
    assert code == 0
    assert "Nobody is logged in to Weights & Biases, so the run is recorded offline" in warning
    (run,) = Path("translation").iterdir()
    last = run / "checkpoints" / "last.ckpt"
    assert fresh_process(fit_with_wandb, "--ckpt_path", last, "--trainer.max_steps", "4")[0] == 0
    assert [path.name for path in Path("translation").iterdir()] == [run.name]

    pieces = sorted(Path("wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime_ns)
    steps, shown = [], []
    for piece, max_steps in zip(pieces, (2, 4), strict=True):
        run_id, settings, history = wandb_contents(piece)
        assert run_id == run.name
        assert settings["lambda_A"] == 10
        assert yaml.safe_load(settings["config"])["trainer"]["max_steps"] == max_steps
        steps += [row["trainer/global_step"] for row in history if "train/cycle_A" in row]
        for row in history:
            for name in row.get("AtoB/filenames", ()):
                with Image.open(piece / "files" / name) as picture:
                    assert picture.width > picture.height > 0
                shown.append(row["trainer/global_step"])
        assert all(np.isfinite(row["train/cycle_A"]) for row in history if "train/cycle_A" in row)
    assert steps == [1, 2, 3, 4]
    assert shown == [0, 2, 4]


def without_wandb(*arguments):
    """A command in a Python that cannot import wandb."""
    ours = ("lightning_gen", "lightning.pytorch.loggers.wandb", "wandb")
    for name in [name for name in sys.modules if name.startswith(ours)]:
        del sys.modules[name]
    sys.modules["wandb"] = None
    from lightning_gen.cli import main as fresh_main

    try:
        fresh_main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code or 0


def test_wandb_is_needed_only_by_those_who_ask_for_it(tiny, fresh_process, capfd):
    tiny["trainer"]["max_steps"] = 1
    # By full names, because that Python knows two generations of our classes.
    arguments = tiny["model"]["init_args"]
    for part, place in (
        (tiny["model"], "models"),
        (tiny["data"], "data"),
        *((p, "networks") for p in arguments.values()),
    ):
        part["class_path"] = f"lightning_gen.{place}.{part['class_path']}"
    config = tiny.write()
    assert fresh_process(without_wandb, "fit", "--config", config) == 0
    assert LAST.is_file()
    capfd.readouterr()
    assert fresh_process(without_wandb, "fit", "--config", config, "--trainer.logger", "WandbLogger") == 1
    assert "WandbLogger needs the package wandb: pip install wandb." in capfd.readouterr().err


# -- what goes wrong ------------------------------------------------------------------------------------------------


def assert_one_message(ended, *parts, code=1):
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    assert ended.err.count("lightning-gen: error:") == 1
    message = ended.err.partition("lightning-gen: error:")[2]
    assert all(part in message for part in parts), message
    return message


@pytest.fixture
def pictures(tiny):
    """A folder for UnpairedImageFolder, which `tiny` then uses."""
    root, random = Path("pictures"), np.random.default_rng(0)
    for split in ("trainA", "trainB", "testA", "testB"):
        (root / split).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8)).save(root / split / f"{i}.jpg")
    data = {"root": str(root), "resize": 18, "crop": 16, "num_workers": 0}
    tiny["data"] = {"class_path": "UnpairedImageFolder", "init_args": data}
    return root


def test_a_shipped_configuration_with_pictures_of_ones_own(pictures, command):
    """As the README has it; what the configuration says of its own data is left out."""
    data = ["--data", "UnpairedImageFolder", "--data.root", pictures, "--data.resize", 18, "--data.crop", 16]
    small = ["--model.generator.filters", 2, "--model.generator.blocks", 1, "--model.discriminator.filters", 2]
    small += ["--model.discriminator.layers", 1, "--trainer.max_steps", 1, "--trainer.precision", "32-true"]
    ended = command("fit", "--config", "cyclegan", *data, *small)
    assert ended.code == 0, ended.err
    assert read_checkpoint(LAST)["hyper_parameters"]["image_shape"] == [3, 16, 16]
    assert set(json.loads((RUN / "results.json").read_text())["metrics"]) == {"test/cycle_A", "test/cycle_B"}


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (["--data.resize", "null", "--data.crop", "24"], ["0.jpg is 20 x 24", "smaller than the crop of 24 x 24"]),
        (
            ["--data.crop", "18"],
            ["ResNetGenerator", "multiples of 4, got 18 x 18", "nearest size that works is 16 x 16"],
        ),
        (["--data.batch_size", "9"], ["2 training examples per process do not fill one batch of 9"]),
        (["--data.root", "nowhere"], ["root=nowhere is not a folder", "expects trainA, trainB, testA and testB"]),
        (["--trainer.accelerator", "quantum"], ["accelerator='quantum'"]),
        (["--ckpt_path", "none.ckpt"], ["There is no checkpoint at none.ckpt"]),
        (["--trainer.strategy", "ddp_spawn"], ["ddp_spawn cannot be used", "Use --trainer.strategy ddp"]),
    ],
)
def test_settings_that_do_not_fit(tiny, pictures, command, options, parts):
    message = assert_one_message(command("fit", "--config", tiny.write(), *options), *parts)
    assert len(message.splitlines()) == 2, "the message, and the hint at --debug"


def test_without_checkpoints_a_run_has_all_else(tiny, command):
    ended = command("fit", "--config", tiny.write(), "--trainer.enable_checkpointing", "false")
    assert ended.code == 0, ended.err
    assert not list(Path().rglob("*.ckpt"))
    assert table()
    assert {path.name for path in RUN.iterdir()} >= {"config.yaml", "history.jsonl", "index.html", "images"}


def test_barebones_is_training_and_nothing_else(tiny, command):
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": "."}}
    tiny["trainer"] |= {"num_sanity_val_steps": 1, "logger": logger}
    before = contents(Path())
    ended = command("fit", "--config", tiny.write(), "--trainer.barebones", "true", "--test_after_fit", "true")
    assert ended.code == 0, ended.err
    assert contents(Path()).keys() - before.keys() == {Path("tiny.yaml")}
    assert "self.log" not in ended.err
    assert "Report" not in ended.out + ended.err


def test_folders_that_lack_pictures(tiny, pictures, command):
    config = tiny.write()
    for path in (pictures / "trainB").iterdir():
        path.unlink()
    assert_one_message(command("fit", "--config", config), "pictures/trainB holds no pictures (jpg")
    (pictures / "trainB").rmdir()
    message = assert_one_message(command("fit", "--config", config), "pictures/trainB does not exist")
    assert "pictures holds: testA, testB, trainA." in message


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fault", ["truncated", "nan"])
def test_pictures_that_cannot_be_used(tiny, pictures, command, workers, fault):
    shutil.rmtree(pictures / "trainB")
    (pictures / "trainB").mkdir()
    if fault == "truncated":
        data = (pictures / "trainA" / "0.jpg").read_bytes()
        (pictures / "trainB" / "bad.jpg").write_bytes(data[: len(data) // 2])
        parts = ["trainB/bad.jpg cannot be read as a picture"]
    else:
        Image.fromarray(np.full((20, 24), np.nan, np.float32)).save(pictures / "trainB" / "bad.tif")
        parts = ["trainB/bad.tif holds 480 pixels that are not finite. Give them values in [0, 1]."]
    ended = command("fit", "--config", tiny.write(), "--data.num_workers", workers)
    message = assert_one_message(ended, *parts)
    assert len(message.splitlines()) == 2
    assert "bad" in json.loads((RUN / "environment.json").read_text())["status"]


def test_the_traceback_is_there_for_those_who_ask(tiny, pictures, command):
    with pytest.raises(RuntimeError, match=r"Traceback[\s\S]*FileNotFoundError: root=nowhere is not a folder"):
        command("fit", "--config", tiny.write(), "--data.root", "nowhere", "--debug")


def test_a_checkpoint_that_does_not_fit_is_refused_and_costs_its_run_nothing(tiny, command):
    command("fit", "--config", tiny.write())
    before = contents(RUN)
    wider = ["--model.generator.init_args.filters", 3, "--trainer.max_steps", 6]
    for name in ("fit", "test"):
        assert_one_message(command(name, "--ckpt_path", LAST, *wider), "weights differ in shape", "generator_AtoB")
    tiny["model"]["class_path"] = "Pix2Pix"
    tiny["trainer"]["max_steps"] = 6
    other = tiny.write("pix2pix.yaml")
    for name in ("fit", "validate"):
        ended = command(name, "--config", other, "--ckpt_path", LAST)
        assert_one_message(ended, "written by lightning_gen.models.CycleGAN and cannot go on as Pix2Pix")
    assert contents(RUN) == before

    LAST.write_bytes(LAST.read_bytes()[:5000])
    for name in ("fit", "test"):
        assert_one_message(command(name, "--ckpt_path", LAST), f"{LAST} is cut short or not a checkpoint")
    assert {path: data for path, data in contents(RUN).items() if path != LAST} == {
        path: data for path, data in before.items() if path != LAST
    }


class Planted:
    """Pickled into a checkpoint, it would leave a file behind when it is loaded."""

    def __reduce__(self):
        return Path.touch, (Path("harm"),)


@pytest.mark.parametrize("name", ["fit", "test", "validate"])
def test_a_checkpoint_of_a_stranger_runs_no_code(tiny, command, name):
    config = tiny.write()
    torch.save({"state_dict": {}, "global_step": 0, "planted": Planted()}, "stranger.ckpt")
    assert_one_message(command(name, "--config", config, "--ckpt_path", "stranger.ckpt"), "was refused")
    assert not Path("harm").exists()


def fit_on_a_full_disk(*arguments):
    """The disk is full when the second checkpoint is to be written."""
    save, files = torch.save, []

    def full(content, file):
        files.append(file)
        if len(files) > 1:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(content, file)

    torch.save = full
    return exit_code(*arguments)


def test_a_full_disk_costs_no_earlier_checkpoint(tiny, command, fresh_process, capfd):
    tiny["checkpoint"] = {"every_n_steps": 2}
    assert fresh_process(fit_on_a_full_disk, "fit", "--config", tiny.write()) == 1
    error = capfd.readouterr().err
    assert f"The checkpoint {LAST}" in error
    assert "could not be written: No space left on device" in error
    assert "The checkpoints saved before it are untouched" in error
    assert "Traceback" not in error
    assert [path.name for path in LAST.parent.iterdir()] == ["last.ckpt"]
    assert json.loads((RUN / "environment.json").read_text())["status"].startswith("stopped: ")
    # The checkpoint before it loads, and the run goes on from there.
    assert read_checkpoint(LAST)["global_step"] == 2
    GenerativeModule.load_from_checkpoint(LAST)
    assert command("fit", "--ckpt_path", LAST).code == 0
    assert read_checkpoint(LAST)["global_step"] == 4


OWN = '''
import torch
from torch import nn

from lightning_gen.models import GAN, CycleGAN


class Tint(nn.Module):
    """Learns one colour."""

    def __init__(self, image_shape: tuple[int, int, int], *, strength: float = 1.0) -> None:
        super().__init__()
        self.color = nn.Parameter(torch.zeros(image_shape[0], 1, 1))
        self.strength = strength

    def forward(self, images):
        return (images + self.strength * self.color).clamp(-1, 1)


class Diverging(CycleGAN):
    """Breaks after two updates."""

    def generator_losses(self, real_A, real_B):
        losses = super().generator_losses(real_A, real_B)
        if self.trainer.global_step == 2:
            losses["cycle_B"] = losses["cycle_B"] * float("nan")
        return losses
'''


def test_classes_from_a_file_in_the_current_folder(tiny, command):
    Path("own.py").write_text(OWN)
    tiny["model"]["init_args"]["generator"] = {"class_path": "own.Tint", "init_args": {"strength": 3.0}}
    tiny["model"]["init_args"]["learning_rate"] = 0.1
    ended = command("fit", "--config", tiny.write())
    assert ended.code == 0, ended.err
    checkpoint = read_checkpoint(LAST)
    generator = {"class_path": "own.Tint", "init_args": {"strength": 3.0}}
    assert checkpoint["hyper_parameters"]["generator"] == generator
    assert checkpoint["state_dict"]["generator_AtoB.color"].abs().min() > 0
    Path("in").mkdir()
    Image.new("RGB", (5, 7), "gray").save("in/a.png")
    assert command("translate", "--checkpoint", LAST, "--input", "in", "--output", "out", "--trust", "own").code == 0
    with Image.open("out/a.png") as image:
        expected = 128 / 127.5 - 1 + 3 * checkpoint["state_dict"]["generator_AtoB.color"].flatten()
        found = torch.tensor(image.getpixel((0, 0))) / 127.5 - 1
        torch.testing.assert_close(found, expected.clamp(-1, 1), rtol=0, atol=1 / 255)
    # Elsewhere the class is not to be found, and the message says which.
    Path("own.py").unlink()
    shutil.rmtree("__pycache__", ignore_errors=True)
    ended = command("translate", "--checkpoint", LAST, "--input", "in", "--output", "out", "--trust", "own")
    assert_one_message(ended, "own.Tint", "names nothing that can be imported here")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tiny, command):
    Path("own.py").write_text(OWN)
    tiny["model"]["class_path"] = "own.Diverging"
    tiny["checkpoint"] = {"every_n_steps": 1}
    ended = command("fit", "--config", tiny.write())
    message = assert_one_message(ended, "train/cycle_B became NaN or infinite in the step after 2 generator updates")
    assert "train/cycle_A" not in message
    assert "lower learning rate" in message
    run = Path("runs/diverging/version_0")
    checkpoint = read_checkpoint(run / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 2
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())
    assert json.loads((run / "environment.json").read_text())["status"].startswith("stopped: train/cycle_B became NaN")
    assert "stopped: train/cycle_B became NaN" in (run / "index.html").read_text()
    assert 'http-equiv="refresh"' not in (run / "index.html").read_text()


def test_an_absurd_learning_rate_is_noticed(tiny, command):
    ended = command("fit", "--config", tiny.write(), "--model.learning_rate", "1e30")
    assert_one_message(ended, "became NaN or infinite in the step after 1 generator updates")


def commands_after(ended):
    lines = ended.out.splitlines()
    assert lines.count("Next:") == 1, ended.out
    return [line.strip().removeprefix("lightning-gen ") for line in lines[lines.index("Next:") + 1 :]]


def test_a_run_ends_with_what_comes_next(tiny, command):
    """The commands work as they stand there, once there are pictures."""
    ended = command("fit", "--config", tiny.write(), "--test_after_fit", "true")
    assert commands_after(ended) == [
        f"translate --checkpoint {RUN} --input PICTURES --output FOLDER",
        f"fit --ckpt_path {RUN} --trainer.max_steps 8",
    ]
    told = ended.out.partition("\nNext:")[0].splitlines()[-3:]
    Path("PICTURES").mkdir()
    Image.new("RGB", (16, 16)).save("PICTURES/a.png")
    for line in commands_after(ended):
        ended = command(*line.split())
        assert ended.code == 0, ended.err
    tested = command("test", "--ckpt_path", LAST).out.splitlines()[-3:]
    for lines in (told, tested):
        assert [line.partition(":")[0] for line in lines] == ["Test PSNR AtoB", "Test PSNR BtoA", "Report"]
        assert lines[-1] == f"Report: {RUN / 'index.html'}"
    assert commands_after(ended)[-1] == f"fit --ckpt_path {RUN} --trainer.max_steps 16"
    tiny["checkpoint"] = {"best": "val/psnr_AtoB"}
    epochs = ["--trainer.max_steps", "-1", "--trainer.max_epochs", "1"]
    lines = commands_after(command("fit", "--config", tiny.write(), *epochs))
    again = RUN.with_name("version_1")
    assert lines[0].startswith(f"translate --checkpoint {again}/best ")
    assert lines[1] == f"test --ckpt_path {again}/best"
    assert lines[-1] == f"fit --ckpt_path {again} --trainer.max_epochs 2"
    assert "Next:" not in command("fit", "--config", tiny.write(), "--trainer.fast_dev_run", "true").out


def is_told_of_devices(trains):
    quiet_lightning(not trains)  # of an earlier command in the same process, which is not to decide for a later one
    quiet_lightning(trains)
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    return bool(logger.filter(logger.makeRecord("", 20, "", 0, "GPU available: %s, used: %s", (False, False), None)))


@pytest.mark.parametrize("trains", [True, False])
def test_whoever_trains_nothing_need_not_know_of_devices(trains, fresh_process):
    assert fresh_process(is_told_of_devices, trains) == trains


def fit_that_fails(*arguments):
    def fail(self, trainer, *_):
        if trainer.global_step == 3:
            raise RuntimeError("the disk is full")

    LastCheckpoint.on_train_batch_start = fail
    return exit_code(*arguments)


def test_a_run_that_fails_says_how_to_go_on(tiny, fresh_process, capfd):
    config = tiny.write()
    assert fresh_process(fit_that_fails, "fit", "--config", config) == 1
    assert "Go on" not in capfd.readouterr().err, "there is no checkpoint"
    tiny["checkpoint"] = {"every_n_steps": 2}
    assert fresh_process(fit_that_fails, "fit", "--config", tiny.write()) == 1
    err = capfd.readouterr().err
    last = LAST.parents[1].with_name("version_1") / "checkpoints" / "last.ckpt"
    assert f"The last checkpoint is that of step 2. Go on: lightning-gen fit --ckpt_path {last}\n" in err
    assert fresh_process(exit_code, "fit", "--ckpt_path", str(last)) == 0


@pytest.mark.parametrize(
    ("kind", "commands"),
    [
        (DCGAN, ["sample", "evaluate"]),
        (PixelCNN, ["sample", "complete", "evaluate"]),
        (VQVAE, ["reconstruct", "evaluate"]),
    ],
)
def test_what_comes_next_goes_by_what_the_model_can_do(kind, commands, tmp_path, capsys):
    trainer = pl.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path / "a run", barebones=False)
    folder = tmp_path / "a run"
    model = small_model(kind, (1, 8, 8) if kind is not DCGAN else (3, 16, 16))()
    say_next_of_run(trainer, model)
    assert capsys.readouterr().out == ""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").touch()
    (folder / "config.yaml").touch()
    say_next_of_run(trainer, model)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "Next:"
    assert [line.split()[1] for line in lines] == commands
    assert all(f"--checkpoint '{folder}'" in line for line in lines)


def test_the_warnings_of_a_run_are_worth_reading(tiny, fresh_process):
    """None of Lightning's that tell a user of ours nothing, when a run begins and when it goes on."""
    tiny["trainer"] |= {"log_every_n_steps": 50, "max_steps": 2, "enable_model_summary": True}
    assert fresh_process(with_warnings, "fit", "--config", tiny.write()) == (0, [])
    assert fresh_process(with_warnings, "fit", "--ckpt_path", LAST, "--trainer.max_steps", 3) == (0, [])
    assert fresh_process(with_warnings, "test", "--ckpt_path", LAST) == (0, [])


def test_predict_runs_from_a_checkpoint(tiny, command):
    assert command("fit", "--config", tiny.write()).code == 0
    ended = command("predict", "--ckpt_path", LAST)
    assert ended.code == 0, ended
    assert f"Predictions for 2 pictures written into {RUN / 'predictions'}" in ended.out
    names = [f"{direction}/00000{i}.png" for direction in ("AtoB", "BtoA") for i in range(2)]
    assert sorted(path.relative_to(RUN / "predictions").as_posix() for path in contents(RUN / "predictions")) == names
    model, data = CycleGAN.load_from_checkpoint(LAST), UnpairedScenes(image_size=16, num_train=3, num_val=2, num_test=2)
    for i, batch in enumerate(data.predict_dataloader()):
        expected = to_uint8(model.translate(batch["A"], "AtoB"))[0]
        assert torch.equal(read_image(RUN / f"predictions/AtoB/00000{i}.png"), expected)
    assert_one_message(command("predict", "--ckpt_path", LAST), "holds 4 pictures already")
    assert command("predict", "--ckpt_path", LAST, "--predictions.overwrite", "true").code == 0
    assert command("predict", "--ckpt_path", LAST, "--predictions.output", "elsewhere").code == 0
    assert contents(Path("elsewhere")).keys() == {Path("elsewhere") / name for name in names}


@pytest.mark.parametrize(
    ("model", "data", "callbacks", "lines"),
    [
        (
            None,
            None,
            ["ColorMappingBaseline"],
            {
                "psnr_AtoB": "Test PSNR AtoB: {:.1f} dB",
                "psnr_BtoA": "Test PSNR BtoA: {:.1f} dB",
                "color_mapping_psnr_AtoB": "Colour mapping by histogram matching AtoB: {:.1f} dB",
                "color_mapping_psnr_BtoA": "Colour mapping by histogram matching BtoA: {:.1f} dB",
            },
        ),
        ("KDE", "GridOfGaussians", [], {"nll": "Test nll: {:.4g}"}),
        ("Classifier", "Digits", [], {"accuracy": "Test accuracy: {:.2%}"}),
    ],
)
def test_a_run_ends_with_the_figures_that_matter(tiny, command, model, data, callbacks, lines):
    """Which those are, models and callbacks say."""
    if model:
        tiny["model"] = {"class_path": model}
        tiny["data"] = {"class_path": data, "init_args": {"batch_size": 16, "num_workers": 0}}
    tiny["trainer"] |= {"callbacks": [{"class_path": name} for name in callbacks], "max_epochs": 1, "max_steps": 2}
    ended = command("fit", "--config", tiny.write(), "--test_after_fit", "true")
    assert ended.code == 0, ended.err
    run = next(Path("runs").glob("*/version_0"))
    results = json.loads((run / "results.json").read_text())["metrics"]
    expected = [line.format(results[f"test/{name}"]) for name, line in lines.items()]
    page = run / "index.html"
    assert ended.out.count(str(page)) == 1
    told = ended.out.partition("\nNext:")[0].rstrip().splitlines()
    assert told[-len(expected) - 1 :] == [*expected, f"Report: {page}"]


# -- pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["GAN", "CycleGAN"])
def test_pictures_are_drawn_as_the_configuration_says_and_go_on(tiny, command, model):
    if model == "GAN":
        mlp = {"class_path": "MLPGenerator", "init_args": {"widths": [4]}}
        tiny["model"] = {"class_path": "GAN", "init_args": {"generator": mlp, "latent_size": 3}}
        tiny["data"] = {"class_path": "Scenes", "init_args": {"image_size": 16, "num_train": 8, "batch_size": 4}}
        tiny["data"]["init_args"]["num_workers"] = 0
    tiny["pictures"] = {"every_n_steps": 2, "num_images": 2}
    assert command("fit", "--config", tiny.write()).code == 0
    run = Path("runs") / model.lower() / "version_0"
    assert yaml.safe_load((run / "config.yaml").read_text())["pictures"] == {**tiny["pictures"], "sampling": None}
    panels = {"GAN": ["real", "samples"], "CycleGAN": ["AtoB", "BtoA"]}[model]
    assert sorted(path.name for path in (run / "images").iterdir()) == panels
    last = run / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)["callbacks"]["Pictures"]["last_drawn"] == 4
    ended = command("fit", "--ckpt_path", last, "--trainer.max_steps", 7)
    assert ended.code == 0, ended.err
    steps = [int(path.stem[5:]) for path in sorted((run / "images" / panels[-1]).iterdir())]
    assert steps == [0, 2, 4, 6, 7]


class Tinted(GAN):
    """Has a setting of its own."""

    def sample(self, num_samples, *, labels=None, generator=None, tint: float = 0.0):
        return super().sample(num_samples, labels=labels, generator=generator) * 0 + tint


def test_a_setting_of_a_model_of_ones_own_arrives_in_the_pictures_from_the_command_line(tiny, command):
    mlp = {"class_path": "MLPGenerator", "init_args": {"widths": [4]}}
    tiny["model"] = {"class_path": f"{__name__}.Tinted", "init_args": {"generator": mlp, "latent_size": 3}}
    tiny["data"] = {"class_path": "Scenes", "init_args": {"image_size": 16, "num_train": 8, "batch_size": 4}}
    tiny["pictures"] = {"num_images": 1}
    ended = command("fit", "--config", tiny.write(), "--pictures.sampling.tint", "1")
    assert ended.code == 0, ended.err
    first = read_image(Path("runs/tinted/version_0/images/samples/step_00000000.png"))
    assert (first[:, 2:-2, 2:-2] == 255).all()
    config = yaml.safe_load(Path("runs/tinted/version_0/config.yaml").read_text())
    assert config["pictures"]["sampling"] == {"tint": 1}
    ended = command("fit", "--config", tiny.write(), "--pictures.sampling.hue", "1")
    assert_one_message(ended, "Pictures has sampling hue", code=2)


def extractor_config(**settings):
    extractor = Namespace(
        class_path="lightning_gen.extractors.classifier.ClassifierFeatures", init_args=Namespace(**settings)
    )
    metrics = Namespace(
        class_path="lightning_gen.callbacks.GenerativeMetrics", init_args=Namespace(extractor=extractor)
    )
    ema = Namespace(class_path="lightning_gen.callbacks.EMA", init_args=Namespace(modules=["generator"]))
    data = Namespace(root="pictures", download=False, batch_size=7, pad=2)
    return Namespace(
        trainer=Namespace(callbacks=[ema, metrics]),
        data=Namespace(class_path="lightning_gen.data.MNIST", init_args=data),
    )


def test_a_classifier_that_is_missing_is_trained_first_on_the_data_at_hand(monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path))
    commands = []
    monkeypatch.setattr(beforehand.subprocess, "run", lambda command, check: commands.append(command[1:]))
    wanted = {"data": "MNIST", "image_shape": [1, 32, 32]}
    beforehand.train_missing_classifiers(extractor_config(**wanted))
    (command,) = commands
    assert command[:7] == ["-m", "lightning_gen", "fit", "--config", "classifier", "--data", "MNIST"]
    settings = dict(argument.split("=") for argument in command[7:])
    assert settings.items() >= {"--data.root": "pictures", "--data.download": "False", "--data.pad": "2"}.items()
    assert "--data.batch_size" not in settings  # that is of the other model

    # Of a stranger's configuration, nothing names a class or adds an option.
    beforehand.train_missing_classifiers(extractor_config(**wanted | {"data": "canary_module.Data"}))
    assert len(commands) == 1

    beforehand.train_missing_classifiers(extractor_config(**wanted, weights="mine.ckpt"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    beforehand.train_missing_classifiers(extractor_config(**wanted))  # each of several processes would train its own
    monkeypatch.delenv("WORLD_SIZE")
    (tmp_path / "classifiers").mkdir()
    (tmp_path / "classifiers" / "mnist-1x32x32.ckpt").touch()
    beforehand.train_missing_classifiers(extractor_config(**wanted))
    assert len(commands) == 1
