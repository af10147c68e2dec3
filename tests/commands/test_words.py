import contextlib
import io
import json
import subprocess
import sys
from argparse import ArgumentError

import pytest
import yaml

from lightning_gen.cli import main
from lightning_gen.commands.given import check_what_is_given
from lightning_gen.commands.signatures import reading
from lightning_gen.commands.words import words_of

SMALL = ["fit", "--config", "cyclegan", "--print_config"]


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
    (["--model.betas", "0.3"], "expected values as [a,b], got 0.3."),
    (["--model.betas", "[0.3,a]"], "expected a number or Schedule, got a."),
    (["--model.penalties", "3"], "expected values as [a,b] or None, got 3."),
    (["--pictures.sampling", "3"], "expected names and values as {a: 1} or None, got 3."),
    (["--checkpoint.best_mode", "most"], "expected min, max or None, got most."),
    (["--model.generator.filters", "many"], "expected a whole number, got many."),
    (["--model.loss", "Hinje"], "there is no class 'Hinje'. Did you mean Hinge?"),
    (["--model", "DCGAN", "--model.num_classes", "ten"], "expected a whole number or None, got ten."),
]

# A misspelt name: the nearest one.
MISSPELT = [
    (["--model", "WGANGPP"], "--model: there is no class 'WGANGPP'. Did you mean WGANGP?"),
    (["--model", "cyclegan"], "--model: there is no class 'cyclegan'. Did you mean CycleGAN?"),
    (["--model", "Xyzzy"], "--model: there is no class 'Xyzzy'. There are Classifier, CodePrior, "),
    (["--data", "UnpairedScene"], "--data: there is no class 'UnpairedScene'. Did you mean UnpairedScenes?"),
    (["--model.generator", "ResnetGenerator"], "there is no class 'ResnetGenerator'. Did you mean ResNetGenerator?"),
    (["--trainer.callbacks", "EMMA"], "--trainer.callbacks: there is no class 'EMMA'. Did you mean EMA?"),
    (["--trainer.logger=WandbLoger"], "--trainer.logger: there is no class 'WandbLoger'. Did you mean WandbLogger?"),
    (["--model.lamda_cycle", "1"], "model: Option 'lamda_cycle' is not accepted. Did you mean lambda_A or lambda_B?"),
    (["--model.lamda_A", "1"], "model: Option 'lamda_A' is not accepted. Did you mean lambda_A?"),
    (["--model.init_args.lamda_A", "1"], "model: Option 'lamda_A' is not accepted. Did you mean lambda_A?"),
    (["--model.generator.filtres", "1"], "model.generator: Option 'filtres' is not accepted. Did you mean filters?"),
    (
        ["--model.filters", "1"],
        "model: Option 'filters' is not accepted. It is a setting of its generator and its discriminator: "
        "--model.generator.filters or --model.discriminator.filters",
    ),
    (["--data.imge_size", "8"], "data: Option 'imge_size' is not accepted. Did you mean image_size?"),
    (["--max_steps", "5"], "unrecognized arguments: --max_steps 5. Did you mean --trainer.max_steps?"),
    (["--max_steps=5"], "unrecognized arguments: --max_steps=5. Did you mean --trainer.max_steps?"),
    (["--lambda_A", "5"], "unrecognized arguments: --lambda_A 5. Did you mean --model.lambda_A?"),
    (["--trainr.max_steps", "5"], "Did you mean --trainer.max_steps?"),
    # Nothing is abbreviated.
    (["--trainer.max_step", "5"], "unrecognized arguments: --trainer.max_step 5. Did you mean --trainer.max_steps?"),
    (["--print_confi"], "unrecognized arguments: --print_confi"),
    # What other programs call it.
    (["--lr", "0.1"], "unrecognized arguments: --lr 0.1. Did you mean --model.learning_rate?"),
    (["--epochs", "3"], "unrecognized arguments: --epochs 3. Did you mean --trainer.max_epochs?"),
    (["--gpus", "2"], "unrecognized arguments: --gpus 2. Did you mean --trainer.devices?"),
]
CASES = [
    *((arguments, f"{arguments[-2:][0].partition('=')[0]}: {words}") for arguments, words in VALUES),
    *MISSPELT,
]
OF_OTHERS = [
    (["translate", "--chekpoint", "x"], "unrecognized arguments: --chekpoint x. Did you mean --checkpoint?"),
    (["evaluate", "--chekpoint", "x"], "unrecognized arguments: --chekpoint x. Did you mean --checkpoint?"),
    (["sample", "--checkpoint", "x", "--outptu", "y", "--temperature", "1"], "Did you mean --output?"),
    (["sample", "--checkpoint", "x", "--temperature", "1"], "the following arguments are required: output"),
    (["import", "--generator_AtoB", "x", "--outpu", "y"], "Did you mean --output?"),
    (["predict", "cyclegan", "--temperature", "0.5"], "predict has none."),
    (["advise", "--data", "ImageFoldr"], "--data: there is no class 'ImageFoldr'. Did you mean ImageFolder?"),
    (["advise", "--data", "Scenes", "--wirte", "x"], "Did you mean --write?"),
    (["prepare", "--config", "cyclegan", "--output", "x", "--data.rot", "y"], "Option 'rot' is not accepted"),
    (["test", "--config", "gan", "--ckpt_pth", "x"], "Did you mean --ckpt_path?"),
]


def test_a_wrong_argument_is_named_with_what_was_probably_meant(fresh_process):
    given = answers(fresh_process, [[*SMALL, *arguments] for arguments, _ in CASES])
    for (arguments, words), (code, said) in zip(CASES, given, strict=True):
        assert code == 2, arguments
        assert words in said, said
        assert not any(noise in said for noise in ("Union", "NestedArg", "Traceback", "Namespace")), said
        assert len(said.splitlines()) == 2


def test_other_commands_name_the_option_too(fresh_process):
    cases = [
        (
            ["sample", "--checkpoint", "x", "--output", "y", "--num_samples", "few"],
            "--num_samples: expected a whole number, got few.",
        ),
        (["smaple"], "unknown command 'smaple'; lightning-gen --help lists them. Did you mean sample?"),
        (["train"], "Did you mean fit?"),
    ]
    given = answers(fresh_process, [arguments for arguments, _ in cases])
    for (_, words), (code, said) in zip(cases, given, strict=True):
        assert code == 2
        assert words in said, said


def test_what_is_misspelt_is_refused_without_waiting_for_pytorch():
    cases = [*(([*SMALL, *arguments], words) for arguments, words in MISSPELT), *OF_OTHERS]
    script = (
        "import sys, json, io, contextlib, lightning_gen.cli\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    said = io.StringIO()\n"
        "    with contextlib.redirect_stderr(said):\n"
        "        try: lightning_gen.cli.main(arguments)\n"
        "        except SystemExit as stop: code = stop.code\n"
        "    heavy = [name for name in ('torch', 'lightning', 'jsonargparse', 'numpy', 'PIL') if name in sys.modules]\n"
        "    print(json.dumps([code, heavy, said.getvalue()]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, json.dumps([arguments for arguments, _ in cases])],
        capture_output=True,
        text=True,
        check=True,
    )
    for (arguments, words), answer in zip(cases, map(json.loads, ended.stdout.splitlines()), strict=True):
        assert answer[:2] == [2, []], arguments
        assert words in answer[2], answer[2]
        assert len(answer[2].splitlines()) == 2


def test_none_is_refused_where_there_must_be_something(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    gan = ["fit", "--config", "gan"]
    with reading():
        check_what_is_given([*gan, "--model.discriminator_learning_rate=None", "--model.gradient_clip_norm", "null"])
        for option, words in {
            "--model.latent_size=None": "--model.latent_size: expected a whole number, got None.",
            "--data.batch_size=null": "--data.batch_size: expected a whole number, got null.",
            "--model.betas=None": "--model.betas: expected 2 values as [float,float|Schedule], got None.",
        }.items():
            with pytest.raises(ArgumentError) as refused:
                check_what_is_given([*gan, option])
            assert words_of(refused.value, [*gan, option]) == words


@pytest.mark.parametrize(
    "arguments",
    [
        [
            "fit",
            "--config",
            "cyclegan",
            "--model.generator.init_args.filters=3",
            "--trainer.callbacks+=EMA",
            "--model.help",
        ],
        [
            "fit",
            "--config",
            "cyclegan",
            "--trainer.callbacks.init_args.decay",
            "0.3",
            "--trainer.strategy.find_unused",
            "true",
        ],
        ["fit", "--config", "cyclegan", "--model", "nowhere.Wide", "--model.width", "3", "--data.dict_kwargs.x", "1"],
        ["fit", "--config", "cyclegan", "--model.generator", "nowhere.net", "--model.generator.anything", "3"],
        [
            "fit",
            "--config",
            "cyclegan",
            "--model.generator",
            "Linear",
            "--weights_only",
            "true",
            "--trainer",
            "trainer.yaml",
        ],
        ["test", "--config", "gan", "--verbose", "false", "--model", '{"class_path": "GAN"}', "--seed_everything=-1"],
        ["predict", "--config", "gan", "--return_predictions", "false", "--predictions.output", "x"],
        ["sample", "--checkpoint", "x", "--output", "y", "--temperature", "0.5", "--top_k=3"],
        ["evaluate", "--checkpoint", "x", "y", "--psi", "0.7"],
        ["prepare", "--data", "ImageFolder", "--data.root", "x", "--output", "y"],
        ["advise", "--data", "FOLDER", "--write", "mine.yaml"],
        ["data", "--data", "ImageFolder", "--data.root", "y"],
    ],
)
def test_nothing_is_refused_that_may_be_right(monkeypatch, arguments):
    monkeypatch.delitem(sys.modules, "torch")  # as where a command begins
    with reading():  # other tests have a module of the same name
        check_what_is_given(arguments)


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
