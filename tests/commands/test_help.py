import json
import os
import subprocess
import sys
from argparse import ArgumentError

import pytest

from lightning_gen import data, models
from lightning_gen.commands import help, signatures
from lightning_gen.commands.help import COMMANDS, TRAINER, help_for

NARROW = 80


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", str(NARROW))


def listed(text):
    """The options that a help lists."""
    return [line.split()[0] for line in text.splitlines() if line.startswith("  --")]


# -- at once ----------------------------------------------------------------------------------------------------------

AT_ONCE = [
    *([command, "--help"] for command in COMMANDS),
    ["fit", "cyclgan"],
    ["fit", "--config=cyclgan"],
    ["advise", "--config", "cyclgan"],
    ["fit"],
    ["fit", "--data", "Scenes"],
    ["fit", "--model.help"],
    ["fit", "--model.help", "CycleGAN"],
    ["fit", "--config", "cyclegan", "--data.help"],
    ["fit", "--trainer.callbacks.help", "EMA"],
    ["sampel"],
]


def test_help_and_misspelt_names_import_nothing_heavy():
    script = (
        "import sys, json, io, contextlib, lightning_gen.cli\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    out = io.StringIO()\n"
        "    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):\n"
        "        try: lightning_gen.cli.main(arguments)\n"
        "        except SystemExit as stop: code = stop.code\n"
        "    heavy = [name for name in ('torch', 'lightning', 'jsonargparse', 'numpy', 'PIL') if name in sys.modules]\n"
        "    print(json.dumps([code, heavy, len(out.getvalue())]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, json.dumps(AT_ONCE)], capture_output=True, text=True, check=True
    )
    answers = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(answers) == len(AT_ONCE)
    for arguments, (code, heavy, length) in zip(AT_ONCE, answers, strict=True):
        assert heavy == [], arguments
        assert length > 60, arguments
        assert (code == 0) == (arguments[-1] not in ("cyclgan", "--config=cyclgan", "fit", "Scenes", "sampel"))


# -- what it says -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command_fits_and_says_something_of_each_option(command):
    text = help_for([command, "--help"])
    assert text.startswith(f"usage: lightning-gen {command}")
    lines = text.splitlines()
    assert max(map(len, lines)) <= NARROW
    for place, line in enumerate(lines):
        if line.startswith("  --"):
            assert "  " in line.strip() or lines[place + 1].startswith("      "), line
    assert help_for([command, "-h"]) == text


def test_the_options_of_help_are_those_that_commands_know():
    for command in COMMANDS:
        known = {f"--{name}" for name in help.options([command])}
        found = {name for name in listed(help_for([command, "--help"])) if not name.endswith(".help")}
        assert found - known <= ({"--data"} if command == "advise" else {"--config"}), command


def test_the_help_of_a_model():
    text = help_for(["fit", "--model.help", "CycleGAN"])
    lines = text.splitlines()
    assert len(lines) <= 64
    assert max(map(len, lines)) <= NARROW
    one = signatures.find("lightning_gen.models.CycleGAN")
    assert listed(text) == [f"--model.{name}" for name in signatures.parameters(one) if name != "image_shape"]
    flat = " ".join(text.split())
    assert "One of ResNetGenerator, UNetGenerator. (default: ResNetGenerator)" in flat
    assert "--model.lambda_A NUMBER Weight of the cycle A -> B -> A. (default: 10.0)" in flat
    assert "torch.nn" not in text


@pytest.mark.parametrize(
    ("model", "argument", "some", "others"),
    [
        ("DCGAN", "generator", ["DCGANGenerator", "MLPGenerator"], ["ResNetGenerator", "DCGANDiscriminator"]),
        ("CycleGAN", "generator", ["ResNetGenerator", "UNetGenerator"], ["DCGANGenerator", "MLPGenerator"]),
        ("PixelCNN", "network", ["PixelCNNNetwork", "GPTNetwork"], ["MappingNetwork", "TextGPTNetwork"]),
        ("VAE", "decoder", ["MLPDecoder", "ConvDecoder"], ["MLPEncoder"]),
        ("GAN", "loss", ["Hinge", "Minimax", "RelativisticPairing"], ["AdversarialLoss", "SeparableLoss", "R1"]),
        ("GAN", "penalties", ["GradientPenalty", "R1"], ["Penalty", "InputGradientPenalty"]),
        ("VQVAE", "quantizer", ["VectorQuantizer", "FiniteScalarQuantizer"], ["Quantizer"]),
        ("TextToImage", "tokenizer", ["BPETokenizer", "ByteTokenizer"], ["BaseTokenizer"]),
        ("CodePrior", "first_stage", [], ["VQVAE"]),
        ("GAN", "learning_rate", ["Linear", "Cosine"], []),
        ("GAN", "latent_size", [], []),
    ],
)
def test_the_classes_that_fit_an_argument(model, argument, some, others):
    parameter = signatures.parameters(signatures.find(f"lightning_gen.models.{model}"))[argument]
    found = help.choices(parameter)
    assert {*some} <= {*found}
    assert not {*others} & {*found}
    assert bool(some) == bool(found)


def test_models_and_data_modules_have_a_line_each():
    text = help_for(["fit", "--model.help"])
    heads = {line.split()[0] for line in text.splitlines() if line.startswith("  ") and line[2] != " "}
    assert heads == {*models.__all__}
    text = help_for(["data", "--data.help"])
    heads = {line.split()[0] for line in text.splitlines() if line.startswith("  ") and line[2] != " "}
    assert {"Scenes", "ImageFolder", "CIFAR10"} <= heads <= {*data.__all__}
    assert "ImageDataModule" not in heads
    assert "`lightning-gen data --data.help NAME` lists the options of one." in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "begins"),
    [
        (["--config", "cyclegan", "--model.help"], "CycleGAN (--model CycleGAN). "),
        (["--model", "VAE", "--model.help"], "VAE (--model VAE). "),
        (["--config=cyclegan", "--model=VAE", "--model.help"], "VAE (--model VAE). "),
        (["--config", "cyclegan", "--model.help=VAE"], "VAE (--model VAE). "),
        (["--config", "cyclegan", "--data.help"], "UnpairedScenes (--data UnpairedScenes). "),
        (["--config", "cyclegan", "--model.generator.help"], "ResNetGenerator (--model.generator "),
        (["--model", "GAN", "--model.loss.help", "Hinge"], "Hinge (--model.loss Hinge). "),
        (["--model", "GAN", "--model.loss.help"], "  --model.loss CLASS"),
        (["--model", "GAN", "--model.generator.help", "DCGANGenerator"], "DCGANGenerator (--model.generator "),
        (["--model", "GAN", "--model.micro_batches.help"], "  --model.micro_batches INT"),
        (["--trainer.callbacks.help", "EMA"], "EMA (--trainer.callbacks EMA). "),
        (["--trainer.max_steps.help"], "  --trainer.max_steps INT"),
    ],
)
def test_help_is_of_what_is_named_or_given(arguments, begins):
    assert help_for(["fit", *arguments]).startswith(begins)


@pytest.mark.parametrize("checkpoint", ["run", "run/best", "run/checkpoints/last.ckpt"])
def test_help_is_of_the_run_that_is_gone_on_with(tmp_path, checkpoint):
    run = tmp_path / "run"
    for folder in ("best", "checkpoints"):
        (run / folder).mkdir(parents=True)
        (run / folder / "last.ckpt").touch()
    (run / "config.yaml").write_text("model:\n  class_path: WGANGP\ndata: Digits\n")
    going_on = ["fit", "--ckpt_path", str(tmp_path / checkpoint)]
    assert help_for([*going_on, "--model.help"]).startswith("WGANGP (--model WGANGP). ")
    assert help_for([*going_on, "--data.help"]).startswith("Digits (--data Digits). ")
    assert help_for([*going_on, "--model", "VAE", "--model.help"]).startswith("VAE (--model VAE). ")


def test_the_whole_of_an_argument_is_shown_when_asked_for():
    brief = help_for(["fit", "--model.help", "GAN"])
    whole = " ".join(help_for(["fit", "--model", "GAN", "--model.micro_batches.help"]).split())
    end = "looks at those of a piece, as it would at those of a process."
    assert end in whole
    assert end not in " ".join(brief.split())


def test_callbacks_are_ours_and_lightnings():
    text = help_for(["fit", "--trainer.callbacks.help"])
    heads = {line.split()[0] for line in text.splitlines() if line.startswith("  ") and line[2] != " "}
    assert {"EMA", "GenerativeMetrics", "EarlyStopping", "ModelCheckpoint"} <= heads
    assert "Callback" not in heads


def test_a_class_of_a_users_file(tmp_path, monkeypatch):
    (tmp_path / "brushes.py").write_text(
        "from lightning_gen.models import WGANGP\n"
        "class Wide(WGANGP):\n"
        "    '''Wider.\n\n    Args:\n        width: How wide.\n    '''\n"
        "    def __init__(self, image_shape, width: int = 2, **settings):\n"
        "        super().__init__(image_shape, **settings)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = help_for(["fit", "--model.help", "brushes.Wide"])
    assert text.startswith("Wide (--model Wide). Wider.")
    assert {"--model.width", "--model.n_critic", "--model.compile"} <= {*listed(text)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.help", "CycelGAN"], "There is no model 'CycelGAN'. Did you mean CycleGAN?"),
        (["--data.help", "Scense"], "There is no data module 'Scense'. Did you mean Scenes?"),
        (["--model.help", "xyzzy"], "There is no model 'xyzzy'. There are Classifier, CodePrior, "),
        (["--model", "GAN", "--model.generater.help"], "GAN has no argument 'generater'. Did you mean generator?"),
        (["--model", "GAN", "--model.loss.help", "Hinje"], "loss takes no 'Hinje'. Did you mean Hinge?"),
    ],
)
def test_help_of_what_there_is_not(arguments, words):
    with pytest.raises(ArgumentError) as error:
        help_for(["fit", *arguments])
    assert str(error.value).startswith(words)


def test_no_help_where_none_is_asked_for():
    assert help_for(["fit", "--config", "cyclegan"]) is None
    assert help_for(["sample", "--output", "help"]) is None
    assert all(help_for([command, "--model", "GAN"]) is None for command in TRAINER)
    assert os.environ["COLUMNS"] == str(NARROW)
