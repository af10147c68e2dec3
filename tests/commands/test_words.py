import contextlib
import io

import pytest
import yaml

from lightning_gen.cli import main
from lightning_gen.commands.words import words_of

SMALL = ["fit", "cyclegan", "--print_config"]


def answers(fresh_process, cases):
    """The exit codes and all that is said, of commands that run one after the other in one process."""

    def ask():
        given = []
        for arguments in cases:
            said = io.StringIO()
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                try:
                    main(arguments)
                except SystemExit as stop:
                    given.append((stop.code, said.getvalue()))
        return given

    return fresh_process(ask)


# A wrong value: the option, what it takes, and what it was given.
VALUES = [
    (["--model.gradient_clip_norm=high"], "expected a number or None, got high."),
    (["--model.discriminator_learning_rate=high"], "expected a number, Schedule or None, got high."),
    (["--model.learning_rate", "Cosin"], "there is no class 'Cosin'. Did you mean Cosine?"),
    (["--data.image_size", "big"], "expected a whole number or 2 values as [int,int], got big."),
    (["--data.image_size", "[8,a]"], "expected a whole number or 2 values as [int,int], got [8, 'a']."),
    (["--trainer.limit_val_batches", "few"], "expected a whole number, a number or None, got few."),
    (["--checkpoint.best_mode", "most"], "expected min, max or None, got most."),
    (["--model.generator.filters", "many"], "expected a whole number, got many."),
    (["--model.loss", "Hinje"], "there is no class 'Hinje'. Did you mean Hinge?"),
    (["--model", "DCGAN", "--model.num_classes", "ten"], "expected a whole number or None, got ten."),
]

CASES = [
    *((arguments, f"{arguments[-2:][0].partition('=')[0]}: {words}") for arguments, words in VALUES),
    # A misspelt name: the nearest one.
    (["--model", "WGANGPP"], "--model: there is no class 'WGANGPP'. Did you mean WGANGP?"),
    (["--data", "UnpairedScene"], "--data: there is no class 'UnpairedScene'. Did you mean UnpairedScenes?"),
    (["--model.generator", "ResnetGenerator"], "there is no class 'ResnetGenerator'. Did you mean ResNetGenerator?"),
    (["--trainer.callbacks", "EMMA"], "--trainer.callbacks: there is no class 'EMMA'. Did you mean EMA?"),
    (["--model.lamda_cycle", "1"], "Option 'lamda_cycle' is not accepted. Did you mean lambda_"),
    (["--model.lamda_A", "1"], "Option 'lamda_A' is not accepted. Did you mean lambda_A?"),
    (["--model.generator.filtres", "1"], "Option 'filtres' is not accepted. Did you mean filters?"),
    (["--max_steps", "5"], "unrecognized arguments: --max_steps 5. Did you mean --trainer.max_steps?"),
    (["--lambda_A", "5"], "unrecognized arguments: --lambda_A 5. Did you mean --model.lambda_A?"),
    (["--trainr.max_steps", "5"], "Did you mean --trainer.max_steps?"),
    # Nothing is abbreviated.
    (["--trainer.max_step", "5"], "unrecognized arguments: --trainer.max_step 5. Did you mean --trainer.max_steps?"),
    (["--print_confi"], "unrecognized arguments: --print_confi"),
]


def test_a_wrong_argument_is_named_with_what_was_probably_meant(fresh_process):
    given = answers(fresh_process, [[*SMALL, *arguments] for arguments, _ in CASES])
    for (arguments, words), (code, said) in zip(CASES, given, strict=True):
        assert code == 2, arguments
        assert words in said, said
        assert not any(noise in said for noise in ("Union", "NestedArg", "Traceback", "Namespace")), said
        assert len(said.splitlines()) == 2


def test_other_commands_name_the_option_too(fresh_process):
    cases = {
        "--num_samples: expected a whole number, got few.": ["sample", "--num_samples", "few", "--output", "y"],
        "unrecognized arguments: --chekpoint x. Did you mean --checkpoint?": ["translate", "--chekpoint", "x"],
        "Did you mean --output?": ["import", "--generator_AtoB", "x", "--outpu", "y"],
        "predict has none.": ["predict", "cyclegan", "--temperature", "0.5"],
        "unknown command 'smaple'; lightning-gen --help lists them. Did you mean sample?": ["smaple"],
        "Did you mean fit?": ["train"],
    }
    given = answers(fresh_process, list(cases.values()))
    for words, (code, said) in zip(cases, given, strict=True):
        assert code == 2
        assert words in said, said


def test_what_a_constructor_refuses_is_said_as_it_says_it():
    union = "Does not validate against any of the Union subtypes\nSubtypes: [<class 'A'>]\nErrors:\n- x\nGiven value: y"
    error: BaseException = FileNotFoundError("There is no file of weights.")
    for text in (union, f'Parser key "model":\n{union}'):
        outer = ValueError(text)
        outer.__cause__ = error
        error = outer
    assert words_of(error, ["fit", "--model", "x"]) == "--model: There is no file of weights."


@pytest.mark.parametrize("none", ["None", "null"])
def test_none_and_tuples_are_understood_as_programs_write_them(fresh_process, tmp_path, none):
    (tmp_path / "own.yaml").write_text(f"model: {{init_args: {{gradient_clip_norm: {none}, betas: '(0.25, 0.5)'}}}}")
    options = [f"--model.discriminator_learning_rate={none}", f"--trainer.limit_val_batches={none}"]
    (code, said), (also, of_file) = answers(
        fresh_process,
        [[*SMALL, *options, "--model.betas=(0.0,0.9)"], [*SMALL, "--config", str(tmp_path / "own.yaml")]],
    )
    assert (code, also) == (0, 0), said + of_file
    given, of_file = yaml.safe_load(said), yaml.safe_load(of_file)["model"]["init_args"]
    assert given["model"]["init_args"]["discriminator_learning_rate"] is None
    assert given["trainer"]["limit_val_batches"] is None
    assert given["model"]["init_args"]["betas"] == [0.0, 0.9]
    assert (of_file["gradient_clip_norm"], of_file["betas"]) == (None, [0.25, 0.5])


def test_a_configuration_may_stand_first_without_its_option(fresh_process):
    (first, named), (second, positional) = answers(
        fresh_process, [["fit", "--config", "gan", "--print_config"], ["fit", "gan", "--print_config"]]
    )
    assert (first, second) == (0, 0)
    assert named == positional
    assert "lightning_gen.models.GAN" in named
