import os
import subprocess
import sys
from argparse import ArgumentError
from pathlib import Path

import pytest

from lightning_gen import __version__
from lightning_gen.cli import main
from lightning_gen.commands.configs import shipped_configs

COMMANDS = [
    "fit",
    "validate",
    "test",
    "predict",
    "data",
    "sample",
    "evaluate",
    "interpolate",
    "arithmetic",
    "translate",
    "reconstruct",
    "complete",
    "report",
    "import",
]
# No step is made, should a command be taken that ought to be refused.
CYCLEGAN = ["fit", "--config", "cyclegan", "--trainer.max_steps", "0"]


@pytest.fixture
def command(fresh_process, capfd, tmp_path, monkeypatch):
    """Run a command as a user does, in a process and a folder of its own: its exit code and standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            fresh_process(main, arguments)
        return stop.value.code, capfd.readouterr().err

    return run


# -- the door -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], []])
def test_help_lists_all_commands_and_shipped_configurations(capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    listed = [line.split()[0] for line in text.splitlines() if line.startswith("  ") and line[2] not in " -"]
    assert set(COMMANDS) <= set(listed)
    assert all(name in text for name in shipped_configs())


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["tarin"]])
def test_what_needs_no_model_imports_nothing_heavy(arguments):
    script = (
        "import sys, lightning_gen.cli\n"
        "try: lightning_gen.cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'lightning', 'jsonargparse', 'numpy', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"{__version__}\n")


def test_the_package_is_a_command():
    repository = Path(__file__).parents[1]
    arguments = [sys.executable, "-m", "lightning_gen", "--version"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=repository)
    assert done.stdout == f"{__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_help(fresh_process, capfd, name):
    with pytest.raises(SystemExit) as stop:
        fresh_process(main, [name, "--help"])
    assert not stop.value.code
    text = capfd.readouterr().out
    assert text.startswith("usage: lightning-gen ")
    assert name in text.split()[1:4]


def test_an_unknown_command(command):
    code, error = command("tarin", "--config", "cyclegan")
    assert code == 2
    assert error == "lightning-gen: error: unknown command 'tarin'; lightning-gen --help lists them.\n"


def test_a_name_that_is_not_utf_8_is_refused_in_plain_words(command):
    code, error = command("fit", "--config", "cyclegan", "--data.root", os.fsdecode(b"caf\xe9"))
    assert code == 2
    assert error.startswith("lightning-gen: error: A name that is not UTF-8 cannot be an option's value. Rename")


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "--config", "{}"],
        ["fit", "--config", "cyclegan", "--trainer.callbacks", "{}"],
    ],
)
def test_a_configuration_that_is_huge_by_its_aliases_is_refused(command, tmp_path, arguments):
    lines = ["a0: &a0 [ha, ha, ha, ha]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))]
    (tmp_path / "x.yaml").write_text("\n".join(lines))
    code, error = command(*(argument.format(tmp_path / "x.yaml") for argument in arguments))
    assert code in (1, 2)
    assert "more than 100,000 values when its aliases (*name) are written out" in error


# -- errors in plain words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.lamda_A", "1"], "Option 'lamda_A' is not accepted"),
        (
            ["--model", "PixelCNN", "--model.filters", "1"],
            "It is a setting of its network: --model.network.filters",
        ),
        (["--model.generator.init_args.filtres", "1"], "Option 'filtres' is not accepted"),
        (["--model.lambda_A", "ten"], "--model.lambda_A: expected a number, got ten."),
        (["--model", "CycelGAN"], "--model: there is no class 'CycelGAN'. Did you mean CycleGAN?"),
        (["--data.imge_size", "8"], "Option 'imge_size' is not accepted"),
        (["--trainer.limit_val_batches", "few"], "trainer.limit_val_batches: "),
        (["--trainer.callbacks", "EMA", "--trainer.callbacks.dekay", "1"], "Option 'dekay' is not accepted"),
        (["--trainr.max_steps", "1"], "unrecognized arguments: --trainr.max_steps 1"),
        (["--trainer.logger", "WandbLoger"], "WandbLoger"),
    ],
)
def test_a_misspelt_option_is_refused_by_name(command, arguments, message):
    code, error = command(*CYCLEGAN, *arguments)
    assert code == 2
    assert_plain(error, message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {class_path: CycleGAN, init_args: {lamda: 1}}", "'lamda' is not accepted"),
        ("model: {init_args: {generator: {class_path: ResnetGenerator}}}", "ResnetGenerator"),
        ("model: {init_args: {generator: {init_args: {filtres: 1}}}}", "'filtres' is not accepted"),
        ("data: {class_path: UnpairedScenes, init_args: {imge_size: 8}}", "'imge_size' is not accepted"),
        ("trainer: {max_step: 1}", "does not accept option 'trainer.max_step'"),
        ("pictures: {every: 1}", "'pictures.every'"),
        ("lr: 1", "does not accept option 'lr'"),
        ("model: [", "Problems parsing config"),
    ],
)
def test_a_misspelt_key_in_a_file_is_refused_by_name(tmp_path, command, text, message):
    path = tmp_path / "own.yaml"
    path.write_text(text)
    code, error = command(*CYCLEGAN, "--config", str(path))
    assert code == 2
    assert_plain(error, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["translate"], "the following arguments are required: checkpoint, input, output"),
        (["translate", "--chekpoint", "x"], "unrecognized arguments: --chekpoint x"),
        (["sample", "--checkpoint", "x"], "the following arguments are required: output"),
        (["interpolate", "--lable", "3", "--checkpoint", "x"], "the following arguments are required: output"),
        (
            ["interpolate", "--checkpoint", "x", "--output", "y", "--method", "cubic"],
            "--method: expected slerp, lerp or None, got cubic.",
        ),
        (["arithmetic", "--a", "1"], "the following arguments are required: checkpoint, output, b, c"),
        (["import", "--output"], "argument --output: expected one argument"),
        (["report"], "the following arguments are required: folder"),
        (["fit", "--config"], "argument -c/--config: expected one argument"),
        (["fit"], "fit was not told what to take. Name a configuration, as lightning-gen fit cyclegan: a file, or one"),
        (["fit", "--data", "UnpairedScenes"], "--model is missing. lightning-gen fit --model.help lists the models."),
    ],
)
def test_what_is_missing_is_named(command, arguments, message):
    code, error = command(*arguments)
    assert code == 2
    assert_plain(error, message)
    assert f"(lightning-gen {arguments[0]} --help lists the options)" in error


def assert_plain(error, message):
    """The message comes once, without traceback, pages of usage or the parser's lists of what might have been."""
    assert error.count("lightning-gen: error:") == 1
    assert message in error
    assert not any(noise in error for noise in ("Traceback", "usage:", "Given value", "Namespace(key", "NestedArg"))
    assert len(error.splitlines()) < 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nothing"], "There is no configuration 'nothing': neither a file of that name nor one that is"),
        (
            ["--data", "UnpairedScenes", "--data.image_size", "62", "--model.generator.downsamplings", "2"],
            "ResNetGenerator needs height and width that are multiples of 4, got 62 x 62. The nearest size that works "
            "is 64 x 64.",
        ),
        (["--checkpoint.every_n_steps", "0"], "LastCheckpoint needs every_n_steps >= 1, got 0."),
        (
            ["--trainer.callbacks", "EMA", "--trainer.callbacks.decay", "3", "--trainer.callbacks.modules", "[a]"],
            "EMA needs a decay in [0, 1), got 3.0.",
        ),
        (["--trainer.max_steps", "-7"], "`max_steps` must be a non-negative integer or -1"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_one_sentence(command, arguments, message):
    code, error = command(*CYCLEGAN, *arguments)
    assert code == 1
    assert_plain(error, message)
    final = error[error.index("lightning-gen: error:") :]
    assert len(final.splitlines()) == 2
    assert final.endswith("(--debug shows the traceback)\n")
    if "nothing" in arguments:
        assert all(name in error for name in shipped_configs())


def test_debug_shows_the_traceback(fresh_process, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match=r"Traceback[\s\S]*LastCheckpoint needs every_n_steps >= 1, got 0"):
        fresh_process(main, [*CYCLEGAN, "--checkpoint.every_n_steps", "0", "--debug"])
    with pytest.raises(RuntimeError, match=ArgumentError.__name__):
        fresh_process(main, ["--debug", *CYCLEGAN, "--model.lamda", "1"])


def test_stopping_by_the_keyboard_is_no_error(fresh_process, capfd):
    def interrupted():
        import lightning_gen.cli as cli

        def stop(arguments):
            raise KeyboardInterrupt

        cli._run = stop
        main(["fit"])

    with pytest.raises(SystemExit) as stop:
        fresh_process(interrupted)
    assert (stop.value.code, capfd.readouterr().err) == (130, "")


@pytest.mark.parametrize("given", [["-c", "gan", "--config=dcgan"], ["--config", "gan", "-c=dcgan"]])
def test_options_hold_wherever_configurations_stand(fresh_process, capfd, given):
    options = ["--data", "Digits", "--trainer.max_steps=7"]
    printed = []
    for arguments in ([*given, *options], [*options[:2], *given, options[2]]):
        with pytest.raises(SystemExit) as stop:
            fresh_process(main, ["fit", *arguments, "--print_config"])
        assert stop.value.code == 0
        printed.append(capfd.readouterr().out)
    assert printed[0] == printed[1]
    assert all(words in printed[0] for words in ("lightning_gen.data.Digits", "max_steps: 7", "models.DCGAN"))
