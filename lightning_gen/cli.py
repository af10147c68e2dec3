"""The command line's door: help at once, then the one command that is wanted, then plain words if it fails.

Nothing heavy is imported before a command is known, so that `--help` is instant.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import signal
import sys
from argparse import ArgumentError, ArgumentParser
from collections.abc import Callable, Sequence
from typing import Any

HELP = """\
usage: lightning-gen COMMAND [options]

Train (Lightning's command line; every setting is an option, and a misspelt one is refused):
  fit          train:          lightning-gen fit cyclegan
               go on:          lightning-gen fit --ckpt_path RUN/checkpoints/last.ckpt
  validate     measure on the validation data
  test         measure on the test data:   lightning-gen test --ckpt_path RUN/checkpoints/last.ckpt
  predict      write what the model makes of the test data: translations, samples, log-probabilities

Look first:
  advise       say what to train with on pictures of yours:  lightning-gen advise --data FOLDER --write mine.yaml
  data         show what a model will see, and how fast:  lightning-gen data --config cyclegan
  schedule     what a model that grows goes through, and what each stage costs:  lightning-gen schedule --config progan
  prepare      decode and resize pictures once, to carry:  lightning-gen prepare --config FILE --output FOLDER

Use a checkpoint (which is all they need):
  sample       draw pictures:  lightning-gen sample --checkpoint RUN/checkpoints/last.ckpt --output DIR
  interpolate  draw what lies between pairs of latents
  arithmetic   add and subtract what pictures show:  --a 3,17,22 --b 4,8,15 --c 16,23,42
  styles       mix coarse, middle and fine styles of pictures, in models that have styles
  truncation   draw pictures nearer to the mean style and beyond:  --psis [1,0.5,0,-0.5,-1]
  directions   show what a model has learned to change, found in its style weights
  project      find the styles of given pictures:  lightning-gen project --input PICTURES --space w+ ...
  complete     draw the missing part of pictures:  lightning-gen complete --mask bottom --input PICTURES ...
  translate    map a file or a folder to the other domain, names and formats kept; --tile 512 where memory is short
  reconstruct  encode and decode a file or a folder, likewise:  --side_by_side true
  encode       write the codes of pictures:  lightning-gen encode --checkpoint RUN --data Scenes --output codes.npz
  evaluate     FID, IS, KID and company, with all that they depend on:  lightning-gen evaluate --checkpoint RUN
  report       write the page of a run again, or one over all runs:  lightning-gen report RUN --embed --film
  import       turn state dicts of the CycleGAN / pix2pix reference implementation into a checkpoint

  lightning-gen COMMAND --help    all options of a command
  lightning-gen fit --model.help  the models; --model.help CycleGAN: its options; --data.help likewise
  lightning-gen --version
  --debug                         full traceback where something fails
  --trust PACKAGE                 let a checkpoint, and the configuration beside it, name classes of this package
  --config NAME                   a file, or the name of a shipped configuration: {configs}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit: 0 when it worked, 1 when something failed on the way, 2 when it was asked wrongly.

    After a signal it is 128 and its number: 130 for Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    arguments, packages = _without_trust(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        from lightning_gen.commands.configs import shipped_configs

        print(HELP.format(configs=", ".join(shipped_configs())), end="")
        sys.exit(0)
    if arguments[0] == "--version":
        from lightning_gen import __version__

        print(__version__)
        sys.exit(0)
    arguments = _configurations_first(arguments)
    # A class of the user's own is found by its import path, also from the folder they stand in.
    sys.path.append(str(os.getcwd()))  # noqa: PTH109
    try:
        if packages:
            from lightning_gen.trust import trust

            trust(packages)
        sys.exit(_run(arguments))
    except (KeyboardInterrupt, SystemExit) as stop:
        interrupt = stop.__context__ if isinstance(stop, SystemExit) else stop  # Lightning makes one the other
        if not isinstance(interrupt, KeyboardInterrupt):
            raise
        sys.exit(128 + int(interrupt.args[0] if interrupt.args else signal.SIGINT))
    except Exception as error:
        if debug:
            raise
        code, hint = 1, "--debug shows the traceback"
        if isinstance(error, ArgumentError):
            code, hint = 2, f"lightning-gen {arguments[0]} --help lists the options"
        print(f"lightning-gen: error: {_plain_words(error, arguments)}\n({hint})", file=sys.stderr)
        sys.exit(code)


def _run(arguments: list[str]) -> int:
    from lightning_gen.commands.given import check_what_is_given
    from lightning_gen.commands.help import COMMANDS, FUNCTIONS, TRAINER, help_for
    from lightning_gen.commands.nearest import nearest
    from lightning_gen.commands.signatures import reading

    command, *rest = arguments
    if command not in COMMANDS:
        near = " Did you mean fit?" if command == "train" else nearest(command, COMMANDS)
        print(
            f"lightning-gen: error: unknown command {command!r}; lightning-gen --help lists them.{near}",
            file=sys.stderr,
        )
        return 2
    with reading():
        if text := help_for(arguments):
            print(text, end="")
            return 0
        check_what_is_given(arguments)

    from lightning_gen.commands.configs import set_yaml_loader

    set_yaml_loader()
    if command == "data":
        from lightning_gen.commands.data import run_look

        return run_look(arguments)
    if command == "schedule":
        from lightning_gen.commands.schedule import run_schedule

        return run_schedule(arguments)
    if command in TRAINER:
        from lightning_gen.commands.training import run_trainer

        return run_trainer(arguments)
    if command == "advise":
        from lightning_gen.commands.advise import run_advise

        return run_advise(rest)
    from jsonargparse import auto_cli

    module, _, name = FUNCTIONS[command].rpartition(".")
    commands = importlib.import_module(f"lightning_gen.commands.{module}")
    function: Any = getattr(commands, name)
    if "sampling" in inspect.signature(function).parameters:
        rest = with_sampling(function, rest)
    if command == "evaluate":
        rest = commands.with_run(rest)
    if command == "report":
        rest = commands.with_flags(rest)
    if command == "prepare":
        rest = commands.with_configured_data(rest)
    # Errors of the parser are raised, so that `main` can say them in fewer words.
    settings: dict[str, Any] = {"prog": f"lightning-gen {command}", "exit_on_error": False, "allow_abbrev": False}
    return auto_cli(function, args=rest, as_positional=command == "report", **settings) or 0


def _configurations_first(arguments: Sequence[str]) -> list[str]:
    """Arguments in which configurations stand in front, so that what is given beside them holds wherever it stands.

    What stands behind a command of Lightning's kind without an option is a configuration, too.
    """
    from lightning_gen.commands.help import TRAINER

    command, *given = arguments
    if command in TRAINER and given and not given[0].startswith("-"):
        given = ["--config", *given]
    first: list[str] = []
    others: list[str] = []
    waiting = False  # for the value of the option before
    for argument in given:
        option, equals, _ = argument.partition("=")
        is_configuration = option in ("--config", "-c")
        (first if waiting or is_configuration else others).append(argument)
        waiting = is_configuration and not equals
    return [command, *first, *others]


def with_sampling(function: Callable[..., Any], arguments: Sequence[str]) -> list[str]:
    """Arguments of a command in which all options that it does not have itself are one, `--sampling`.

    What of it the model takes is known when the model is: see `checked_settings`.
    """
    known = {*inspect.signature(function).parameters, "help", "config", "print_config"}
    kept: list[str] = []
    settings: dict[str, Any] = {}
    following = ""  # an option of the model's that has no value yet
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name.partition(".")[0].rstrip("+") not in known:
            settings[name] = value if equals else "true"
            following = "" if equals else name
        elif following and not argument.startswith("--"):
            settings[following], following = argument, ""
        else:
            kept.append(argument)
            following = ""
    # In front, for `--checkpoint` of `evaluate` takes what stands behind it, and argparse no option that has a space.
    return [f"--sampling={json.dumps(settings)}", *kept] if settings else kept


def _without_trust(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Arguments without `--trust PACKAGE`, and the packages that are trusted, of which there may be several."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--trust", action="append", default=[])
    given, others = parser.parse_known_args(arguments)
    return others, [name for names in given.trust for name in names.split(",")]


def _plain_words(error: BaseException, arguments: Sequence[str]) -> str:
    """The message of an error, without what jsonargparse and a loader's worker process wrap around it."""
    from lightning_gen.commands.signatures import reading
    from lightning_gen.commands.words import is_of_parser, words_of

    text, name = str(error).strip(), type(error).__name__
    if "surrogates not allowed" in text:
        return "A name that is not UTF-8 cannot be an option's value. Rename the folder or file, or link to it."
    if refused := re.search(r"Importing '([\w.]+)' is not allowed", f"{error} {error.__cause__}"):
        from lightning_gen.trust import words_of_refusal

        return words_of_refusal(refused[1], file="The configuration of the run")
    if is_of_parser(error):
        with reading():
            return words_of(error, arguments)
    if "Original Traceback" in text:
        text = text.splitlines()[-1].partition(": ")[2] or text.splitlines()[-1]
    known = type(error).__module__.startswith("lightning") or isinstance(error, OSError | ValueError)
    return text if known and text else f"{name}: {text}"
