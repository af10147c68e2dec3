"""What a model predicts lies in files afterwards, under the numbers of the pictures that it is of."""

from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset

from lightning_gen.commands.predict import PredictionWriter
from lightning_gen.data import Digits
from lightning_gen.data.images import read_image, to_uint8
from lightning_gen.generative import GenerativeModule
from lightning_gen.models import KDE


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Echo(pl.LightningModule):
    """Predicts what a function makes of a batch."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def predict_step(self, batch, batch_idx):
        return self.function(batch)


def predict(model, data, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(callbacks=[PredictionWriter(Path("out"), **settings)], **quiet)
    return trainer.predict(model, data, return_predictions=False)


def loader(number=5, batch_size=2):
    return DataLoader(torch.arange(float(number)), batch_size=batch_size)


def files():
    return sorted(path.relative_to("out").as_posix() for path in Path("out").rglob("*") if path.is_file())


def table():
    return Path("out/predictions.csv").read_text().splitlines()


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_become_files_by_their_number(channels, capsys):
    predict(Echo(lambda x: x.view(-1, 1, 1, 1).expand(-1, channels, 4, 6) / 8), loader())
    assert files() == [f"00000{i}.png" for i in range(5)]
    for i in range(5):
        assert torch.equal(read_image(f"out/00000{i}.png", channels), to_uint8(torch.full((channels, 4, 6), i / 8)))
    assert "Predictions for 5 pictures written into out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("function", "lines"),
    [
        (lambda x: -x / 10, ["picture,value", "0,-0.0", "1,-0.1", "2,-0.2", "3,-0.3"]),
        (lambda x: x.long(), ["picture,value", "0,0", "1,1", "2,2", "3,3"]),
        (lambda x: {"nats": x, "bits": (2 * x).double()}, ["picture,nats,bits", "0,0.0,0.0", "1,1.0,2.0", "2,2.0,4.0"]),
        (lambda x: torch.stack([x, x + 0.5], 1), ["picture,x0,x1", "0,0.0,0.5", "1,1.0,1.5"]),
        (lambda x: (x / 2).view(-1, 1, 1, 1).expand(-1, 2, 1, 1), ["picture,x0,x1", "0,0.0,0.0", "1,0.5,0.5"]),
        (lambda x: (x / 4).bfloat16(), ["picture,value", "0,0.0", "1,0.25"]),
    ],
)
def test_numbers_become_a_table(function, lines):
    predict(Echo(function), loader())
    assert files() == ["predictions.csv"]
    assert table()[: len(lines)] == lines
    assert len(table()) == 6


def test_a_dictionary_of_everything():
    def function(x):
        image = x.view(-1, 1, 1, 1).expand(-1, 3, 2, 2)
        return {"AtoB": image, "score": x, "maps": image.expand(-1, 3, 2, 2)[:, :2], "nothing": None, "words": ["a"]}

    predict(Echo(function), loader(3))
    assert files() == [
        *(f"AtoB/00000{i}.png" for i in range(3)),
        *(f"maps/batch_00000{i}.pt" for i in range(2)),
        "predictions.csv",
        *(f"words/batch_00000{i}.pt" for i in range(2)),
    ]
    assert torch.equal(torch.load("out/maps/batch_000001.pt"), torch.full((1, 2, 2, 2), 2.0))
    assert table() == ["picture,score", "0,0.0", "1,1.0", "2,2.0"]


def test_log_probabilities_bear_their_name():
    data = Digits(batch_size=64, num_workers=0)
    model = KDE((1, 8, 8), bandwidth=0.2)
    model.add(next(iter(data.val_dataloader()))["image"])
    predict(model, data)
    assert table()[0] == "picture,log_prob"
    expected = model.log_prob(torch.cat([batch["image"] for batch in data.predict_dataloader()]))
    assert [float(line.split(",")[1]) for line in table()[1:]] == pytest.approx(expected.tolist(), rel=1e-6)


def test_earlier_predictions_stop_it_unless_told_otherwise():
    predict(Echo(lambda x: x), loader())
    with pytest.raises(FileExistsError, match="holds 1 file already"):
        predict(Echo(lambda x: x), loader())
    Path("out/mine.txt").write_text("mine")
    predict(Echo(lambda x: x.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)), loader(2), overwrite=True)
    assert files() == ["000000.png", "000001.png", "mine.txt"]


def test_data_without_numbers_is_counted():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(torch.arange(5.0))

    predict(Echo(lambda x: x), DataLoader(Stream(), batch_size=2))
    assert table() == ["picture,value", *(f"{i},{i}.0" for i in range(5))]


def two_ranks(rank):
    """As Lightning calls it: rank 0 has the pictures 0 and 2, rank 1 the picture 1."""
    writer = PredictionWriter(Path("out"), overwrite=True)
    trainer = SimpleNamespace(
        strategy=SimpleNamespace(barrier=dist.barrier),
        is_global_zero=rank == 0,
        global_rank=rank,
        world_size=2,
        fast_dev_run=False,
    )
    model = Echo(None)
    writer.on_predict_start(trainer, model)
    for places in ([0], [2]) if rank == 0 else ([1],):
        values = torch.tensor(places).float()
        prediction = {"pictures": values.view(-1, 1, 1, 1).expand(-1, 1, 2, 2) / 4, "value": values}
        writer.write_on_batch_end(trainer, model, prediction, places, None, 0, 0)
    writer.on_predict_end(trainer, model)


def test_ranks_write_their_own_pictures_and_one_table(on_ranks, capfd):
    Path("out/pictures").mkdir(parents=True)
    for i in range(9):
        Path(f"out/pictures/00000{i}.png").write_bytes(b"earlier")
    assert on_ranks(two_ranks) == [None, None]
    assert files() == [*(f"pictures/00000{i}.png" for i in range(3)), "predictions.csv"]
    assert all(read_image(f"out/pictures/00000{i}.png", 1).unique() == to_uint8(torch.tensor(i / 4)) for i in range(3))
    assert table() == ["picture,value", "0,0.0", "1,1.0", "2,2.0"]
    assert capfd.readouterr().out.count("Predictions for 3 pictures written into out") == 1


def test_models_say_what_their_numbers_are():
    assert GenerativeModule.prediction_name == "value"
    assert KDE.prediction_name == "log_prob"
