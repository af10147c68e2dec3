"""The logger of a run gives it its folder and writes nothing."""

from lightning.pytorch import Trainer

from lightning_gen.callbacks import RunLogger
from lightning_gen.runs.folder import run_folder


def test_runs_are_numbered_and_each_has_its_folder(tmp_path):
    for number in range(12):
        logger = RunLogger(str(tmp_path), "cyclegan")
        assert logger.version == number
        assert logger.log_dir == str(tmp_path / "cyclegan" / f"version_{number}")
        assert run_folder(Trainer(accelerator="cpu", logger=logger)) == tmp_path / "cyclegan" / f"version_{number}"
        run_folder(Trainer(accelerator="cpu", logger=logger)).mkdir(parents=True)
    (tmp_path / "cyclegan" / "version_x").mkdir()
    (tmp_path / "cyclegan" / "version_3").rmdir()
    assert RunLogger(str(tmp_path), "cyclegan").version == 12


def test_a_run_keeps_its_number_and_may_be_named(tmp_path):
    logger = RunLogger(str(tmp_path), "run")
    assert logger.version == 0
    (tmp_path / "run" / "version_0").mkdir(parents=True)
    assert logger.version == 0
    assert RunLogger(str(tmp_path), "run", "mine").log_dir == str(tmp_path / "run" / "mine")
    assert RunLogger(str(tmp_path), "run", 7).log_dir == str(tmp_path / "run" / "version_7")


def test_it_writes_nothing(tmp_path):
    logger = RunLogger(str(tmp_path), "run")
    logger.log_metrics({"train/a": 0.5}, 1)
    logger.log_hyperparams({"a": 1})
    logger.save()
    logger.finalize("success")
    assert list(tmp_path.iterdir()) == []
