"""Advice for folders that a test made, and the configuration that is written, which runs."""

from pathlib import Path

import pytest
import yaml

from lightning_gen.commands.advise import commented
from tests.data.test_survey import save

QUICK = "--trainer.max_steps", 2, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Pictures, of which two are there twice and one is cut short, beside a file that is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no weights"))
    for i in range(40):
        save(Path("my pictures") / f"{i:02}.png", i, height=18, width=18)
    root = Path("my pictures")
    (root / "a copy.png").write_bytes((root / "07.png").read_bytes())
    (root / "another.png").write_bytes((root / "08.png").read_bytes())
    (root / "short.png").write_bytes((root / "09.png").read_bytes()[:300])
    (root / "empty.png").touch()
    (root / "notes.txt").write_text("flowers")
    return root


SMALL = {
    "model": {
        "class_path": "StyleGAN",
        "init_args": {
            "generator": {
                "class_path": "StyleGANGenerator",
                "init_args": {"filters": 32, "max_filters": 8, "style_size": 8},
            },
            "discriminator": {"class_path": "StyleGANDiscriminator", "init_args": {"filters": 32, "max_filters": 8}},
            "latent_size": 8,
        },
    },
    "data": {
        "class_path": "Scenes",
        "init_args": {"image_size": 16, "num_train": 64, "growing": {"resolutions": [8, 16], "batch_sizes": [8]}},
    },
    "trainer": {
        "max_steps": 100,
        "callbacks": [
            {"class_path": "ProgressiveGrowing"},
            {"class_path": "EMA", "init_args": {"modules": ["generator"]}},
            {"class_path": "GenerativeMetrics", "init_args": {"extractor": "SceneFeatures"}},
        ],
    },
}


@pytest.fixture
def small():
    Path("small.yaml").write_text(yaml.safe_dump(SMALL))
    return "small.yaml"


def test_a_folder_with_copies_and_broken_files(folder, small, command):
    ended = command("advise", "--data", folder, "--config", small, "--write", "out/mine.yaml")
    assert ended.code == 0, ended.err
    for words in (
        "copies of others: 2 (", "cannot be read: 1 (short.png)", "empty: 1 (empty.png)", "1 .txt",
        "pictures are very few", "Tried on cpu: 8 pictures in", "data.image_size", "at 32, 100% of the pictures",
        "Written: out/mine.yaml. Train with: lightning-gen fit --config out/mine.yaml",
    ):  # fmt: skip
        assert words in ended.out, ended.out
    text = Path("out/mine.yaml").read_text()
    mine = yaml.safe_load(text)
    assert mine["data"]["class_path"] == "ImageFolder"
    data, model, trainer = mine["data"]["init_args"], mine["model"]["init_args"], mine["trainer"]
    assert len(data["exclude"]) == 3
    assert "short.png" in data["exclude"]
    assert {"root": "my pictures", "image_size": 16, "batch_size": 8, "skip_broken": True}.items() <= data.items()
    assert "growing" not in data
    # 0.0002 x 16 x 16 / 8
    assert model["penalties"] == [{"class_path": "R1", "init_args": {"weight": 0.0064}}]
    assert model["augment"] == {"class_path": "ADA"}
    assert [each["class_path"] for each in trainer["callbacks"]] == ["EMA", "EarlyWarning"]
    assert trainer["max_steps"] == 100, "that of the configuration, which takes seconds"
    assert "kimg in steps of 8: about" in text
    assert_every_line_has_a_reason(text)

    again = command("advise", "--data", folder, "--config", small, "--write", "out/mine.yaml", "--probe", "false")
    assert again.code == 1
    assert "out/mine.yaml is there already. Name another file, or replace it with --overwrite true." in again.err

    ended = command("fit", "--config", "out/mine.yaml", *QUICK, "--trainer.val_check_interval", 1)
    assert ended.code == 0, ended.err
    (last,) = Path("runs").rglob("last.ckpt")
    history = (last.parent.parent / "history.jsonl").read_text()
    assert "val/sample_distance" in history


def assert_every_line_has_a_reason(text):
    lines = [line for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        opens = line.rstrip().endswith(":") or line.strip() == "-"
        assert "#" in line or opens or "# " in lines[number - 1], line


def test_a_folder_alone_gets_a_shipped_configuration(folder, command):
    ended = command("advise", "--data", folder, "--probe", "false", "--write", "mine.yaml")
    assert ended.code == 0, ended.err
    assert "how long that takes was not measured" in " ".join(ended.out.split())
    mine = yaml.safe_load(Path("mine.yaml").read_text())
    assert mine["data"]["init_args"]["root"] == "my pictures"
    assert mine["data"]["init_args"]["batch_size"] <= 18
    assert not Path("runs").exists()


def test_what_is_given_of_the_data_is_kept(folder, small, command):
    given = "--data", "ImageFolder", "--data.root", folder, "--data.image_size", 8, "--data.channels", 1
    ended = command("advise", *given, "--config", small, "--probe", "false", "--write", "mine.yaml")
    assert ended.code == 0, ended.err
    data = yaml.safe_load(Path("mine.yaml").read_text())["data"]["init_args"]
    assert (data["image_size"], data["channels"]) == (8, 1)
    assert "data.image_size" not in ended.out


def test_two_domains_are_translated(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for place in ("trainA", "trainB", "testA", "testB"):
        for i in range(3):
            save(Path("two") / place / f"{place}{i}.png", 10 * i + sum(place.encode()), height=40, width=40)
    ended = command("advise", "--data", "two", "--probe", "false", "--write", "mine.yaml")
    assert ended.code == 0, ended.err
    mine = yaml.safe_load(Path("mine.yaml").read_text())
    assert (mine["model"]["class_path"], mine["data"]["class_path"]) == ("CycleGAN", "UnpairedImageFolder")
    assert (mine["data"]["init_args"]["crop"], mine["data"]["init_args"]["resize"]) == (32, 36)
    assert mine["trainer"]["max_steps"] == 600  # 200 epochs of 3


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no pictures"),
        ({"a.txt": None}, "holds no pictures (jpg, png, webp, tif and others that Pillow reads), only 1 .txt"),
        ({"a.png": 0}, "holds 1 picture(s): too few to split into train, val and test"),
        ({f"{i}.png": 0 for i in range(30)}, "There is one single picture to train on, without copies of others"),
    ],
    ids=["empty", "no pictures", "one", "copies"],
)
def test_what_cannot_be_learnt_from_is_refused(files, message, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("few").mkdir()
    for name, seed in files.items():
        (Path("few") / name).write_text("words") if seed is None else save(Path("few") / name, seed)
    ended = command("advise", "--data", "few", "--probe", "false")
    assert ended.code == 1
    assert message in ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "not/there"), "not/there does not exist"),
        (("--data", "pictures.zip"), "pictures.zip is a file. Unpack it"),
        (("--data", "Nonsense"), "Nonsense"),
        ((), "data"),
        (("--data", "GridOfGaussians", "--hours", 0), "hours must be above 0, got 0"),
        (("--data", "GridOfGaussians", "--config", "nonsense"), "There is no configuration 'nonsense'"),
        (("--data", "Scenes", "--config", "vqvae_prior"), "advise cannot try a model that is made of another"),
    ],
)
def test_what_is_asked_for_wrongly_is_said(arguments, message, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("pictures.zip").touch()
    ended = command("advise", *arguments)
    assert ended.code in (1, 2)
    assert message in ended.err


def test_lines_keep_their_meaning():
    settings = {
        "a": [{"class_path": "A", "init_args": {"x" * 50: 1, "y" * 50: {"b": [1, 2]}}}, {"class_path": "B"}, 3, []],
        "c": {},
        "d": {"e": None, "f": "yes", "g": 1e-05, "h": "a: b # c", "i": True, "long": ["word"] * 40},
    }
    reasons = {("a", "1"): "of two words", ("a", "0", "class_path"): "first", ("d", "f"): "why " * 60}
    text = "\n".join(commented(settings, reasons, "as before"))
    assert yaml.safe_load(text) == settings
    assert "# Of two words." in text
    assert text.count("# as before") > 5
    assert max(map(len, text.splitlines())) <= 130
