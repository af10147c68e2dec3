"""How a recipe is cut to some minutes, and how its row is made."""

import json

import pytest

from benchmarks.results import Figure, Row, figures_of_samples, figures_of_test, for_steps, main, steps_in, undisturbed
from benchmarks.shipped import settings_of
from lightning_gen.cli import main as lightning_gen


def run(arguments):
    try:
        lightning_gen([*arguments, "--debug"])
    except SystemExit as stop:
        if stop.code:
            raise


def test_a_recipe_is_trained_for_its_minutes_and_measured(tmp_path, fresh_process, capsys):
    commands = []

    def command(arguments):
        commands.append(arguments[0])
        fresh_process(run, [*arguments, *(["--trainer.accelerator", "cpu"] if arguments[0] == "fit" else [])])

    options = ["--model.network.filters", "4", "--data.num_workers", "0"]
    main(["pixelcnn", "--minutes", "0.03", "--output", str(tmp_path), "--", *options], command)
    assert commands == ["fit", "fit", "test"]
    record = json.loads((tmp_path / "pixelcnn" / "row.json").read_text())["row"]
    steps, images = record["steps"], record["images"]
    assert steps > 1
    assert images == steps * settings_of("pixelcnn")["data"]["init_args"]["batch_size"]
    assert 0 < record["minutes"] < 3
    assert record["figures"]["bpd-17level"]["value"] > 1
    head, _, line = capsys.readouterr().out.splitlines()[-3:]
    assert head == "| | minutes | steps | real pictures shown | `nll` | `bpd-17level` | published |"
    assert line.startswith(f"| `pixelcnn {' '.join(options)}` | ")
    assert f" | {steps:,} | {images:,} | " in line


def test_schedules_end_with_the_steps_and_nothing_else_is_done(tmp_path):
    settings = settings_of("paper/gated_pixelcnn_mnist")
    short = for_steps(settings, 1000)
    assert short["model"]["init_args"]["lr_decay"] ** 1000 == pytest.approx(0.01)
    assert short["trainer"]["callbacks"] == [
        {"class_path": "EMA", "init_args": {"modules": ["network"], "decay": 0.98}}
    ]
    assert short["trainer"]["max_steps"] == 1000
    # What averages, by itself or by its configuration, goes on doing so.
    assert "callbacks" not in settings_of("paper/pixelcnn_pp_cifar10")["trainer"]
    assert for_steps(settings_of("paper/pixelcnn_pp_cifar10"), 1000)["trainer"]["callbacks"] == []
    pixelcnn = settings_of("pixelcnn")
    assert for_steps(pixelcnn, 1000)["trainer"]["callbacks"] == pixelcnn["trainer"]["callbacks"]
    # Adversarial models have their own schedule.
    wgan = settings_of("paper/wgan_gp_mnist")
    assert for_steps(wgan, 1000)["model"] == wgan["model"]
    quiet = undisturbed(short, tmp_path)
    assert quiet["trainer"]["limit_val_batches"] == 0
    assert quiet["test_after_fit"] is False
    assert settings == settings_of("paper/gated_pixelcnn_mnist")


def test_the_later_half_of_a_trial_tells_the_steps():
    history = [{"step": k, "seconds": 10 + k * (3 if k < 5 else 2)} for k in range(1, 10)]
    assert steps_in(60, history) == round(60 * 4 / (28 - 20))
    with pytest.raises(ValueError, match="too short"):
        steps_in(60, history[:1])


def test_figures_of_samples_have_a_floor_and_a_spread(tmp_path):
    run, given = tmp_path, []

    def command(arguments):
        given.append(arguments)
        figures = {
            "fid-lenet64": {"value": 8.4, "std": 0.07, "samples": 10},
            "kid-lenet64": {"value": 1.0},
            "precision-lenet64": {"value": None},
        }
        entry = {"figures": figures, "floor": {"fid-lenet64": {"value": 0.046}}}
        (run / "evaluations.json").write_text(json.dumps({"evaluations": [{"figures": {}}, entry]}))

    figures = figures_of_samples(run, 10, command)
    assert figures["fid-lenet64"] == Figure(8.4, 0.07, 0.046)
    assert [*figures] == ["fid-lenet64", "precision-lenet64"]
    (arguments,) = given
    assert arguments[:3] == ["evaluate", "--checkpoint", str(run / "checkpoints" / "last.ckpt")]
    assert arguments[3:] == ["--num_samples", "10", "--seeds", "[0, 1, 2]", "--floor", "true"]
    row = Row("paper/wgan_gp_mnist", 3.04, 1200, 300_000, figures, "")
    assert row.table().splitlines() == [
        "| | minutes | steps | real pictures shown | `fid-lenet64` | `precision-lenet64` | published |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| `paper/wgan_gp_mnist` | 3.0 | 1,200 | 300,000 | 8.4 ± 0.07 (floor 0.046) | nan | |",
    ]


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (
            {"test/psnr_AtoB": 26.0, "test/color_mapping_psnr_AtoB": 18.7, "test/ssim_AtoB": 0.9},
            {"psnr_AtoB": Figure(26.0, floor=18.7), "ssim_AtoB": Figure(0.9)},
        ),
        ({"test/discriminator": 1.4, "test/modes": 25.0, "test/fid-points2": 0.1}, {"modes": Figure(25.0)}),
    ],
)
def test_figures_of_a_test(tmp_path, metrics, expected):
    (tmp_path / "results.json").write_text(json.dumps({"metrics": metrics}))
    assert figures_of_test(tmp_path, lambda arguments: None) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kde"], "kde is not trained in steps"),
        (["gan", "--minutes", "0"], "--minutes must be above 0"),
        (["gan", "--samples", "0"], "--samples 1 or more"),
    ],
)
def test_wrong_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err
