"""Augmentation in training: who is shown what, with which draws; p, which goes on after a stop; and what is refused."""

import copy
import math
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_gen.data import Scenes
from lightning_gen.layers import ADA, DiffAugment
from lightning_gen.layers.ada import AdaptiveProbability
from lightning_gen.layers.augment import Augmentation, drawn, integers
from lightning_gen.losses import (
    R1,
    AuxiliaryClassifier,
    FDivergence,
    GradientPenalty,
    Hinge,
    LabelSmoothing,
    LeastSquares,
    NonSaturating,
    RelativisticPairing,
    Wasserstein,
)
from lightning_gen.models import GAN, VQGAN, WGAN, CycleGAN, Pix2Pix, ProGAN, StyleGAN
from lightning_gen.networks import (
    DCGANDiscriminator,
    DCGANGenerator,
    PatchDiscriminator,
    ProGANDiscriminator,
    ProGANGenerator,
    ResNetGenerator,
    StyleGANDiscriminator,
    StyleGANGenerator,
    VQGANDecoder,
    VQGANEncoder,
)
from lightning_gen.schedules import Growing, Linear
from tests.shared import Recorder, differences, trainer

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:You're resuming from")

SHAPE = (3, 16, 16)
PATCHES = partial(PatchDiscriminator, filters=2, layers=1, norm="instance")


class Plus(Augmentation):
    """Adds a draw of its own to each picture, and keeps what it was given."""

    p = 1.0
    transforms = ("plus",)

    def __init__(self):
        self.given, self.draws = [], []

    def transformed(self, images, p, pictures):
        draws = torch.rand(len(images))
        self.given.append((images.detach().clone(), pictures))
        self.draws.append(draws)
        return images + draws.view(-1, 1, 1, 1), torch.ones(len(images), dtype=torch.bool)


def dcgan(**settings):
    torch.manual_seed(0)
    networks = partial(DCGANGenerator, **DCGANGenerator.small), partial(DCGANDiscriminator, norm="none", filters=4)
    return GAN(SHAPE, *networks, latent_size=4, latent_distribution="normal", **settings)


def family(name, **settings):
    torch.manual_seed(0)
    growing = Growing((8, 16), (4,), stable_images=8, fade_images=8)
    small = {
        "ProGAN": lambda: ProGAN(
            SHAPE,
            partial(ProGANGenerator, **ProGANGenerator.small),
            partial(ProGANDiscriminator, **ProGANDiscriminator.small),
            loss=NonSaturating(),
            latent_size=4,
            **settings,
        ),
        "StyleGAN": lambda: StyleGAN(
            SHAPE,
            partial(StyleGANGenerator, **StyleGANGenerator.small),
            partial(StyleGANDiscriminator, **StyleGANDiscriminator.small),
            latent_size=4,
            growing=growing,
            **settings,
        ),
        "DCGAN": lambda: dcgan(penalties=[R1()], **settings),
        "CycleGAN": lambda: CycleGAN(
            SHAPE, partial(ResNetGenerator, filters=2, blocks=1), PATCHES, penalties=[GradientPenalty()], **settings
        ),
        "Pix2Pix": lambda: Pix2Pix(
            SHAPE, partial(ResNetGenerator, filters=2, blocks=1), PATCHES, penalties=[R1()], decay_start=1.0, **settings
        ),
        "VQGAN": lambda: VQGAN(
            SHAPE,
            partial(VQGANEncoder, **VQGANEncoder.small),
            partial(VQGANDecoder, **VQGANDecoder.small),
            discriminator=PATCHES,
            perceptual_weight=0.0,
            channels=4,
            discriminator_start=0,
            penalties=[R1()],
            **settings,
        ),
    }
    if name == "CycleGAN":
        settings["decay_start"] = 1.0
    return small[name]()


FAMILY = ["DCGAN", "ProGAN", "StyleGAN", "CycleGAN", "Pix2Pix", "VQGAN"]


def batches(name, number=6, size=4, seed=1):
    draw = torch.Generator().manual_seed(seed)
    side = 8 if name == "StyleGAN" else 16  # the stage in which all of its steps here are
    shape = (size, 3, side, side)
    paint = lambda: torch.rand(shape, generator=draw) * 2 - 1  # noqa: E731
    pairs = name in ("CycleGAN", "Pix2Pix")
    return DataLoader(
        [{"A": paint(), "B": paint()} if pairs else {"image": paint()} for _ in range(number)], batch_size=None
    )


# -- who is shown what ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "precision"),
    # In bfloat16 one model that grows and one whose discriminator judges patches are enough.
    [*((name, "32-true") for name in FAMILY), *((n, "bf16-mixed") for n in FAMILY if n not in ("ProGAN", "VQGAN"))],
)
def test_every_family_learns_with_it_and_the_second_gradient_goes_through(name, precision):
    model = family(name, augment=ADA(p=0.5, kimg=1))
    before = copy.deepcopy(model.state_dict())
    recorder = Recorder()
    steps = 2 if name == "StyleGAN" else 4
    trainer(max_steps=steps, precision=precision, callbacks=[recorder]).fit(model, batches(name))
    after = model.state_dict()
    assert all(after[key].isfinite().all() for key in after)
    assert any(not torch.equal(before[key], after[key]) for key in after)
    assert {"augment_p", "augment_r"} <= recorder.terms[-1].keys()
    assert [terms["augment_p"] for terms in recorder.terms[:2]] == pytest.approx([0.5, 0.5])
    assert all(gradient.isfinite().all() for step in recorder.gradients for gradient in step)


def test_reals_and_fakes_are_augmented_in_both_updates_with_draws_of_their_own_and_penalties_too():
    augment = Plus()
    model = dcgan(augment=augment, penalties=[R1()])
    shown = []
    model.discriminator.register_forward_hook(lambda _, inputs, __: shown.append(inputs[0].detach().clone()))
    (batch,) = batches("DCGAN", 1)
    trainer(max_steps=1).fit(model, DataLoader([batch], batch_size=None))
    (both, penalised, fakes), counts = augment.given, [pictures for _, pictures in augment.given]
    assert counts == [1, 1, 1]
    assert torch.equal(both[0][:4], batch["image"])
    assert torch.equal(penalised[0], batch["image"])  # R1 differentiates by pictures as they are
    assert len(fakes[0]) == 4
    assert len(torch.cat(augment.draws).unique()) == 8 + 4 + 4
    for given, draws, seen in zip(augment.given, augment.draws, shown, strict=True):
        assert torch.equal(seen, given[0] + draws.view(-1, 1, 1, 1))


def test_r1_is_by_the_pictures_as_they_are_through_the_augmentation():
    """Of scores that are sums, twice the augmented picture has twice the gradient: R1 is four times as large."""

    class Doubled(Plus):
        def transformed(self, images, p, pictures):
            return 2 * images, torch.ones(len(images), dtype=torch.bool)

    class Sum(nn.Module):
        def __init__(self, image_shape):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, images):
            return self.weight * images.flatten(1).sum(1)

    found = []
    for augment in (None, Doubled()):
        torch.manual_seed(0)
        networks = partial(DCGANGenerator, **DCGANGenerator.small), Sum
        model = GAN(SHAPE, *networks, latent_size=4, penalties=[R1(2.0)], augment=augment)
        recorder = Recorder()
        trainer(max_steps=1, callbacks=[recorder]).fit(model, batches("DCGAN", 1))
        found.append(recorder.terms[0]["R1"])
    assert found == pytest.approx([3 * 16 * 16, 4 * 3 * 16 * 16])


def test_the_pictures_of_a_pair_are_augmented_alike_and_those_of_cyclegan_alone():
    augment = Plus()
    trainer(max_steps=1).fit(family("Pix2Pix", augment=augment), batches("Pix2Pix", 1))
    assert {(images.shape[1], pictures) for images, pictures in augment.given} == {(6, 2)}
    augment = Plus()
    trainer(max_steps=1).fit(family("CycleGAN", augment=augment), batches("CycleGAN", 1))
    assert {(images.shape[1], pictures) for images, pictures in augment.given} == {(3, 1)}


def test_a_growing_model_augments_pictures_of_its_stage_before_penalties_enlarge_their_values():
    augment = Plus()
    model = family("StyleGAN", augment=augment)
    trainer(max_steps=1).fit(model, batches("StyleGAN", 1))
    assert {images.shape[-1] for images, _ in augment.given} == {8}
    real = next(iter(batches("StyleGAN", 1)))["image"]
    _, _, penalised, _ = (images for images, _ in augment.given)  # real pictures and fakes go by themselves
    assert torch.equal(penalised, real)  # R1's, whose values are twice as large outside


def test_nothing_is_augmented_but_in_training():
    augment = Plus()
    model = dcgan(augment=augment).eval()
    model.judge(torch.zeros(2, *SHAPE))
    trainer().validate(model, batches("DCGAN", 2), verbose=False)
    assert not augment.given


@pytest.mark.parametrize(("p", "times"), [(1.0, 1), (0.0, 0)])
def test_micro_batches_are_augmented_piece_by_piece_and_all_scores_count(p, times):
    model = dcgan(augment=ADA(p=p, kimg=1), micro_batches=2)
    noted = []
    note = model.adaptation.note
    model.adaptation.note = lambda margins: (noted.append(len(margins)), note(margins))
    trainer(max_steps=1).fit(model, batches("DCGAN", 1))
    assert noted == [2, 2]
    assert model.adaptation.counts[1:3].tolist() == [4, 4]


# -- p --------------------------------------------------------------------------------------------------------------


class Sure(nn.Module):
    """Takes all pictures for real."""

    def __init__(self, image_shape):
        super().__init__()
        self.bias = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.bias + 0 * images.flatten(1).sum(1)


def test_p_moves_every_few_batches_by_the_pictures_in_them_and_is_logged():
    torch.manual_seed(0)
    networks = partial(DCGANGenerator, **DCGANGenerator.small), Sure
    model = GAN(SHAPE, *networks, latent_size=4, augment=ADA(kimg=1, interval=3), discriminator_learning_rate=1e-9)
    recorder = Recorder()
    trainer(max_steps=8, callbacks=[recorder]).fit(model, batches("DCGAN", 8))
    steps = [0, 0, 12, 12, 12, 24, 24, 24]
    assert [terms["augment_p"] for terms in recorder.terms] == pytest.approx([step / 1000 for step in steps])
    assert {terms["augment_r"] for terms in recorder.terms} == {1.0}


def test_a_schedule_holds_p_and_one_out_of_range_is_refused():
    recorder = Recorder()
    model = dcgan(augment=ADA(target=None, p=Linear(0.0, 0.5, 16, by="images")))
    trainer(max_steps=5, callbacks=[recorder]).fit(model, batches("DCGAN"))
    # What is logged is that of the next batch.
    assert [terms["augment_p"] for terms in recorder.terms] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5])
    with pytest.raises(ValueError, match="after 0 pictures, needs p in"):
        trainer(max_steps=1).fit(dcgan(augment=DiffAugment(p=Linear(2.0, 3.0, 10))), batches("DCGAN"))


def test_going_on_equals_never_having_stopped_to_the_bit_in_the_middle_of_an_interval(tmp_path):
    def make():
        return dcgan(augment=ADA(p=0.3, kimg=1), penalties=[R1()])

    def run(steps, ckpt_path=None):
        model = make()
        t = trainer(max_steps=steps, limit_val_batches=0)
        scenes = Scenes(16, num_train=24, num_val=4, num_test=4, batch_size=4, num_workers=0)
        t.fit(model, datamodule=scenes, ckpt_path=ckpt_path)
        t.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return model

    pl.seed_everything(0, verbose=False)

    straight = run(6)
    middle = run(3)
    assert middle.adaptation.counts[1] == 12
    again = run(6, tmp_path / "3.ckpt")
    assert not differences(straight.state_dict(), again.state_dict())
    assert torch.equal(straight.adaptation.counts, again.adaptation.counts)
    assert straight.adaptation.counts[0] != 300
    loaded = GAN.load_from_checkpoint(tmp_path / "6.ckpt")
    assert torch.equal(loaded.adaptation.counts, straight.adaptation.counts)
    assert loaded.augment == ADA(p=0.3, kimg=1)


def test_a_run_can_go_on_with_and_without(tmp_path):
    t = trainer(max_steps=2)
    t.fit(dcgan(), batches("DCGAN"))
    t.save_checkpoint(tmp_path / "none.ckpt")
    model = dcgan(augment=ADA(p=0.1))
    t = trainer(max_steps=4)
    t.fit(model, batches("DCGAN"), ckpt_path=tmp_path / "none.ckpt")
    t.save_checkpoint(tmp_path / "ada.ckpt")
    assert model.adaptation.p.item() == pytest.approx(0.1, abs=1e-3)
    trainer(max_steps=5).fit(dcgan(), batches("DCGAN"), ckpt_path=tmp_path / "ada.ckpt")


def of_rank(rank):
    torch.manual_seed(rank)
    probability = AdaptiveProbability(ADA(kimg=1, p=0.5))
    history, draws = [], torch.rand(3)
    for batch in range(7):
        probability.note(torch.randn(6) + 1 if rank else torch.randn(6) - (batch > 3) * 3)
        probability.advance(12)
        if batch % 2:
            probability.move()
        history.append(probability.counts.tolist())
    return history, draws


def test_ranks_agree_in_p_with_noise_of_their_own(on_ranks):
    (first, noise), (second, others) = on_ranks(of_rank)
    assert first == second
    assert len({counts[0] for counts in first}) > 2
    assert not torch.equal(noise, others)
    assert {counts[2] for counts in first} == {0, 12}


# -- which scores are of real pictures ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "boundary"),
    [
        (NonSaturating(), 0),
        (Hinge(), 0),
        (LeastSquares(), 0.5),
        (LeastSquares(a=-1, b=1), 0),
        (LabelSmoothing(LeastSquares()), 0.5),
        (AuxiliaryClassifier(Hinge()), 0),
        *[(FDivergence(name), 1.0 if name == "kl" else 0.0) for name in ("kl", "reverse_kl", "pearson", "gan")],
        *[(FDivergence(name), 0.0) for name in ("total_variation", "neyman", "squared_hellinger", "jensen_shannon")],
    ],
)
def test_the_boundary_is_the_best_score_of_a_picture_that_is_as_likely_real_as_fake(loss, boundary):
    assert loss.boundary == boundary
    scores = torch.tensor([[boundary + 0.5, 9.0], [boundary - 0.5, 9.0]])
    plain = scores if isinstance(loss, AuxiliaryClassifier) else scores[:, 0]
    assert loss.margins(plain).tolist() == [0.5, -0.5]
    if hasattr(loss, "real_terms") and not isinstance(loss, Hinge | LabelSmoothing | AuxiliaryClassifier):
        total = [(loss.real_terms(x) + loss.fake_terms(x)).item() for x in torch.tensor([-0.2, 0.0, 0.2]) + boundary]
        assert min(total) == pytest.approx(total[1], abs=1e-6)


@pytest.mark.parametrize("make", [partial(WGAN, SHAPE), partial(dcgan, loss=RelativisticPairing(), penalties=[R1()])])
def test_p_cannot_follow_scores_that_only_compare(make):
    with pytest.raises(ValueError, match=r"p of ADA follows the signs of scores.*target: null"):
        make(augment=ADA())
    make(augment=ADA(target=None, p=0.3))
    make(augment=DiffAugment())
    with pytest.raises(ValueError, match="no boundary"):
        Wasserstein().margins(torch.zeros(1))


def test_points_and_other_channels_are_refused_by_the_model():
    with pytest.raises(ValueError, match=r"GAN: 'blit' of ADA moves the pixels"):
        GAN((2, 1, 1), augment=ADA())
    with pytest.raises(ValueError, match=r"CycleGAN: 'color' of DiffAugment.*\(2, 16, 16\)"):
        CycleGAN((2, 16, 16), augment=DiffAugment())


# -- what the generator learns --------------------------------------------------------------------------------------


def drawn_from(directions, pictures):
    """Points `[N, 2, 1, 1]` as they are, or as pictures that get brighter that way (turned ones of turned points)."""
    if not pictures:
        return directions.view(-1, 2, 1, 1)
    x, y = directions.view(-1, 2, 1, 1, 1).unbind(1)
    ramp = torch.linspace(-2 / 3, 2 / 3, 8)
    return x * ramp + y * ramp.view(8, 1)


class Directions(nn.Sequential):
    """Draws directions, at first around a quarter turn from those of the data."""

    def __init__(self, image_shape, latent_size):
        layers = nn.Linear(latent_size, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, 2)
        super().__init__(*layers)
        self[-1].bias.data = torch.tensor([0.0, 0.5])
        self.pictures = image_shape[-1] > 1

    def forward(self, latents):
        return drawn_from(super().forward(latents), self.pictures)


class Perceptron(nn.Sequential):
    def __init__(self, image_shape):
        layers = nn.Linear(math.prod(image_shape), 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2)
        super().__init__(nn.Flatten(), *layers, nn.Linear(64, 1))


class QuarterTurns(Augmentation):
    """Of points: what "blit" does to pictures."""

    transforms = ("turn",)

    def __init__(self, p):
        self.p = p

    def check(self, owner, image_shape):
        """Knows points."""

    def transformed(self, images, p, pictures):
        chosen = drawn(len(images), 1, p)[:, 0]
        angles = integers(len(images), 0, 3, p) * chosen * (math.pi / 2)
        turned = torch.view_as_complex(images.view(-1, 2)) * torch.polar(torch.ones_like(angles), angles)
        return torch.view_as_real(turned).view_as(images), chosen


def learned_angles(augment, pictures):
    """Angles that a GAN draws whose data are within 0.3 of angle 0, by its generator's law."""
    torch.manual_seed(0)
    shape = (1, 8, 8) if pictures else (2, 1, 1)
    settings = {"learning_rate": 0.005, "discriminator_learning_rate": 0.005, "betas": (0.0, 0.9)}
    settings |= {"latent_size": 2, "latent_distribution": "normal", "penalties": [R1(0.1)]}
    model = GAN(shape, Directions, Perceptron, augment=augment, **settings)
    angles = 0.3 * torch.randn(500, 128, generator=torch.Generator().manual_seed(0))
    data = [{"image": drawn_from(torch.stack([a.cos(), a.sin()], 1), pictures)} for a in angles]
    trainer(max_steps=len(data)).fit(model, DataLoader(data, batch_size=None))
    with torch.no_grad():
        latents = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
        x, y = nn.Sequential.forward(model.generator, latents).unbind(1)
    return torch.atan2(y, x)


@pytest.mark.parametrize("pictures", [False, True], ids=["points", "pictures"])
def test_what_can_be_undone_in_distribution_does_not_leak_and_what_cannot_does(pictures):
    """Quarter turns with p = 0.5 leave 5/8 of the data where they were: fakes are where all of them are. With p = 1
    all four quarters are alike, and fakes stay in the wrong one, in which they began (2006.06676, section 2.2)."""
    augment = partial(ADA, ("blit",), target=None) if pictures else QuarterTurns
    angles = learned_angles(augment(p=0.5), pictures)
    low, middle, high = angles.quantile(torch.tensor([0.159, 0.5, 0.841])).tolist()  # a deviation on each side
    assert middle == pytest.approx(0, abs=0.25)
    assert (high - low) / 2 == pytest.approx(0.3, abs=0.15)
    assert (angles.abs() < math.pi / 4).float().mean() > 0.85  # of the data 0.99, of what is shown 0.62
    leaked = learned_angles(augment(p=1.0), pictures)
    assert (leaked.abs() < math.pi / 4).float().mean() < 0.05
    assert (leaked - math.pi / 2).abs().lt(math.pi / 4).float().mean() > 0.9
