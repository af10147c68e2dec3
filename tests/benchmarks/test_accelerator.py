"""What the standing check runs, in small, and that it keeps to its time."""

import json

import pytest
import torch

from benchmarks import accelerator
from benchmarks.accelerator import (
    KINDS,
    MODELS,
    SYNC_STEPS,
    Item,
    NotApplicable,
    Place,
    extracting,
    gpu_tests,
    items,
    main,
    run,
    synchronisation,
    table,
)
from benchmarks.contestants import ALONE
from benchmarks.shipped import batch_of, model_of, settings_of
from lightning_gen.commands.configs import shipped_configs
from lightning_gen.models import CycleGAN, PixelCNN

CPU = Place(torch.device("cpu"), small=True, seconds=0.0)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_it_does_what_the_time_allows_and_lists_the_rest():
    clock, left, reports = Clock(), [], []

    def taking(seconds, error=None):
        def measure(seconds_left):
            left.append(seconds_left)
            clock.now += seconds
            if error:
                raise error
            return "came out", {"figure": 1.0, "peak_memory_mib": 5.4}

        return measure

    todo = [
        Item("train", "a", "bf16", 10, taking(12)),
        Item("train", "b", "bf16", 50, taking(0)),  # 48 s are left
        Item("sync", "c", "", 5, taking(3, RuntimeError("waited\nfor | it"))),
        Item("sync", "d", "", 0, taking(0, NotApplicable("needs CUDA"))),
        Item("train", "e", "float32", 45, taking(60)),  # takes longer than it said, and more than there is
        Item("train", "f", "float32", 0.1, taking(1)),
    ]
    rows = run(todo, 60, lambda rows: reports.append([row.status for row in rows]), clock)
    assert [row.status for row in rows] == ["done", "not run", "failed", "not applicable", "done", "not run"]
    assert left == [60, 48, 45, 45]
    assert rows[1].result == "needs 50 s"
    assert rows[2].result == "RuntimeError: waited"
    assert "for | it" in rows[2].error
    assert [row.seconds for row in rows] == [12, 0, 3, 0, 60, 0]
    # The file is there from the beginning, and after each that was tried.
    assert len(reports) == 5
    assert set(reports[0]) == {"not run"}
    assert reports[1] == ["done", *["not run"] * 5]
    lines = table(rows, {"device": "Some GPU", "torch": "2"}).splitlines()
    assert lines[0] == "Some GPU, torch 2"
    assert lines[4] == "| train | a | bf16 |  | came out | 5 | 12.0 |"
    assert lines[5] == "| train | b | bf16 | not run | needs 50 s |  |  |"
    assert lines[6] == "| sync | c |  | failed | RuntimeError: waited |  | 3.0 |"
    json.dumps([row.record for row in rows])


def test_on_a_cpu_it_runs_in_small(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "as it was")
    kinds = ["tests", "sync", "train", "sampling"]
    models = ["GAN", "DiagonalBiLSTM"]
    assert main(["--kinds", *kinds, "--models", *models, "--output", str(tmp_path), "--minutes", "2"]) == 0
    content = json.loads((tmp_path / "accelerator.json").read_text())
    assert content["machine"]["torch"] == torch.__version__
    rows = {(row["kind"], row["what"], row["setting"]): row for row in content["rows"]}
    assert [key[0] for key in rows] == ["tests", *["sync"] * 2, *["train"] * 4, "sampling"]
    for kind, what, setting in rows:
        row = rows[kind, what, setting]
        expected = "not applicable" if kind in ("tests", "sync") else "done"
        assert row["status"] == expected, row
        assert all(value > 0 for value in row["figures"].values())
    assert rows["train", "gan", "32-true"]["figures"]["batch_size"] == 256
    assert "images/s" in rows["train", "diagonal_bilstm", "bf16-mixed"]["result"]
    assert rows["tests", "pytest -m gpu", ""]["result"] == "needs CUDA"
    assert (tmp_path / "accelerator.md").read_text().count("\n| ") == len(rows) + 2
    assert "5 done, 0 failed, 0 not run" in capsys.readouterr().out


def test_the_extractor_s_rate_is_of_random_weights():
    result, figures = extracting("bfloat16", 2, CPU, 100.0)
    assert figures["pictures_per_second"] > 0
    assert result.endswith(" pictures/s")


def test_the_kinds_come_in_order_of_worth_and_compiling_last():
    listed = list(items(KINDS, ["CycleGAN"], Place(torch.device("cuda"), False, 2.0)))
    kinds = [item.kind for item in listed]
    assert list(dict.fromkeys(kinds)) == ["tests", "sync", "train", "extractor", "compiled"]  # it draws no pixels
    assert [item.setting for item in listed if item.kind == "train"] == ["bf16-mixed", "32-true"]
    everything = list(items(KINDS, list(MODELS), Place(torch.device("cuda"), False, 2.0)))
    assert sum(item.estimate for item in everything if item.kind in ("tests", "sync", "train")) <= 8 * 60


def test_steps_are_watched_once_all_that_is_made_at_first_use_is_there(monkeypatch):
    modes = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    result, _ = synchronisation("gan", "bf16-mixed", CPU, 100.0)
    assert modes == ["default", "default"] * ALONE + ["error", "default"] * SYNC_STEPS
    assert result == f"no wait in {SYNC_STEPS} steps"

    def waits(mode):
        if mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", waits)
    with pytest.raises(RuntimeError, match="synchronizing"):
        synchronisation("gan", "bf16-mixed", CPU, 100.0)


def test_pictures_that_differ_between_graphs_and_eager_steps_are_a_failure(monkeypatch):
    class Shifting:
        image_shape = (1, 8, 8)

        def __init__(self):
            self.calls = 0

        def sample(self, number, generator):
            self.calls += 1
            return torch.full((number, 1, 8, 8), float(self.calls))

    class Entry:
        sides, batches, model = (8,), (2,), Shifting

        def make(self, side, device):
            return Shifting()

    monkeypatch.setitem(accelerator.SAMPLED, "PixelCNN", Entry())
    with pytest.raises(RuntimeError, match="128 of 128 pixels differ"):
        accelerator.drawing("PixelCNN", 8, 2, CPU, 100.0)


def test_tests_marked_gpu_are_found_in_all_folders_and_their_failures_are_told(tmp_path):
    marked = "import pytest\n\n@pytest.mark.gpu\ndef test_on_gpu():\n    {}\n\ndef test_elsewhere():\n    assert 0\n"
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "test_a.py").write_text(marked.format("pass"))
    (tmp_path / "deep" / "er" / "test_b.py").write_text(marked.format("pass"))
    (tmp_path / "test_c.py").write_text("def test_elsewhere():\n    assert 0\n")
    result, figures = gpu_tests(tmp_path, 100.0)
    assert "2 passed, 2 deselected" in result
    assert figures == {"files": 2}
    (tmp_path / "test_a.py").write_text(marked.format("assert 3 == 4"))
    with pytest.raises(RuntimeError, match=r"1 failed, 1 passed[^\n]*\n(.*\n)*.*assert 3 == 4"):
        gpu_tests(tmp_path, 100.0)
    with pytest.raises(TimeoutError, match="did not end within 0 s"):
        gpu_tests(tmp_path, 0.01)


def test_every_model_is_looked_at():
    classes = {settings_of(name)["model"]["class_path"] for name in shipped_configs()} - {"KDE"}
    assert set(MODELS) == classes
    for model, names in MODELS.items():
        assert [settings_of(name)["model"]["class_path"] for name in names] == [model, model]
        with torch.device("meta"):  # at full size
            made = model_of(settings_of(names[1]))
        assert getattr(made, "warmup_critic_updates", None) is None


def test_models_and_batches_are_of_the_shape_of_their_data():
    model = model_of(settings_of("paper/cyclegan_horse2zebra"), generator={"class_path": "torch.nn.Identity"})
    assert isinstance(model, CycleGAN)
    assert {name: tuple(images.shape) for name, images in batch_of(model, 2).items()} == {
        "A": (2, 3, 256, 256),
        "B": (2, 3, 256, 256),
    }
    settings = settings_of("paper/pixelcnn_mnist")
    network = {"class_path": "PixelCNNNetwork", "init_args": {"filters": 2, "layers": 1}}
    model = model_of(settings, network=network)
    assert isinstance(model, PixelCNN)
    assert "network" not in settings["data"]["init_args"]
    images = batch_of(model, 3)["image"]
    assert images.shape == (3, 1, 28, 28)
    assert set(images.flatten().tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("arguments", [["--minutes", "0"], ["--models", "KDE"], ["--kinds", "speed"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert arguments[1] in capsys.readouterr().err
