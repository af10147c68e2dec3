"""The habits of every model: noise by (seed, rank, batch), images counted, pictures checked, a checkpoint is enough."""

import functools
import logging
import os
import warnings
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_gen.capabilities import HasLatents, Samples, Translates
from lightning_gen.checkpoints import CheckpointError
from lightning_gen.generative import GenerativeModule
from lightning_gen.losses import AdversarialLoss, Wasserstein
from lightning_gen.models import GAN, KDE, CycleGAN, PixelCNN
from lightning_gen.modes import evaluating
from lightning_gen.networks import PatchDiscriminator, PixelCNNNetwork, ResNetGenerator
from tests.shared import trainer

SHAPE = (3, 16, 16)
GENERATOR = functools.partial(ResNetGenerator, filters=2, blocks=1)
DISCRIMINATOR = functools.partial(PatchDiscriminator, filters=2, layers=1)
NETWORK = functools.partial(PixelCNNNetwork, filters=6, layers=1)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:You're resuming from")


def pictures(number=4, size=1):
    draw = torch.Generator().manual_seed(1)
    return DataLoader([{d: torch.rand(size, *SHAPE, generator=draw) for d in "AB"} for _ in range(number)], None)


def saved(model, path, steps=1):
    t = trainer(max_steps=steps)
    t.fit(model, pictures())
    t.save_checkpoint(path)
    return path


# -- noise ----------------------------------------------------------------------------------------------------------


def noise(seed, rank, batch):
    model = GenerativeModule(SHAPE)
    model.noise_seed = seed
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=batch))
    model._trainer = SimpleNamespace(global_rank=rank, fit_loop=loop)
    model.on_train_batch_start(None, 0)
    return torch.randn(4)


def test_noise_is_a_function_of_seed_rank_and_batch():
    places = [(seed, rank, batch) for seed in (0, 1, 2**63 - 1) for rank in range(3) for batch in range(4)]
    draws = [noise(*place) for place in places]
    for place, draw in zip(places, draws, strict=True):
        torch.rand(7)  # whatever happened in between
        assert torch.equal(noise(*place), draw)
    assert len(torch.stack(draws).unique(dim=0)) == len(places)
    # Neighbours are not alike in the way that seed + rank would make them.
    assert not torch.equal(noise(0, 1, 0), noise(1, 0, 0))
    assert not torch.equal(noise(0, 1, 0), noise(0, 0, 1))


class Noisy(CycleGAN):
    """Keeps what it draws in each step."""

    def training_step(self, batch, batch_idx):
        self.drawn = [*getattr(self, "drawn", []), torch.rand(()).item()]
        super().training_step(batch, batch_idx)


def drawn(steps, model=None, seed=7, **settings):
    model = model or Noisy(SHAPE, GENERATOR, DISCRIMINATOR)
    torch.manual_seed(seed)
    trainer(max_steps=steps).fit(model, pictures(3), **settings)
    return model


def test_a_run_s_noise_follows_the_seed_that_was_set_before_it():
    assert drawn(5).drawn == drawn(5).drawn  # 5 steps are more than one epoch of 3
    assert len(set(drawn(5).drawn)) == 5
    assert drawn(2).drawn != drawn(2, seed=8).drawn


def test_a_run_that_goes_on_draws_what_it_would_have_drawn_whatever_the_seed_is_now(tmp_path):
    through = drawn(5).drawn
    model = drawn(3)
    model.trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = drawn(5, seed=99, ckpt_path=tmp_path / "a.ckpt")
    assert again.drawn == through[3:]


# -- images seen ----------------------------------------------------------------------------------------------------


def test_images_seen_counts_real_images_resumes_and_is_in_the_checkpoint(tmp_path):
    model = CycleGAN(SHAPE, GENERATOR, DISCRIMINATOR)
    t = trainer(max_steps=3)
    t.fit(model, pictures(3, size=2))
    assert model.images_seen == 6
    t.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert (type(checkpoint["images_seen"]), checkpoint["images_seen"]) == (int, 6)
    assert "images_seen" not in checkpoint["state_dict"]
    assert CycleGAN.load_from_checkpoint(tmp_path / "a.ckpt").images_seen == 6
    again = CycleGAN(SHAPE, GENERATOR, DISCRIMINATOR)
    trainer(max_steps=4).fit(again, pictures(3, size=2), ckpt_path=tmp_path / "a.ckpt")
    assert again.images_seen == 8


@pytest.mark.parametrize("prefix", ["", "inner."])
def test_a_state_dict_that_has_the_count_of_images_as_a_buffer_loads(prefix):
    model = CycleGAN(SHAPE, GENERATOR, DISCRIMINATOR)
    outer = torch.nn.ModuleDict({"inner": model}) if prefix else model
    earlier = outer.state_dict() | {f"{prefix}images_seen": torch.tensor(9)}
    outer.load_state_dict(earlier)
    assert (type(model.images_seen), model.images_seen) == (int, 9)
    assert f"{prefix}images_seen" in earlier
    with pytest.raises(RuntimeError, match="images_unseen"):
        outer.load_state_dict(earlier | {f"{prefix}images_unseen": torch.tensor(9)})


# -- checkpoints of classes of the user's own -----------------------------------------------------------------------


class Shifted(AdversarialLoss):
    """A loss without numbers, and not a dataclass: it has no way to be named with its state."""

    def discriminator(self, real_scores, fake_scores):
        return fake_scores.mean() - real_scores.mean()

    def generator(self, fake_scores):
        return -fake_scores.mean()


class Settled(CycleGAN):
    """Arguments of its own, and everything else settled."""

    def __init__(self, image_shape, strength=1.0):
        super().__init__(image_shape, GENERATOR, DISCRIMINATOR, Wasserstein(), lambda_A=strength)
        self.strength = strength


class Open(CycleGAN):
    """Hands on what it does not know, and settles one argument itself."""

    def __init__(self, image_shape, strength=1.0, **kwargs):
        super().__init__(image_shape, lambda_A=3.0, **kwargs)
        self.strength = strength


class Opener(Open):
    """Hands on all that it does not know, and saves its settings itself."""

    def __init__(self, *args, colour="red", **kwargs):
        super().__init__(*args, **kwargs)
        self.colour = colour
        self.save_hyperparameters()


def options_generator(image_shape, **options) -> nn.Module:
    return ResNetGenerator(image_shape, **options)


NETWORKS = {"generator": GENERATOR, "discriminator": DISCRIMINATOR}


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Settled(SHAPE, strength=2.0), {"strength": 2.0, "lambda_A": 2.0, "loss": Wasserstein()}),
        (
            lambda: Open(SHAPE, strength=2.0, lambda_B=7.0, loss=Wasserstein(), **NETWORKS),
            {"strength": 2.0, "lambda_A": 3.0, "lambda_B": 7.0, "loss": Wasserstein()},
        ),
        (
            lambda: Opener(SHAPE, 1.0, colour="blue", lambda_identity=0, **NETWORKS),
            {"strength": 1.0, "lambda_A": 3.0, "colour": "blue", "lambda_identity": 0},
        ),
        (
            lambda: CycleGAN(
                SHAPE, functools.partial(options_generator, filters=2, blocks=0), DISCRIMINATOR, lambda_B=4
            ),
            {"lambda_B": 4},
        ),
    ],
    ids=["settled", "kwargs", "args and kwargs", "factory with kwargs"],
)
@pytest.mark.parametrize("through", [GenerativeModule, CycleGAN, None], ids=["base", "CycleGAN", "itself"])
def test_a_subclass_is_loaded_from_its_checkpoint_alone(tmp_path, make, expected, through):
    model = make()
    loaded = (through or type(model)).load_from_checkpoint(saved(model, tmp_path / "a.ckpt"), trust=(__name__,))
    assert type(loaded) is type(model)
    assert all(value == getattr(model, name) == getattr(loaded, name) for name, value in expected.items())
    assert all(torch.equal(t, loaded.state_dict()[name]) for name, t in model.state_dict().items())
    assert loaded.hparams == model.hparams


def test_what_a_subclass_passes_on_is_still_checked_against_the_base_s_annotations(tmp_path):
    path = saved(Open(SHAPE, **NETWORKS), tmp_path / "a.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"]["generator"] = {"class_path": "os.system"}
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match=r"generator of the model: The file names os\.system and was refused"):
        Open.load_from_checkpoint(path)
    checkpoint["hyper_parameters"]["generator"] = GENERATOR.func.__module__ + ".ResNetGenerator"
    checkpoint["hyper_parameters"]["lamda"] = 1
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match="takes no argument 'lamda'"):
        Open.load_from_checkpoint(path)


def test_a_model_inside_another_keeps_its_own_settings():
    class Around(pl.LightningModule):
        def __init__(self, learning_rate=5.0, lambda_A=6.0):
            super().__init__()
            self.inner = CycleGAN(SHAPE, **NETWORKS)

    inner = Around().inner
    assert (inner.learning_rates[0], inner.hparams["lambda_A"]) == (2e-4, 10.0)
    assert "learning_rate" not in inner.hparams


def test_hyperparameters_linked_to_other_models_are_dropped():
    """The command line links what the data knows to every model, whether it takes it or not."""
    from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters_context

    given = {"image_shape": SHAPE, "num_classes": 10, "lambda_B": 4.0, **NETWORKS}
    for cls in (CycleGAN, Open):  # one names all its arguments, the other hands on what it is given
        with _given_hyperparameters_context(given, "instantiator"):
            model = cls(SHAPE, lambda_B=4.0, **NETWORKS)
        assert "num_classes" not in model.hparams
        assert model.hparams["lambda_B"] == 4.0
        assert model.hparams["image_shape"] == list(SHAPE)


def test_what_has_no_name_is_asked_for_once_also_where_settings_are_saved_twice(tmp_path):
    model = Opener(SHAPE, generator=lambda shape: GENERATOR(shape), discriminator=DISCRIMINATOR)
    assert model.hparams["_not_saved"] == ["generator"]
    loaded = Opener.load_from_checkpoint(saved(model, tmp_path / "a.ckpt"), generator=GENERATOR)
    assert loaded.lambda_A == 3.0


def test_a_loss_that_cannot_be_named_must_be_given_again(tmp_path):
    path = saved(CycleGAN(SHAPE, loss=Shifted(), **NETWORKS), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"could not name loss .*load_from_checkpoint\(path, loss=\.\.\.\)"):
        CycleGAN.load_from_checkpoint(path)
    assert isinstance(CycleGAN.load_from_checkpoint(path, loss=Shifted()).loss, Shifted)
    with pytest.raises(CheckpointError, match="takes no argument 'los'"):
        CycleGAN.load_from_checkpoint(path, loss=Shifted(), los=1)


def unannotated(image_shape):
    return ResNetGenerator(image_shape, filters=2, blocks=1)


def test_a_function_that_does_not_say_what_it_makes_is_not_called(tmp_path):
    path = saved(CycleGAN(SHAPE, unannotated, DISCRIMINATOR), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"must be a Module\..* needs a return annotation"):
        CycleGAN.load_from_checkpoint(path, trust=(__name__,))
    assert CycleGAN.load_from_checkpoint(path, generator=unannotated).image_shape == SHAPE  # not from the file


def test_a_class_made_inside_a_function_goes_on_but_cannot_be_found_by_name(tmp_path):
    class Local(CycleGAN):
        pass

    path = saved(Local(SHAPE, **NETWORKS), tmp_path / "a.ckpt")
    t = trainer(max_steps=2)
    t.fit(Local(SHAPE, **NETWORKS), pictures(), ckpt_path=path)
    assert t.global_step == 2
    with pytest.raises(CheckpointError, match="names nothing that can be imported"):
        Local.load_from_checkpoint(path)


def test_going_on_with_another_network_is_refused_in_words(tmp_path):
    path = saved(CycleGAN(SHAPE, **NETWORKS), tmp_path / "a.ckpt")
    other = CycleGAN(SHAPE, functools.partial(ResNetGenerator, filters=2, blocks=2), DISCRIMINATOR)
    with pytest.raises(CheckpointError, match=r"does not fit this CycleGAN: \d+ weights are missing, the first being"):
        trainer(max_steps=2).fit(other, pictures(), ckpt_path=path)


def test_a_checkpoint_of_another_project_is_refused(tmp_path):
    class Other(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            return self.layer.weight.sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    path = saved(Other(), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="does not say which model it holds"):
        CycleGAN.load_from_checkpoint(path)


def test_overrides_strictness_and_unused_arguments(tmp_path):
    path = saved(CycleGAN(SHAPE, **NETWORKS), tmp_path / "a.ckpt")
    assert CycleGAN.load_from_checkpoint(path, learning_rate=0.5).learning_rates[0] == 0.5
    with pytest.raises(ValueError, match="hparams_file is not used"):
        CycleGAN.load_from_checkpoint(path, hparams_file="hparams.yaml")
    other = functools.partial(ResNetGenerator, filters=2, blocks=2)
    loose = CycleGAN.load_from_checkpoint(path, strict=False, generator=other)
    name = "generator_AtoB.layers.0.weight"
    assert torch.equal(loose.state_dict()[name], torch.load(path, weights_only=True)["state_dict"][name])


@pytest.mark.parametrize("shape", [(3, 16), (3, 16, 0), (0, 16, 16)])
def test_shapes_that_are_none_are_refused(shape):
    with pytest.raises(ValueError, match=r"image_shape must be \(channels, height, width\), each at least 1"):
        GenerativeModule(shape)


def test_a_capability_is_asked_for_not_a_name():
    class Draws(GenerativeModule):
        num_classes = None

        def sample(self, num_samples, *, labels=None, generator=None):
            return torch.zeros(num_samples, *self.image_shape)

    translator, game, draws, nothing = (
        CycleGAN(SHAPE, **NETWORKS),
        GAN((1, 2, 2)),
        Draws(SHAPE),
        GenerativeModule(SHAPE),
    )
    for capability, able in ((Translates, [translator]), (Samples, [game, draws]), (HasLatents, [game])):
        assert [m for m in (translator, game, draws, nothing) if isinstance(m, capability)] == able


# -- batches and modes ----------------------------------------------------------------------------------------------


def test_pictures_and_labels_of_a_batch_in_any_usual_form():
    model = GenerativeModule((1, 2, 2))
    images, labels = torch.zeros(3, 1, 2, 2), torch.arange(3)
    for batch, expected in (
        ({"image": images, "label": labels, "name": "a"}, labels),
        ({"image": images}, None),
        ({"pixel_values": images, "labels": labels}, labels),
        ({"images": images, "label": labels}, labels),
        ({"img": images, "file": "a"}, None),
        ((images, labels), labels),
        ([images, labels], labels),
        ([images], None),
        (images, None),
    ):
        found = model.images_and_labels(batch)
        assert found[0] is images
        assert found[1] is expected
    for batch, message in (
        ({"A": images, "B": images}, r"needs batches that are .*; got keys \['A', 'B'\]"),
        ((images, labels, labels), "got a tuple"),
        ("pictures", "got a str"),
        ({"image": images.long()}, "a tensor of floats in .* or of uint8, got torch.int64"),
        ({"image": [1]}, "a tensor of floats in .* or of uint8, got a list"),
        (torch.zeros(3, 2, 2, 1), r"shape \(2, 2, 1\), but this GenerativeModule was made for image_shape \(1, 2, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            model.images_and_labels(batch)


# Of each family: a model for pictures [3, 8, 8], and how it takes a batch of them.
FAMILIES = {
    "GAN": (lambda: GAN((3, 8, 8)), lambda images: (images, torch.zeros(len(images)))),
    "CycleGAN": (lambda: CycleGAN((3, 8, 8), GENERATOR, DISCRIMINATOR), lambda images: {"A": -images, "B": images}),
    "PixelCNN": (lambda: PixelCNN((3, 8, 8), network=NETWORK), lambda images: {"pixel_values": images}),
    "KDE": (lambda: KDE((3, 8, 8)), lambda images: images),
}


def fit_on(model, batches, **settings):
    torch.manual_seed(0)
    trainer(max_epochs=1).fit(model, DataLoader(batches, None), **settings)
    return model.state_dict()


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_of_other_ranges_are_refused_whatever_loader_they_come_from(family):
    make, batch = FAMILIES[family]
    floats = torch.arange(256.0)[torch.randint(256, (2, 3, 8, 8))]
    for wrong in (floats, floats / 100 - 1, floats / 0):
        with pytest.raises(ValueError, match=r"in \[-1, 1\]|Sample 0"):
            fit_on(make(), [batch(wrong)])


def test_a_refusal_says_what_was_found_and_what_to_give():
    for low, high, words in (
        (0, 255, r"GAN takes pictures in \[-1, 1\], but image in a batch has values from 0 to 255\. .*as uint8"),
        (-2.1, 2.6, r"has values from -2.1 to 2.6\. Give 2 x - 1 .* and clip"),
        (-1, float("inf"), "has values from -1 to inf"),
        (-1, float("nan"), "holds values that are not finite"),
    ):
        images = torch.zeros(2, 1, 2, 2)
        images[0, 0, 0, 0], images[1, 0, 1, 1] = low, high
        with pytest.raises(ValueError, match=words):
            fit_on(GAN((1, 2, 2)), [{"image": images}])


@pytest.mark.parametrize("family", ["GAN", "CycleGAN"])
def test_uint8_trains_as_the_same_pictures_in_floats(family):
    make, batch = FAMILIES[family]
    levels = torch.randint(256, (3, 2, 3, 8, 8), dtype=torch.uint8)
    start = make()
    of_bytes, of_floats = make(), make()
    of_bytes.load_state_dict(start.state_dict())
    of_floats.load_state_dict(start.state_dict())
    if family == "CycleGAN":
        given = [{"A": 255 - images, "B": images} for images in levels]
        expected = [{key: images / 127.5 - 1 for key, images in pair.items()} for pair in given]
    else:
        given, expected = [batch(images) for images in levels], [batch(images / 127.5 - 1) for images in levels]
    states = fit_on(of_bytes, given), fit_on(of_floats, expected)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


@pytest.mark.parametrize(
    ("lowest", "spoken"),
    [([0, 0, 0, 0, 0, 0], 1), ([0, 0, 0, 0, -1, -1], 1), ([0, 0, 0, -0.1, 0, 0], 0), ([0, 0, 0], 0)],
)
def test_it_speaks_up_once_where_nothing_in_the_first_batches_is_below_0(lowest, spoken):
    batches = [{"A": torch.full((1, *SHAPE), float(low)), "B": torch.full((1, *SHAPE), 0.5)} for low in lowest]
    for batch in batches:  # of B alone there is something below 0
        batch["B"][0, 0, 0, 0] = -0.5
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit_on(CycleGAN(SHAPE, GENERATOR, DISCRIMINATOR), batches, val_dataloaders=DataLoader(batches, None))
    found = [str(word.message) for word in said if "below 0" in str(word.message)]
    assert len(found) == spoken
    assert all(word.startswith("Nothing is below 0 in A of the first 4 batches") for word in found)


def test_points_may_lie_anywhere_and_later_batches_are_not_looked_at():
    fit_on(GAN((2, 1, 1)), [torch.randn(8, 2, 1, 1) * 9])
    images = torch.zeros(6, 2, 1, 2, 2)
    images[0], images[4:] = -0.1, 7.0
    fit_on(GAN((1, 2, 2)), list(images))


def test_what_is_brought_to_the_range_on_the_device_is_let_through():
    class Data(pl.LightningDataModule):
        def train_dataloader(self):
            return DataLoader([torch.randint(256, (2, 1, 2, 2), dtype=torch.uint8).float() for _ in range(5)], None)

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch / 127.5 - 1

    model = GAN((1, 2, 2))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*below 0")
        trainer(max_epochs=1).fit(model, datamodule=Data())
    assert model.images_seen == 10


class Named(pl.LightningDataModule):
    num_classes = 2

    def __init__(self, class_names):
        super().__init__()
        self.class_names = class_names

    def train_dataloader(self):
        return DataLoader([(torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]))] * 2, None)


def test_names_of_classes_are_in_the_checkpoint_and_stay_with_their_numbers(tmp_path):
    path, old = tmp_path / "a.ckpt", tmp_path / "old.ckpt"
    t = trainer(max_steps=1)
    t.fit(GAN((1, 2, 2), num_classes=2), datamodule=Named(["cat", "dog"]))
    t.save_checkpoint(path)
    assert GAN.load_from_checkpoint(path).class_names == ["cat", "dog"]
    again = trainer(max_steps=2)
    again.fit(GAN((1, 2, 2), num_classes=2), datamodule=Named(("cat", "dog")), ckpt_path=path)
    assert again.global_step == 2
    with pytest.raises(CheckpointError, match=r"class 0 is called 'cat', but in the data it is 'bat'\."):
        trainer(max_steps=2).fit(GAN((1, 2, 2), num_classes=2), datamodule=Named(["bat", "cat"]), ckpt_path=path)
    content = torch.load(path, weights_only=True)
    for wrong in ("cat,dog", ["cat"], ["cat", 7]):
        torch.save(content | {"class_names": wrong}, old)
        with pytest.raises(CheckpointError, match="class_names in the checkpoint must be the names of 2 classes"):
            GAN.load_from_checkpoint(old)
    del content["class_names"]  # as in checkpoints that are older than names
    torch.save(content, old)
    assert GAN.load_from_checkpoint(old).class_names is None
    trainer(max_steps=2).fit(GAN((1, 2, 2), num_classes=2), datamodule=Named(["bat", "cat"]), ckpt_path=old)


class Brightness(GenerativeModule):
    def __init__(self, image_shape: tuple[int, int, int]) -> None:
        super().__init__(image_shape)
        self.weight = nn.Parameter(torch.zeros(1))

    def test_step(self, batch, batch_idx):
        self.log("test/brightness", batch.mean(), batch_size=len(batch), sync_dist=True)


def brightness_on(rank, pictures):
    os.environ["LOCAL_RANK"] = str(rank)
    loop = trainer(strategy="ddp", devices=2, use_distributed_sampler=False)
    (figures,) = loop.test(Brightness((1, 2, 2)), DataLoader(pictures[rank::2], 2), verbose=False)
    return figures["test/brightness"]


def test_a_mean_is_that_of_all_pictures_however_many_each_process_has(on_ranks):
    pictures = torch.tensor([-1.0, 0.0, 0.0, 0.5, 1.0])[:, None, None, None].expand(-1, 1, 2, 2)
    assert on_ranks(brightness_on, pictures) == pytest.approx([0.1, 0.1])


def test_models_without_classes_know_no_names(tmp_path):
    t = trainer(max_steps=1)
    t.fit(GAN((1, 2, 2)), datamodule=Named(["cat", "dog"]))
    t.save_checkpoint(tmp_path / "a.ckpt")
    assert "class_names" not in torch.load(tmp_path / "a.ckpt", weights_only=True)


def test_evaluation_mode_is_put_back_as_it_was_also_after_an_error():
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout(), nn.ReLU())).train()
    network[1][0].eval()
    modes = [module.training for module in network.modules()]

    def fail():
        with evaluating(network):
            assert not any(module.training for module in network.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [module.training for module in network.modules()] == modes


def test_lightning_does_not_warn_of_what_is_as_it_should_be(tmp_path, recwarn):
    """In Python, too: of checkpoints under manual optimization, and of how a checkpoint is to be read."""
    logger = logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector")
    told = []
    logger.addHandler(handler := logging.Handler())
    handler.emit = lambda record: told.append(record.getMessage())
    saves = ModelCheckpoint(tmp_path, every_n_train_steps=1, filename="{step}")
    t = trainer(max_steps=2, callbacks=[saves], enable_checkpointing=True)
    t.fit(CycleGAN(SHAPE, GENERATOR, DISCRIMINATOR), pictures())
    t.save_checkpoint(tmp_path / "own.ckpt")
    logger.removeHandler(handler)
    assert (tmp_path / "step=2.ckpt").is_file()
    assert not [message for warning in recwarn if "ModelCheckpoint" in (message := str(warning.message))]
    assert not told
