import pytest

from lightning_gen.commands.what_next import say_fit, say_next


@pytest.fixture
def run(tmp_path):
    """The folder of a run, with a space in its name."""
    (tmp_path / "a run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "a run" / "config.yaml").write_text("model:\n  class_path: brushes.Wide\n")
    return tmp_path / "a run"


def test_commands_name_the_checkpoint_as_a_shell_takes_it(run, tmp_path, capsys):
    say_next(run, "sample --checkpoint {} --output FOLDER", "evaluate --checkpoint {}")
    assert capsys.readouterr().out.splitlines() == [
        "Next:",
        f"  lightning-gen sample --checkpoint '{run}' --output FOLDER --trust brushes",
        f"  lightning-gen evaluate --checkpoint '{run}' --trust brushes",
    ]
    say_next(tmp_path / "x.ckpt", "sample --checkpoint {}", "evaluate --checkpoint {}", "evaluate --images {x}")
    assert capsys.readouterr().out.splitlines() == [
        "Next:",
        f"  lightning-gen sample --checkpoint {tmp_path / 'x.ckpt'}",
        "  lightning-gen evaluate --images {x}",
    ], "nothing says what data the checkpoint is of"


def test_nothing_is_said_where_nothing_comes_next(tmp_path, capsys):
    say_next(tmp_path / "x.ckpt", "evaluate --checkpoint {}")
    say_next(tmp_path / "x.ckpt")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "fit"),
    [
        ("data --config cyclegan --data.image_size 32 --seconds 0 --looks=2", "--config cyclegan --data.image_size 32"),
        ("data --seconds 0 --config gan --overwrite true --model.latent_size 3", "--config gan --model.latent_size 3"),
        ("schedule --config progan --probe false --trainer.max_steps 9", "--config progan --trainer.max_steps 9"),
        ("data --data Scenes --model VAE", "--data Scenes --model VAE"),
        ("data --data Scenes", None),
        ("data --ckpt_path RUN", None),
    ],
)
def test_what_was_looked_at_is_trained_with_the_same_options(arguments, fit, capsys):
    say_fit(arguments.split())
    assert capsys.readouterr().out == (f"Next:\n  lightning-gen fit {fit}\n" if fit else "")
