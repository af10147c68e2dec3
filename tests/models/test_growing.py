"""Two players that grow: the stage in training and in evaluation, penalties, rates, moments, and going on."""

from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from unittest import mock

import lightning.pytorch as pl
import lightning.pytorch.strategies.launchers.multiprocessing as launching
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.testing import CompileCounter

from lightning_gen.capabilities import HasLatents, HasStyles
from lightning_gen.data.base import DrawDataset, ImageDataModule
from lightning_gen.evaluation.engine import draw
from lightning_gen.evaluation.protocol import EvaluationProtocol
from lightning_gen.generative import GenerativeModule
from lightning_gen.losses import R1, R2, AuxiliaryClassifier, Drift, GradientPenalty, NonSaturating, Wasserstein
from lightning_gen.metrics.path_length import perceptual_path_length
from lightning_gen.models import ProGAN, StyleGAN
from lightning_gen.models.growing import GrowingGAN
from lightning_gen.networks import (
    DCGANDiscriminator,
    DCGANGenerator,
    ProGANDiscriminator,
    ProGANGenerator,
    StyleGANDiscriminator,
    StyleGANGenerator,
)
from lightning_gen.schedules import Growing, Stage
from tests.shared import differences

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:You're resuming from")

SHAPE, CLASSES = (3, 16, 16), 3
# By fours to 12, where 8 x 8 begins to fade in by twos, until 20; to 32, and 16 x 16 by twos until 40.
GROWING = Growing((4, 8, 16), (4, 2, 2), learning_rates=(1e-3, 2e-3, 3e-3), stable_images=12, fade_images=8)
NETWORKS = {
    ProGAN: {
        "generator": partial(ProGANGenerator, **ProGANGenerator.small),
        "discriminator": partial(ProGANDiscriminator, **ProGANDiscriminator.small),
    },
    StyleGAN: {
        "generator": partial(StyleGANGenerator, **StyleGANGenerator.small),
        "discriminator": partial(StyleGANDiscriminator, **StyleGANDiscriminator.small),
    },
}
FAMILY = list(NETWORKS)


def make(base, **settings):
    torch.manual_seed(0)
    return base(SHAPE, **{**NETWORKS[base], "latent_size": 4, "growing": GROWING, **settings})


@dataclass(frozen=True, eq=False)
class Noise(DrawDataset):
    count: int

    def __len__(self):
        return self.count

    def __getitem__(self, draw):
        random = draw.rng(1)
        return {
            "image": torch.from_numpy(random.uniform(-1, 1, SHAPE)).float(),
            "label": torch.tensor(int(random.integers(CLASSES))),
        }


class Data(ImageDataModule):
    image_shape, num_classes = SHAPE, CLASSES

    def __init__(self, growing=GROWING, **loader):
        super().__init__(**{"growing": growing, "seed": 2, "num_workers": 0, "batch_size": 2, **loader})

    def dataset(self, split):
        return Noise(23 if split == "train" else 3)


class Diary(pl.callbacks.Checkpoint):
    """What holds in each step; saves after some."""

    def __init__(self, folder=None, at=()):
        self.folder, self.at, self.steps, self.moments, self.shapes = folder, at, [], [], []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        if optimizer is trainer.optimizers[0]:
            self.steps.append((module.images_seen, optimizer.param_groups[0]["lr"]))

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.moments.append([bool(optimizer.state) for optimizer in trainer.optimizers])
        self.shapes.append(tuple(batch["image"].shape))
        if trainer.global_step in self.at:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


def fit(model, folder, diary=None, data=None, checkpoint=None, **settings):
    """All that the checkpoint of the end holds."""
    torch.manual_seed(0)
    trainer = pl.Trainer(
        logger=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, accelerator="cpu",
        callbacks=[diary or Diary()], default_root_dir=folder, **{"max_epochs": 2, **settings},
    )  # fmt: skip
    trainer.fit(model, datamodule=data or Data(), ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / "end.ckpt")
    return torch.load(folder / "end.ckpt", weights_only=True)


# -- the schedule ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", FAMILY)
def test_data_rates_and_moments_follow_the_schedule(base, tmp_path):
    diary, model = Diary(), make(base)
    fit(model, tmp_path, diary)
    seen = [images for images, _ in diary.steps]
    assert seen[:6] == [0, 4, 8, 12, 16, 18]  # the fourth batch still begins before anything fades in
    stages = [GROWING(images) for images in seen]
    assert {stage.resolution for stage in stages} == {4, 8, 16}
    assert diary.shapes == [(stage.batch_size, 3, stage.resolution, stage.resolution) for stage in stages]
    assert [rate for _, rate in diary.steps] == [stage.learning_rate for stage in stages]
    # Moments are forgotten when a fade has begun, and when it has ended.
    kinds = [(stage.resolution, stage.fade < 1) for stage in (*stages, GROWING(model.images_seen))]
    assert diary.moments == [[before == after] * 2 for before, after in pairwise(kinds)]
    assert sum(not any(both) for both in diary.moments) == 4


@pytest.mark.parametrize("base", FAMILY)
def test_going_on_equals_never_having_stopped(base, tmp_path):
    """In a fade, at a change of batch size, where moments have just been forgotten, and in the next epoch."""
    at = (3, 4, 5, 9, 11)
    expected = fit(make(base, num_classes=CLASSES), tmp_path, Diary(tmp_path, at))
    assert expected["images_seen"] == 44
    for stop in at:
        model = GenerativeModule.load_from_checkpoint(tmp_path / f"{stop}.ckpt")
        assert model.growing == GROWING
        # Workers load ahead, at 3 across the change of batch size, at 9 into the last resolution.
        found = fit(model, tmp_path, data=Data(num_workers=2 * (stop in (3, 9))), checkpoint=tmp_path / f"{stop}.ckpt")
        left_out = {"loops", "callbacks"}
        assert not differences(*({k: v for k, v in c.items() if k not in left_out} for c in (expected, found)))


@pytest.mark.parametrize(
    ("base", "settings", "message"),
    [
        (ProGAN, {"growing": Growing((4, 8))}, r"ends with pictures 8 pixels high, but image_shape is \(3, 16, 16\)"),
        (
            ProGAN,
            {"growing": Growing((4, 16))},
            "heights of the generator, one after the other, .* 4, 8, 16; got 4, 16",
        ),
        (ProGAN, {"growing": Growing((2, 4, 8, 16))}, "which are 4, 8, 16; got 2, 4, 8, 16"),
        (StyleGAN, {"decay_start": 0.5}, "growing has the learning rates. Leave out decay_start, or growing"),
        (ProGAN, {"generator": partial(DCGANGenerator, filters=4)}, "the generator DCGANGenerator does not grow"),
        (
            ProGAN,
            {"discriminator": partial(DCGANDiscriminator, filters=4, norm="none")},
            "the discriminator DCGANDiscriminator does not grow",
        ),
        (StyleGAN, {"mixing_probability": 1.5}, r"mixing_probability must lie in \[0, 1\], got 1.5"),
    ],
)
def test_what_cannot_grow_is_refused(base, settings, message):
    with pytest.raises(ValueError, match=message):
        make(base, **settings)


def test_data_with_another_schedule_is_refused(tmp_path):
    for data in (Data(growing=None), Data(growing=Growing((8, 16)))):
        with pytest.raises(ValueError, match="must follow the same schedule"):
            fit(make(ProGAN), tmp_path, data=data)


# -- a stage --------------------------------------------------------------------------------------------------------

STABLE, FADING, WHOLE = 4, 16, 1000
"""Numbers of images seen: at 4 x 4, half-way to 8 x 8, and at 16 x 16."""


@pytest.mark.parametrize("base", FAMILY)
@pytest.mark.parametrize(("seen", "size"), [(STABLE, 4), (FADING, 8), (WHOLE, 16)])
def test_pictures_are_of_the_stage_in_training_and_of_full_size_in_evaluation(base, seen, size):
    model = make(base)
    model.images_seen = seen
    assert isinstance(model, HasLatents)
    assert isinstance(model, HasStyles) == (base is StyleGAN)
    assert model.train().fakes(2, None).shape == (2, 3, size, size)
    images = model.sample(2, generator=torch.Generator().manual_seed(0))
    assert images.shape == (2, *SHAPE)
    assert images.abs().max() <= 1
    small = images[..., :: 16 // size, :: 16 // size]
    assert torch.equal(F.interpolate(small, scale_factor=16.0 / size), images)
    latents = model.draw_latents(2, torch.Generator().manual_seed(0))
    expected = model.eval().generator(latents, height=size, fade=GROWING(seen).fade).clamp(-1, 1)
    torch.testing.assert_close(small, expected)


def test_a_checkpoint_draws_with_the_stage_that_it_was_written_in(tmp_path):
    diary = Diary(tmp_path, (5,))
    fit(make(ProGAN), tmp_path, diary)
    model = GenerativeModule.load_from_checkpoint(tmp_path / "5.ckpt")
    assert model.stage == Stage(8, 0.75, 2, 2e-3, 2)
    images = model.sample(2)
    assert torch.equal(images[..., ::2, ::2], images[..., 1::2, 1::2])


@pytest.mark.parametrize("size", [8, 16])
def test_reals_are_faded_as_fakes_are(size):
    model = make(ProGAN)
    model.images_seen = FADING
    full_size = torch.rand(2, 3, size, size) * 2 - 1
    model.training_shape = (3, 8, 8)
    model.train(size == 8)  # training has those of the stage, validation whole ones
    images, _ = model.images_and_context({"image": full_size})
    expected = F.avg_pool2d(full_size, size // 8)
    halves = F.interpolate(F.avg_pool2d(expected, 2), scale_factor=2.0)
    torch.testing.assert_close(images, 0.5 * halves + 0.5 * expected)


def test_validation_judges_at_the_stage(tmp_path):
    """Pictures of full size are brought down to it, and the figure is that of the pictures of the stage."""
    model = make(ProGAN)
    model.images_seen = FADING
    trainer = pl.Trainer(
        logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu",
        default_root_dir=tmp_path, enable_model_summary=False,
    )  # fmt: skip
    (found,) = trainer.validate(model, datamodule=Data(batch_size=3), verbose=False)
    (batch,) = Data(batch_size=3).val_dataloader()
    real, _ = model.eval().images_and_context(batch)
    with torch.no_grad():
        latents = model.draw_latents(3, torch.Generator().manual_seed(0))
        fake = model.generator(latents, height=8, fade=0.5).clamp(-1, 1)
        scores = (model.discriminator(images, fade=0.5) for images in (real, fake))
        assert found["val/discriminator"] == pytest.approx(Wasserstein().discriminator(*scores).item(), rel=1e-4)


@pytest.mark.parametrize("base", FAMILY)
def test_pictures_and_scores_go_on_across_every_switch(base):
    """One picture more or less in a million moves them by as little."""
    many = 10**6
    model = make(base, growing=replace(GROWING, stable_images=many, fade_images=many)).eval()
    reals = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def at(seen):
        model.images_seen = seen
        real, _ = model.images_and_context({"image": reals})
        with torch.no_grad():
            return model.sample(2, generator=torch.Generator().manual_seed(0)), model.judge(real)

    ends = [at(seen) for seen in (0, 4 * many)]
    assert all((one - other).abs().max() > 0.01 for one, other in zip(*ends, strict=True))
    for switch in (many, 2 * many, 3 * many, 4 * many):  # where a fade begins, and where it ends
        before, after = at(switch - 1), at(switch + 1)
        assert model.growing(switch - 1)[:2] != model.growing(switch + 1)[:2]
        for one, other in zip(before, after, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("base", FAMILY)
def test_what_is_compiled_lasts_for_a_fade(base):
    """Shares and cutoffs change at every step, and no graph is made anew for them."""
    model, counter = make(base).train(), CompileCounter()
    torch.compiler.reset()
    model.generator.compile(backend=counter)
    made = []
    for seen in (13, 14, 16, 18, 19):
        model.images_seen = seen
        for seed in range(3):
            torch.manual_seed(seed)
            compiled = model.fakes(2, None)
        made.append(counter.frame_count)
    assert made == [made[0]] * 5
    network = model.generator
    network._compiled_call_impl = None
    torch.manual_seed(2)
    torch.testing.assert_close(compiled, model.fakes(2, None))
    torch.compiler.reset()


# -- penalties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", [R1(), R2(), GradientPenalty(), GradientPenalty(one_sided=True), Drift()], ids=repr)
@pytest.mark.parametrize(("seen", "size"), [(STABLE, 4), (FADING, 8), (WHOLE, 16)])
def test_a_penalty_is_that_of_pictures_enlarged_to_the_last_size(penalty, seen, size):
    """As the authors' code has it: all pictures are enlarged by repetition, and averaged down in the discriminator."""
    model = make(ProGAN, penalties=[penalty]).double()
    model.images_seen = seen
    fade, factor = GROWING(seen).fade, 16 // size
    real, fake = (torch.rand(2, 4, 3, size, size) * 2 - 1).double()
    torch.manual_seed(1)
    (found,) = model.penalty_losses(model.judge, real, fake).values()

    def theirs(images):
        return model.discriminator(F.avg_pool2d(images, factor), fade=fade)

    torch.manual_seed(1)
    enlarged = (F.interpolate(images, scale_factor=float(factor)) for images in (real, fake))
    torch.testing.assert_close(found, penalty(theirs, *enlarged))
    # By pixels of the stage it is that with another weight, and another norm wanted.
    by_stage = {
        "R1": R1(10 / factor**2),
        "R2": R2(10 / factor**2),
        "GradientPenalty": GradientPenalty(10 / factor**2, getattr(penalty, "one_sided", False), target=factor),
        "Drift": Drift(),
    }[type(penalty).__name__]
    torch.manual_seed(1)
    torch.testing.assert_close(found, by_stage(lambda images: model.discriminator(images, fade=fade), real, fake))
    assert model.stage.penalty_scale == 1 / factor**2


def test_taken_literally_a_penalty_would_be_another():
    model = make(ProGAN, penalties=[R1()])
    model.images_seen = STABLE
    real, fake = torch.rand(2, 4, 3, 4, 4) * 2 - 1
    (found,) = model.penalty_losses(model.judge, real, fake).values()
    torch.testing.assert_close(16 * found, R1()(model.judge, real, fake))


# -- the players ----------------------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_papers():
    with torch.device("meta"):
        for base, loss, penalties in (
            (ProGAN, Wasserstein(), [GradientPenalty(10.0), Drift(0.001)]),
            (StyleGAN, NonSaturating(), [R1(10.0)]),
        ):
            model = base((3, 32, 32))
            assert model.loss == loss
            assert model.penalties == penalties
            assert model.learning_rates == (1e-3, 1e-3)
            assert model.betas == (0.0, 0.99)
            assert (model.n_critic, model.latent_shape, model.latent_distribution) == (1, (512,), "normal")
    assert StyleGAN((3, 8, 8), **NETWORKS[StyleGAN]).mixing_probability == 0.9


@pytest.mark.parametrize("base", FAMILY)
def test_fakes_beside_reals_have_their_labels(base):
    model = make(base, num_classes=CLASSES, growing=None, penalties=[])
    labels, seen = torch.tensor([2, 2, 0, 1]), []
    model.discriminator.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    model.train().discriminator_losses(torch.rand(4, *SHAPE), labels)
    assert [each.tolist() for each in seen] == [labels.tolist()] * 2


def test_progan_with_classes_plays_as_ac_gan_and_penalises_the_score_alone():
    model = make(ProGAN, num_classes=CLASSES, growing=None).double()
    assert model.loss == AuxiliaryClassifier(Wasserstein())
    real, labels = (torch.rand(4, *SHAPE) * 2 - 1).double(), torch.tensor([0, 1, 2, 1])
    torch.manual_seed(1)
    losses = model.train().discriminator_losses(real, labels)
    torch.manual_seed(1)
    with torch.no_grad():
        fake = model.generator(model.latents(4).double(), labels)
    outputs_real, outputs_fake = (model.discriminator.judge(images, 1.0) for images in (real, fake))
    entropy = sum(F.cross_entropy(outputs[:, 1:], labels) for outputs in (outputs_real, outputs_fake))
    torch.testing.assert_close(losses["discriminator"], outputs_fake[:, 0].mean() - outputs_real[:, 0].mean() + entropy)
    torch.testing.assert_close(losses["Drift"], 0.001 * outputs_real[:, 0].square().mean())
    ratio = torch.rand(4, 1, 1, 1, dtype=torch.float64)
    points = torch.lerp(fake, real, ratio).requires_grad_()
    (gradient,) = torch.autograd.grad(model.discriminator.judge(points, 1.0)[:, 0].sum(), points)
    torch.testing.assert_close(losses["GradientPenalty"], 10 * (gradient.flatten(1).norm(dim=1) - 1).square().mean())


@pytest.mark.parametrize("base", FAMILY)
def test_it_trains_in_full_size_without_a_schedule_at_its_own_rates(base, tmp_path):
    diary = Diary()
    model = make(base, growing=None, learning_rate=5e-4, discriminator_learning_rate=7e-4)
    fit(model, tmp_path, diary, Data(growing=None), max_steps=3)
    assert diary.steps == [(0, 5e-4), (2, 5e-4), (4, 5e-4)]
    assert model.trainer.optimizers[1].param_groups[0]["lr"] == 7e-4
    assert diary.moments == [[True, True]] * 3


# -- styles ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def styled():
    """A generator whose noise is seen and whose mean of styles is something."""
    model = make(StyleGAN, growing=None)
    for layer in model.generator.layers:
        nn.init.normal_(layer.noise.strength)
    nn.init.normal_(model.generator.mean_style)
    return model


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def test_psi_1_changes_nothing_and_psi_0_gives_one_picture(styled):
    plain = styled.sample(4, generator=seeded())
    assert torch.equal(styled.sample(4, generator=seeded(), psi=1.0), plain)
    assert torch.equal(styled.sample(4, generator=seeded(), psi=0.5, truncated_layers=0), plain)
    one = styled.sample(4, generator=seeded(), psi=0.0)
    torch.testing.assert_close(one, one[:1].expand_as(one))
    mean = styled.generator.mean_style.expand(1, 6, -1)
    torch.testing.assert_close(one[:1], styled.synthesize(mean))
    some = styled.sample(4, generator=seeded(), psi=0.0, truncated_layers=2)
    styles = styled.map_latents(styled.draw_latents(4, seeded()))
    torch.testing.assert_close(some, styled.synthesize(torch.cat([mean.expand(4, -1, -1)[:, :2], styles[:, 2:]], 1)))
    torch.testing.assert_close(some, styled.synthesize(styled.truncate(styles, 0.0, 2)))


def test_by_default_the_first_eight_layers_are_truncated():
    with torch.device("meta"):
        large = StyleGAN((3, 64, 64), **NETWORKS[StyleGAN])
    assert large.generator.num_layers == 10
    assert large._checked(0.7, None) == (0.7, 8)


def test_truncation_is_inert_in_training_and_in_figures(styled):
    """Neither losses nor samples without a setting know of the mean."""

    def everything(model):
        torch.manual_seed(3)
        images = torch.rand(4, *SHAPE) * 2 - 1
        terms = {**model.train().discriminator_losses(images, None), **model.generator_losses(4)}
        measured = draw(model, 0, 4, EvaluationProtocol()), draw(model, 1, 4, EvaluationProtocol(seed=2))
        return [*(term.item() for term in terms.values()), *(images.sum().item() for images in measured)]

    before = everything(styled)
    nn.init.constant_(styled.generator.mean_style, 100.0)
    assert everything(styled) == before


def test_map_and_synthesize_make_the_samples(styled):
    styles = styled.map_latents(styled.draw_latents(4, seeded()))
    assert styles.shape == (4, 6, 8)
    assert not styles.requires_grad
    assert styled.synthesize(styles, noise="random", generator=seeded()).equal(
        styled.synthesize(styles, noise="random", generator=seeded())
    )
    assert torch.equal(styled.synthesize(styles), styled.sample(4, generator=seeded()))
    assert styled.synthesize(styles[:0]).shape == (0, *SHAPE)
    torch.testing.assert_close(styled.synthesize(styles[2:3]), styled.synthesize(styles)[2:3])


def test_kinds_of_noise(styled):
    def draw(noise, seed=0):
        return styled.sample(3, generator=seeded(seed), noise=noise)

    images = draw("random")
    assert torch.equal(images, draw("random"))
    latents = styled.draw_latents(3, seeded())
    alone = styled.generate(latents[1:2], noise="random")  # a function of its latent, in whatever company
    torch.testing.assert_close(alone, images[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.equal(styled.generate(latents + 1e-6, noise="random"), images)
    assert not torch.equal(draw("random"), draw("fixed"))
    assert not torch.equal(draw("none"), draw("fixed"))
    styles = styled.map_latents(torch.zeros(1, 4)).expand(3, -1, -1)
    fixed, random = styled.synthesize(styles), styled.synthesize(styles, noise="random", generator=seeded())
    torch.testing.assert_close(fixed, fixed[:1].expand_as(fixed))
    assert not torch.equal(random[0], random[1])
    state = torch.get_rng_state()
    assert not torch.equal(styled.synthesize(styles, noise="random"), styled.synthesize(styles, noise="random"))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"psi": 2.5}, r"psi must lie in \[-2, 2\], got 2.5"),
        ({"psi": float("nan")}, r"psi must lie in \[-2, 2\], got nan"),
        ({"truncated_layers": 7}, "truncated_layers must be from 0 to 6, which this generator has; got 7"),
        ({"truncated_layers": -1}, "got -1"),
        ({"noise": "loud"}, "noise must be 'random', 'fixed' or 'none', got 'loud'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(styled, settings, message):
    with pytest.raises(ValueError, match=message):
        styled.sample(2, **settings)


def test_styles_of_another_shape_are_refused(styled):
    with pytest.raises(ValueError, match=r"Styles must be \[N, 6, 8\], got \[2, 5, 8\]"):
        styled.synthesize(torch.zeros(2, 5, 8))


@pytest.mark.parametrize(("seen", "layers"), [(STABLE, 2), (FADING, 4), (WHOLE, 6)])
def test_styles_are_mixed_from_a_layer_of_the_stage_on(seen, layers):
    model = make(StyleGAN).train()
    model.images_seen = seen
    given, network = [], model.generator
    network.register_forward_pre_hook(lambda _, args, kwargs: given.append((args, kwargs)), with_kwargs=True)
    for seed in range(300):
        torch.manual_seed(seed)
        model.fakes(2, None)
    cutoffs = [int(kwargs["cutoff"]) for _, kwargs in given]
    mixed = [cutoff for cutoff in cutoffs if cutoff < layers]
    assert len(mixed) == pytest.approx(0.9 * 300, abs=20)  # four deviations
    assert set(mixed) == set(range(1, layers))
    assert set(cutoffs) - set(mixed) == {layers}
    assert all(kwargs["height"] == GROWING(seen).resolution for _, kwargs in given)
    assert not torch.equal(given[0][0][0], given[0][1]["others"])
    for probability in (0.0, 1.0):
        model.mixing_probability = probability
        given.clear()
        for _ in range(20):
            model.fakes(2, None)
        assert {bool(kwargs["cutoff"] < layers) for _, kwargs in given} == {probability > 0}


def step_of_the_mean(rank=0):
    """The mean of styles before a step and after it, and that of the styles of the rank's own batch."""
    model = make(StyleGAN, growing=None)
    nn.init.normal_(model.generator.mean_style)
    before, own = model.generator.mean_style.clone(), []
    model.generator.mapping.register_forward_hook(lambda *call: own.append(call[-1]))
    torch.manual_seed(10 + rank)
    with mock.patch.object(GrowingGAN, "finish_step", return_value=None):
        model.finish_step(4)
    (styles,) = own
    return before, model.generator.mean_style, styles.mean(0)


def test_the_mean_of_styles_moves_towards_that_of_a_batch_over_all_ranks(on_ranks):
    before, after, own = step_of_the_mean()
    torch.testing.assert_close(after, 0.995 * before + 0.005 * own)
    (before, one, first), (_, other, second) = on_ranks(step_of_the_mean)
    assert torch.equal(one, other)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(one, 0.995 * before + 0.005 * (first + second) / 2)


def test_the_mean_of_styles_moves_once_a_batch_and_comes_back(tmp_path):
    model, drawn = make(StyleGAN, growing=None, generator_optimizer=partial(torch.optim.SGD, lr=0.0)), []
    draw = model.latents
    model.latents = lambda num: drawn.append(draw(num)) or drawn[-1]
    fit(model, tmp_path, data=Data(growing=None), max_steps=1)
    with torch.no_grad():
        expected = [0.005 * model.generator.mapping(each).mean(0) for each in drawn]
    mean = model.generator.mean_style
    assert sum(torch.allclose(mean, each, rtol=1e-4) for each in expected) == 1
    assert torch.equal(GenerativeModule.load_from_checkpoint(tmp_path / "end.ckpt").generator.mean_style, mean)


def test_path_length_is_measured_in_both_spaces(styled):
    def distance(a, b):
        return (a - b).square().mean((1, 2, 3))

    lengths = [
        perceptual_path_length(styled, distance, space=space, num_samples=8, epsilon=1e-2, seed=1).mean
        for space in ("z", "w")
    ]
    assert all(length > 0 for length in lengths)


HALVED = Growing((4, 8, 16), (2, 1, 1), learning_rates=(1e-3, 2e-3, 3e-3), stable_images=12, fade_images=8)


def fit_on_two_ranks(base, path, checkpoint=None, workers=0):
    launching._check_bad_cuda_fork = lambda: None  # nothing here uses CUDA
    model = make(base, growing=HALVED, latent_size=4)
    trainer = pl.Trainer(
        accelerator="cpu", strategy="ddp_fork", devices=2, max_epochs=2, logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=[Diary(path, (5, 9)), EndOfEach(path)],
        default_root_dir=path,
    )  # fmt: skip
    data = Data(HALVED, num_workers=workers)
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)


class EndOfEach(pl.Callback):
    """Writes all that a rank's model holds when training ends."""

    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, module):
        torch.save({"images": module.images_seen, **module.state_dict()}, self.path / f"rank{trainer.global_rank}.pt")


@pytest.mark.parametrize("base", FAMILY)
def test_two_ranks_grow_together_and_go_on(base, tmp_path, fresh_process):
    """With the same weights and mean of styles, also from the middle of a fade."""

    def ends():
        return [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]

    fresh_process(fit_on_two_ranks, base, tmp_path)
    one, other = ends()
    assert not differences(one, other)
    assert one["images"] == 44
    assert base is ProGAN or one["generator.mean_style"].any()
    for stop, workers in ((5, 0), (9, 2)):
        fresh_process(fit_on_two_ranks, base, tmp_path, tmp_path / f"{stop}.ckpt", workers)
        assert not differences(one, ends()[0])
