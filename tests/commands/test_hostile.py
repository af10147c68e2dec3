"""Files of strangers: whatever they name, a canary stays dead, and one sentence says what is wrong with them."""

import copy
import functools
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from lightning_gen.checkpoints import CheckpointError
from lightning_gen.generative import GenerativeModule
from lightning_gen.hyperparameters import CLASS_KEY
from lightning_gen.models import GAN, CycleGAN
from lightning_gen.networks import MLPDiscriminator, MLPGenerator, PatchDiscriminator, ResNetGenerator

SHAPE = (1, 4, 4)
CANARY = "canary_module"
KILL = "from pathlib import Path\nPath('dead').touch()\n"
MODULE = f"""{KILL}
import lightning.pytorch as pl
from torch import nn
class Net(nn.Module): pass
class Data(pl.LightningDataModule): pass
class Watcher(pl.Callback): pass
def make(*args) -> nn.Module: ...
"""


@pytest.fixture(autouse=True)
def canary(tmp_path, monkeypatch):
    """A module in the current folder whose import leaves a file behind, as everything that should not run does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("LIGHTNING_GEN_TRUST", raising=False)
    Path(f"{CANARY}.py").write_text(MODULE)
    before = set(sys.modules)
    yield
    assert not Path("dead").exists()
    imported = {name for name in set(sys.modules) - before if name in (CANARY, "antigravity", "this", "idlelib.idle")}
    assert not imported


def checkpoint_of(model):
    checkpoint = {"state_dict": model.state_dict(), "epoch": 0, "global_step": 1, "pytorch-lightning_version": "2.6.0"}
    checkpoint |= {"loops": {}, "callbacks": {}, "optimizer_states": [], "lr_schedulers": []}
    model.on_save_checkpoint(checkpoint)
    return checkpoint


@functools.cache
def gan_checkpoint():
    networks = functools.partial(MLPGenerator, widths=[4]), functools.partial(MLPDiscriminator, widths=[4])
    return checkpoint_of(GAN(SHAPE, *networks, latent_size=2))


def write(change, path="stranger.ckpt", of=gan_checkpoint):
    checkpoint = copy.deepcopy(of())
    change(checkpoint)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10**5)  # a stranger has none
    torch.save(checkpoint, path)
    sys.setrecursionlimit(limit)
    return path


def named(class_path, **init_args):
    return {"class_path": class_path, "init_args": init_args}


RUNS_ITS_CODE = named(
    "torch.fx.graph_module.reduce_graph_module", body={"_code": "def forward(self): pass\n"}, import_block=KILL
)
LAYER = named("torch.nn.TransformerEncoderLayer", d_model=4, nhead=1)
NAMES = {
    # what is imported, in every place
    "the model, of the current folder": (CLASS_KEY, f"{CANARY}.Net"),
    "a network of the current folder": ("generator", named(f"{CANARY}.Net")),
    "a function of the current folder": ("generator", f"{CANARY}.make"),
    "a module that opens a browser": ("generator", named("antigravity.fly")),
    "a module that starts a program": ("generator", named("idlelib.idle.Net")),
    "a module that takes the command line": ("generator", named("unittest.__main__.main")),
    "this package's own command": ("generator", named("lightning_gen.__main__.main")),
    # what is called
    "a program": ("generator", named("os.system", command="touch dead")),
    "a program, found elsewhere": ("generator", named("lightning_gen.commands.readers.subprocess.Popen", args="true")),
    "a program, found in torch.nn": ("generator", named("torch.nn.modules.module.warnings.warn")),
    "a command": ("generator", named("lightning_gen.commands.sample.sample", checkpoint="x", output="dead")),
    "code in an argument of a library's class": (
        "generator",
        named("torch.nn.TransformerEncoder", encoder_layer=LAYER, num_layers=1, norm=RUNS_ITS_CODE),
    ),
    "code in an extractor's argument": (
        "generator",
        named("lightning_gen.metrics.ModuleFeatures", module=RUNS_ITS_CODE),
    ),
    "a scripted module": ("generator", named("lightning_gen.extractors.module.ModuleFeatures", module="dead.pt")),
    "an extractor that would train": ("generator", named("lightning_gen.extractors.scenes.SceneFeatures")),
    "a function of torch.nn": ("generator", named("torch.nn.parallel.replicate")),
    "a global hook of torch.nn": ("loss", named("torch.nn.modules.module.register_module_forward_hook")),
    "a download": ("generator", named("torch.hub.load", repo_or_dir="a/b")),
    "code as an optimizer": ("generator_optimizer", named("builtins.exec", source=KILL)),
    "code as a penalty": ("penalties", [named("runpy.run_path", path_name=f"{CANARY}.py")]),
    "code as a number": ("learning_rate", named(f"{CANARY}.Net")),
    "code in a mapping": ("betas", {"a": {"b": [named(f"{CANARY}.Net")]}}),
    # what is no name
    "a name that is a number": ("generator", {"class_path": 7}),
    "a name with a path": ("generator", {"class_path": f"../{CANARY}.Net"}),
    "a class without a name": (CLASS_KEY, None),
}


@pytest.mark.parametrize(("field", "value"), NAMES.values(), ids=NAMES)
def test_what_a_checkpoint_names_is_neither_imported_nor_called(field, value):
    path = write(lambda c: c["hyper_parameters"].__setitem__(field, value))
    with pytest.raises(CheckpointError, match=r"was refused|names nothing|none belongs there|does not say|must be"):
        GenerativeModule.load_from_checkpoint(path)


def test_a_trusted_package_is_let_in_by_flag_by_argument_and_by_environment(command, monkeypatch):
    Path("mine.py").write_text(
        "from lightning_gen.networks import MLPGenerator\n"
        "class Mine(MLPGenerator): pass\n"
        "def make(*a): return Mine(*a)\n"
    )
    path = write(lambda c: c["hyper_parameters"]["generator"].__setitem__("class_path", "mine.Mine"))
    sample = ["sample", "--checkpoint", path, "--num_samples", 1, "--output"]
    refused = command(*sample, "a")
    assert refused.code == 1
    assert "names mine.Mine and was refused" in refused.err
    assert "--trust mine on the command line" in refused.err
    assert command(*sample, "b", "--trust", "mine").code == 0
    assert command("--trust=other,mine", *sample, "c").code == 0
    monkeypatch.setenv("LIGHTNING_GEN_TRUST", "mine")
    assert command(*sample, "d").code == 0
    monkeypatch.delenv("LIGHTNING_GEN_TRUST")
    with pytest.raises(CheckpointError, match=r'trust=\("mine",\) in Python'):
        GAN.load_from_checkpoint(path)
    assert type(GAN.load_from_checkpoint(path, trust=("mine",)).generator).__name__ == "Mine"
    # A trusted package's function still must say that it makes a network.
    write(lambda c: c["hyper_parameters"].__setitem__("generator", "mine.make"))
    with pytest.raises(CheckpointError, match=r"must be a Module\..* needs a return annotation"):
        GAN.load_from_checkpoint(path, trust=("mine",))
    with pytest.raises(ValueError, match=r"Trust is given to packages by name, such as mypackage; got 'a-b'"):
        GAN.load_from_checkpoint(path, trust=("a-b",))


SIZES = {
    "a picture": ("image_shape", [1, 10**9, 10**9], "more than 67108864 numbers in a picture"),
    "a layer": ("generator", named("lightning_gen.networks.MLPGenerator", widths=[10**9, 10**9]), "differ in shape"),
    "more layers": ("generator", named("lightning_gen.networks.MLPGenerator", widths=[4] * 10**5), "far more parts"),
    "a latent": ("latent_size", 10**9, "differ in shape"),
}


@pytest.mark.parametrize(("field", "value", "words"), SIZES.values(), ids=SIZES)
def test_a_model_larger_than_its_file_is_not_built(field, value, words):
    path = write(lambda c: c["hyper_parameters"].__setitem__(field, value))
    with pytest.raises(CheckpointError, match=words):
        GenerativeModule.load_from_checkpoint(path)


def test_blocks_without_end_are_given_up():
    networks = (
        functools.partial(ResNetGenerator, filters=2, blocks=1),
        functools.partial(PatchDiscriminator, filters=2, layers=1),
    )
    path = write(
        lambda c: c["hyper_parameters"]["generator"]["init_args"].__setitem__("blocks", 10**9),
        of=lambda: checkpoint_of(CycleGAN((1, 16, 16), *networks)),
    )
    with pytest.raises(CheckpointError, match="far more parts than the file has weights"):
        GenerativeModule.load_from_checkpoint(path)


def test_a_weight_that_claims_to_be_larger_than_it_is():
    path = write(lambda c: c["state_dict"].__setitem__("generator.x", torch.zeros(1).expand(10**9, 10**9)))
    with pytest.raises(CheckpointError, match=r"the weight 'generator\.x' in its 'state_dict' is larger than what is"):
        GenerativeModule.load_from_checkpoint(path)


FIELDS = {
    "hyper-parameters a list": (lambda c: c.__setitem__("hyper_parameters", [1]), "'hyper_parameters' must be of type"),
    "weights a list": (lambda c: c.__setitem__("state_dict", [1]), "'state_dict' must be of type mapping"),
    "a weight a number": (lambda c: c["state_dict"].__setitem__("a", 1), "must map names to tensors, and 'a' is int"),
    "image_shape a string": (
        lambda c: c["hyper_parameters"].__setitem__("image_shape", "large"),
        r"image_shape of the model must be tuple\[int, int, int\], but the checkpoint gives 'large'",
    ),
    "image_shape of two": (
        lambda c: c["hyper_parameters"].__setitem__("image_shape", [1, 4]),
        r"image_shape of the model must be tuple\[int, int, int\], but the checkpoint gives \[1, 4\]",
    ),
    "a missing image_shape": (lambda c: c["hyper_parameters"].pop("image_shape"), "missing 1 required .*'image_shape'"),
    "a rate a string": (
        lambda c: c["hyper_parameters"].__setitem__("learning_rate", "x"),
        "learning_rate of the model",
    ),
    "a choice that is none": (
        lambda c: c["hyper_parameters"].__setitem__("latent_distribution", "cauchy"),
        r"latent_distribution of the model must be .*'normal', 'uniform'.* gives 'cauchy'",
    ),
    "a loss a number": (lambda c: c["hyper_parameters"].__setitem__("loss", 7), "loss of the model must be"),
    "init_args a number": (
        lambda c: c["hyper_parameters"]["generator"].__setitem__("init_args", 7),
        "init_args of generator of the model must be a mapping, got 7",
    ),
    "an argument unknown": (
        lambda c: c["hyper_parameters"]["generator"]["init_args"].__setitem__("depth", 7),
        "MLPGenerator takes no argument 'depth'",
    ),
    "a nest without end": (
        lambda c: c["hyper_parameters"].__setitem__("betas", functools.reduce(lambda x, _: [x], range(2000), 1)),
        "nested too deeply",
    ),
    "a number out of range": (
        lambda c: c["hyper_parameters"].__setitem__("n_critic", 0),
        "GAN cannot be built from its hyper-parameters: n_critic must be at least 1",
    ),
}


@pytest.mark.parametrize(("change", "words"), FIELDS.values(), ids=FIELDS)
def test_a_field_of_the_wrong_type_is_named_in_one_sentence(change, words):
    with pytest.raises(CheckpointError, match=words) as caught:
        GenerativeModule.load_from_checkpoint(write(change))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("stranger.ckpt")


def test_init_args_may_be_absent():
    path = write(lambda c: c["hyper_parameters"]["loss"].__setitem__("init_args", None) if c["hyper_parameters"]["loss"]
                 else None)  # fmt: skip
    assert GenerativeModule.load_from_checkpoint(path).image_shape == SHAPE


# -- going on from a stranger's file, with a stranger's configuration beside it ---------------------------------------


@pytest.fixture
def run(tiny, command):
    """The folder of a run, as a stranger may send it."""
    tiny["model"] = named(
        "GAN", generator=named("MLPGenerator", widths=[4]), discriminator=named("MLPDiscriminator", widths=[4]),
        latent_size=2,
    )  # fmt: skip
    tiny["data"] = named("GridOfGaussians", batch_size=4, num_workers=0)
    tiny["trainer"]["max_steps"] = 1
    assert command("fit", "--config", tiny.write(), "--trainer.limit_val_batches", 0).code == 0
    (folder,) = Path("runs/gan").iterdir()
    return folder


GOING_ON = {
    "callbacks a number": (lambda c: c.__setitem__("callbacks", 7), "'callbacks' must be of type mapping, and is int"),
    "loops a number": (lambda c: c.__setitem__("loops", 7), "'loops' must be of type mapping, and is int"),
    "steps a string": (lambda c: c.__setitem__("global_step", "x"), "'global_step' must be of type int, and is str"),
    "no optimizers": (lambda c: c.pop("optimizer_states"), "has no 'optimizer_states'"),
    "no epoch": (lambda c: c.pop("epoch"), "has no 'epoch'"),
    "loops without a loop": (lambda c: c.__setitem__("loops", {}), "what it holds of the run cannot be restored"),
    "a callback's state a number": (
        lambda c: c["callbacks"].update(dict.fromkeys(c["callbacks"], 7)), "what it holds of the run cannot be restored"
    ),
    "optimizers that are none": (
        lambda c: c.__setitem__("optimizer_states", [1, 2]), "what it holds of the run cannot be restored"
    ),
}  # fmt: skip


def test_a_damaged_state_of_a_run_is_said_to_be_so(run, command):
    last = run / "checkpoints" / "last.ckpt"
    whole = torch.load(last, weights_only=True)
    for change, words in GOING_ON.values():
        write(change, last, of=lambda: whole)
        ended = command("fit", "--ckpt_path", last, "--trainer.max_steps", 2)
        assert ended.code == 1
        assert words in ended.err
        assert ended.err.count("\n") == 2, ended.err
        assert " weights_only" not in ended.err


def plant(place, value):
    def change(config):
        *path, last = place.split(".")
        functools.reduce(lambda part, key: part[key], path, config)[last] = value

    return change


CONFIGURATIONS = {
    "a program as a network": plant("model.init_args.generator", named("os.system", command="touch dead")),
    "a function as a network": plant("model.init_args.generator", f"{CANARY}.make"),
    "a network": plant("model.init_args.generator", named(f"{CANARY}.Net")),
    "the model": plant("model", named(f"{CANARY}.Net")),
    "the data": plant("data", named(f"{CANARY}.Data")),
    "a callback": plant("trainer.callbacks", [named(f"{CANARY}.Watcher")]),
    "a callback's function": plant(
        "trainer.callbacks",
        [named("lightning.pytorch.callbacks.LambdaCallback", on_fit_start=f"{CANARY}.make")],
    ),
    "a logger": plant("trainer.logger", named(f"{CANARY}.Watcher")),
    "an optimizer": plant("model.init_args.generator_optimizer", named("runpy.run_path", path_name=f"{CANARY}.py")),
    "a command": plant("model.init_args.generator", named("lightning_gen.commands.report.report", run=".")),
    "a program as an extractor": plant(
        "trainer.callbacks",
        [named("GenerativeMetrics", extractor=named("lightning_gen.metrics.ModuleFeatures", module="scripted.pt"))],
    ),
}


def test_a_configuration_that_nobody_named_names_nothing_foreign(run, command):
    last, file = run / "checkpoints" / "last.ckpt", run / "config.yaml"
    honest = yaml.safe_load(file.read_text())
    torch.jit.save(torch.jit.script(nn.Flatten()), "scripted.pt")
    for what, change in CONFIGURATIONS.items():
        config = copy.deepcopy(honest)
        change(config)
        file.write_text(yaml.safe_dump(config))
        ended = command("fit", "--ckpt_path", last, "--trainer.max_steps", 2)
        assert ended.code in (1, 2), what
        assert "The configuration of the run names" in ended.err, (what, ended.err)
        assert "was refused" in ended.err, what
        assert not Path("dead").exists(), what
    for text in ("[]", "data: 7", "trainer: {callbacks: 7}\ndata: {}"):
        file.write_text(text)
        ended = command("evaluate", "--checkpoint", last)
        assert ended.code in (1, 2), text
        assert "is no configuration of a run" in ended.err or "no data with real pictures" in ended.err, ended.err
    for name in ("validate", "test", "predict", "evaluate"):
        option = "--checkpoint" if name == "evaluate" else "--ckpt_path"
        file.write_text(yaml.safe_dump(honest | {"data": named(f"{CANARY}.Data")}))
        ended = command(name, option, last)
        assert f"The configuration of the run names {CANARY}.Data and was refused" in ended.err, ended.err


def test_what_the_user_names_is_as_free_as_ever(run, command):
    Path("ours.py").write_text(
        "from torch import nn\nfrom lightning_gen.networks import MLPGenerator\n"
        "def make(shape, latent_size) -> nn.Module: return MLPGenerator(shape, latent_size, widths=[4])\n"
        "def seven(*args) -> nn.Module: return 7\n"
    )
    last = run / "checkpoints" / "last.ckpt"
    go_on = ["--ckpt_path", last, "--trainer.max_steps", 2]
    # On the command line, beside a configuration that is the run's.
    assert command("fit", *go_on, "--model.generator", "ours.make").code == 0
    # In a configuration of the user's own; what a factory makes must still be what its place asks for.
    config = yaml.safe_load((run / "config.yaml").read_text())
    for factory, code in (("ours.make", 0), ("ours.seven", 1)):
        config["model"]["init_args"]["generator"] = factory
        Path("own.yaml").write_text(yaml.safe_dump(config))
        ended = command("fit", "--config", "own.yaml")
        assert ended.code == code, ended.err
    assert "seven was given as what makes a Module, but it made 7." in ended.err


def test_a_model_of_this_package_takes_the_file_s_weights_and_draws_none(monkeypatch):
    path = write(lambda c: None)
    state = torch.random.get_rng_state()
    loaded = GAN.load_from_checkpoint(path)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(tensor.is_meta for tensor in loaded.state_dict().values())
    for name, tensor in gan_checkpoint()["state_dict"].items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert all(p.requires_grad for p in loaded.parameters())
    for network in (loaded.generator, loaded.discriminator):
        assert isinstance(network, nn.Module)
