from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from jsonargparse._common import parsing_settings

from lightning_gen import trust
from lightning_gen.cli import main


class Ended(NamedTuple):
    code: int
    out: str
    err: str


def _exit_code(*arguments):
    try:
        main(arguments)
    except SystemExit as stop:
        return stop.code or 0


@pytest.fixture(autouse=True)
def _trusted(monkeypatch):
    """Models that tests define are the user's own, and what one test restricts is free again in the next."""
    monkeypatch.setenv("LIGHTNING_GEN_TRUST", "tests")
    monkeypatch.setattr(trust, "_named", None)
    for name in ("import_path_verdicts", "import_paths_enforced"):
        monkeypatch.setitem(parsing_settings, name, parsing_settings[name])


@pytest.fixture
def command(fresh_process, capfd):
    """Run a command as a user does, in a process of its own: its exit code, standard output and standard error."""

    def run(*arguments):
        capfd.readouterr()
        return Ended(fresh_process(_exit_code, *map(str, arguments)), *capfd.readouterr())

    return run


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The settings of a run of four small steps, as a dictionary to change and `write`; the run happens in tmp_path."""
    monkeypatch.chdir(tmp_path)
    return Settings(
        model={
            "class_path": "CycleGAN",
            "init_args": {
                "generator": {"class_path": "ResNetGenerator", "init_args": {"filters": 2, "blocks": 1}},
                "discriminator": {"class_path": "PatchDiscriminator", "init_args": {"filters": 2, "layers": 1}},
            },
        },
        data={
            "class_path": "UnpairedScenes",
            "init_args": {"image_size": 16, "num_train": 3, "num_val": 2, "num_test": 2, "num_workers": 0},
        },
        trainer={
            "max_steps": 4,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    )


class Settings(dict):
    def write(self, path="tiny.yaml"):
        Path(path).write_text(yaml.safe_dump(dict(self)))
        return path
