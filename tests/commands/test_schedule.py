"""`lightning-gen schedule`: the schedule that a run would follow, and what its stages cost."""

from pathlib import Path

import pytest
import yaml

from lightning_gen.schedules import Growing

# Eight batches of four to 32, eight of two to 48, to 80 and to 96 for 16 x 16.
GROWING = {"resolutions": [4, 8, 16], "batch_sizes": [4, 2, 2], "stable_images": 31, "fade_images": 17}


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Writes the configuration of a small model that grows, with other settings of its data."""
    monkeypatch.chdir(tmp_path)

    def write(model="ProGAN", **data):
        sizes = {"filters": 32, "max_filters": 8}
        networks = {
            player: {"class_path": f"{model}{player.title()}", "init_args": sizes}
            for player in ("generator", "discriminator")
        }
        scenes = {"image_size": 16, "num_train": 40, "num_workers": 0, "growing": GROWING}
        settings = {
            "model": {"class_path": model, "init_args": {**networks, "latent_size": 4} if model != "DCGAN" else {}},
            "data": {"class_path": "Scenes", "init_args": scenes | data},
            "trainer": {"max_steps": 50, "accelerator": "cpu"},
        }
        Path("small.yaml").write_text(yaml.safe_dump(settings))
        return "small.yaml"

    return write


def rows(out):
    """The cells of the table, by line."""
    return [line.split() for line in out.splitlines()]


PLAIN = [
    ["0", "0", "4", "1", "4", "0.001", "0.0625"],
    ["0.032", "8", "8", "0", "to", "1", "2", "0.001", "0.25"],
    ["0.048", "16", "8", "1", "2", "0.001", "0.25"],
    ["0.08", "32", "16", "0", "to", "1", "2", "0.001", "1"],
    ["0.096", "40", "16", "1", "2", "0.001", "1"],
]


def test_the_table_is_the_schedule(config, command):
    ended = command("schedule", "--config", config(), "--probe", "false")
    assert ended.code == 0, ended.err
    assert rows(ended.out)[0] == ["kimg", "steps", "resolution", "fade", "batch", "rate", "penalty", "scale"]
    assert rows(ended.out)[1:6] == PLAIN
    assert "The run ends after 50 steps and 0.116 thousand pictures." in ended.out
    assert [phase.start for phase in Growing(**GROWING).phases()] == [0, 32, 48, 80, 96]
    twice = command("schedule", "--config", "small.yaml", "--probe", "false", "--processes", 2)
    assert rows(twice.out)[2][:3] == ["0.032", "4", "8"]
    assert {path.name for path in Path().iterdir()} == {"small.yaml"}


def test_a_folder_that_is_not_there_is_not_needed_unless_stages_are_tried(config, command):
    written = yaml.safe_load(Path(config()).read_text())
    settings = {"root": "nowhere", "image_size": 16, "channels": 1, "growing": GROWING}
    written["data"] = {"class_path": "ImageFolder", "init_args": settings}
    Path("small.yaml").write_text(yaml.safe_dump(written))
    ended = command("schedule", "--config", "small.yaml", "--probe", "false")
    assert ended.code == 0, ended.err
    assert rows(ended.out)[1:6] == PLAIN
    ended = command("schedule", "--config", "small.yaml", "--probe", "false", "--data.image_size", 32)
    assert ended.code == 1
    assert "growing ends with pictures 16 pixels high, but image_shape is (1, 32, 32)" in ended.err
    ended = command("schedule", "--config", "small.yaml")
    assert ended.code == 1
    assert "root=nowhere is not a folder, which from here is " in ended.err


def test_stages_are_tried(config, command):
    ended = command("schedule", "--config", config("StyleGAN"), "--probe_steps", 1)
    assert ended.code == 0, ended.err
    found = rows(ended.out)
    assert found[0][-2:] == ["hours", "memory"]
    assert [row[:-3] for row in found[1:6]] == PLAIN
    assert all(float(row[-3]) > 0 and row[-1] in ("MB", "GB") for row in found[1:6])
    assert found[6][0] == "all"
    assert float(found[6][1]) == pytest.approx(sum(float(row[-3]) for row in found[1:6]), rel=0.02)
    assert "Tried on cpu with precision 32-true." in ended.out
    assert {path.name for path in Path().iterdir()} == {"small.yaml"}, "no run begins"


def test_what_has_no_schedule_is_refused(config, command):
    ended = command("schedule", "--config", config("DCGAN"))
    assert ended.code == 1
    assert "DCGAN has no schedule to show. Give a configuration of a model that grows" in ended.err
    ended = command("schedule", "--config", config(growing=None))
    assert "ProGAN has no schedule to show" in ended.err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"growing": {**GROWING, "resolutions": [2, 4, 8]}},
            "growing ends with pictures 8 pixels high, but image_shape is",
        ),
        ({"growing": {**GROWING, "resolutions": [16, 8, 4]}}, "must be a multiple of the one before; 8 is none of 16"),
        ({"growing": {**GROWING, "resolutions": [1, 4, 16]}}, "heights of the generator, one after the other"),
        ({"growing": {**GROWING, "stable_images": 0}}, "stable_images must be at least 1"),
        ({"growing": {**GROWING, "batch_sizes": [4, 2]}}, "batch_sizes must be one number, or one for each of 3"),
        ({"image_size": 24}, "growing ends with pictures 16 pixels high"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_before_training(data, message, config, command):
    ended = command("fit", "--config", config(**data))
    assert ended.code in (1, 2)
    assert message in ended.err
    assert not Path("runs").exists()


def test_the_model_follows_its_data_and_a_checkpoint_of_another_size_is_refused(config, command):
    ended = command("fit", "--config", config(), "--trainer.max_steps", 2, "--trainer.enable_progress_bar", "false")
    assert ended.code == 0, ended.err
    (saved,) = Path("runs").rglob("config.yaml")
    written = yaml.safe_load(saved.read_text())
    assert written["model"]["init_args"]["growing"] == written["data"]["init_args"]["growing"]
    (last,) = Path("runs").rglob("last.ckpt")
    larger = {**GROWING, "resolutions": [8, 16, 32]}
    ended = command("fit", "--config", config(image_size=32, growing=larger), "--ckpt_path", str(last))
    assert ended.code == 1
    assert "The checkpoint does not fit this ProGAN" in ended.err
