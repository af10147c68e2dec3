"""That the port does the same, what the stages are, and that the GPU's script runs."""

import json

import pytest
import torch

from benchmarks import growing_accelerator
from benchmarks.accelerator import Place
from benchmarks.growing import Loop, Stages, differences, main, model_at, naive_beside
from benchmarks.ports.stylegan import copy_weights

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


def test_the_port_draws_judges_and_learns_as_ours_does():
    torch.manual_seed(0)
    model, real = model_at(16, 12, 2).double(), torch.rand(8, 3, 16, 16).double() * 2 - 1
    naive = naive_beside(model)
    for network in (naive.generator, naive.discriminator):
        network.double()
    copy_weights(model.generator, naive.generator)  # without being rounded on the way
    copy_weights(model.discriminator, naive.discriminator)
    torch.set_default_dtype(torch.float64)
    try:
        assert max(differences(model, naive, real).values()) < 1e-9
        naive.discriminator.blocks[0][0].scale *= 1.01
        apart = differences(model, naive, real)
    finally:
        torch.set_default_dtype(torch.float32)
    assert apart["gradients of the discriminator"] > 1e-3
    assert apart["pictures"] < 1e-9


def test_both_make_a_step_with_all_weights_that_are_used():
    torch.manual_seed(0)
    model, real = model_at(16, 12, 2), torch.rand(4, 3, 16, 16) * 2 - 1
    naive = naive_beside(model)
    before = [each.clone() for each in model.discriminator.parameters()]
    networks = (model.generator, naive.generator), (model.discriminator, naive.discriminator)
    Loop(model, torch.float32)(real)
    naive.step(real)
    for own, other in networks:
        pairs = zip(own.parameters(), other.parameters(), strict=True)
        assert [p.grad is None for p, _ in pairs] == [q.grad is None for q in other.parameters()]
    moved = [not torch.equal(a, b) for a, b in zip(before, model.discriminator.parameters(), strict=True)]
    assert moved == [each.grad is not None for each in model.discriminator.parameters()]


def test_hours_are_pictures_over_rates():
    """Each phase at its own rate; in full size from the start all at the last."""
    tried = Stages("stylegan", 16, 4, torch.float32)
    assert (tried.last, tried.growing.resolutions) == (16, (8, 16))
    assert list(tried.phases()) == [(8, False), (16, True), (16, False)]
    rates = {(8, False): 100.0, (16, True): 20.0, (16, False): 40.0}
    starts = [phase.start for phase in tried.growing.phases()]
    grown, full = tried.hours(rates, 100_000)
    assert full == pytest.approx(100_000 / 40 / 3600)
    seconds = starts[1] / 100 + (starts[2] - starts[1]) / 20 + (100_000 - starts[2]) / 40
    assert grown == pytest.approx(seconds / 3600)
    assert tried.hours(rates, 4000) == pytest.approx((40 / 3600, 100 / 3600))  # in which nothing has grown yet


def test_it_prints_both_parts(capsys, tmp_path):
    sizes = ["--width", "8", "--mapping-layers", "1", "--side", "16", "--largest-batch", "4", "--configs", "stylegan"]
    main([*sizes, "--turns", "1", "--json", str(tmp_path / "figures.json")])
    printed = capsys.readouterr().out
    assert "bfloat16, R1 in every 16th" in printed
    assert "times as long" in printed
    assert set(json.loads((tmp_path / "figures.json").read_text())["figures"]) == {"step", "stages"}
    with pytest.raises(SystemExit):
        main(["speed"])
    assert "got speed" in capsys.readouterr().err


def test_the_script_of_the_gpu_runs_on_a_cpu_in_small(tmp_path):
    place = Place(torch.device("cpu"), small=True, seconds=0.0)
    kinds = [(item.kind, item.what, item.setting) for item in growing_accelerator.items([64, 128, 256], place)]
    assert len(kinds) == len(set(kinds)) == 12
    on_gpu = Place(torch.device("cuda"), small=False, seconds=5.0)
    assert sum(item.estimate for item in growing_accelerator.items([64, 128, 256], on_gpu)) < 8 * 60
    assert [growing_accelerator.batch_at(side, on_gpu) for side in (64, 128, 256)] == [32, 16, 8]
    assert growing_accelerator.main(["--sides", "8", "--minutes", "0.9", "--output", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "accelerator.json").read_text())["rows"]
    assert [(row["kind"], row["status"]) for row in rows[:3]] == [
        ("sync", "not applicable"),
        ("train", "done"),
        ("train", "done"),
    ]
    figures = rows[1]["figures"]
    assert figures["hours"] == pytest.approx(25_000_000 / figures["images_per_second"] / 3600)
