"""Every model under every flag of the trainer: it trains, or says what does instead."""

import itertools
import os
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import lightning.pytorch.strategies.launchers.multiprocessing as launching
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

import lightning_gen.models
from benchmarks.shipped import small, small_model
from lightning_gen import callbacks
from lightning_gen.capabilities import (
    Completes,
    HasCodes,
    HasLogProb,
    Reconstructs,
    Samples,
    ScoresCaptions,
    Translates,
)
from lightning_gen.commands.trainer import Trainer
from lightning_gen.data.base import DrawDataset, ImageDataModule
from lightning_gen.extractors import FeatureDistance, SceneFeatures
from lightning_gen.generative import GenerativeModule
from lightning_gen.layers.ties import ties_samples
from lightning_gen.losses import Categorical, Pixelwise, levels_to_images, penalties
from lightning_gen.models import (
    DCGAN,
    FGAN,
    GAN,
    KDE,
    LSGAN,
    R3GAN,
    SNGAN,
    VAE,
    VQGAN,
    VQVAE,
    VQVAE2,
    WGAN,
    WGANGP,
    Classifier,
    CodePrior,
    CycleGAN,
    DiagonalBiLSTM,
    GatedPixelCNN,
    GumbelVAE,
    LMConv,
    Pix2Pix,
    PixelCNN,
    PixelCNNPP,
    PixelSNAIL,
    ProGAN,
    RowLSTM,
    Scorer,
    StyleGAN,
    TextToImage,
)
from lightning_gen.models.adversarial import AdversarialModule
from lightning_gen.models.autoregressive import AutoregressiveModule
from lightning_gen.networks import (
    MLPDiscriminator,
    MLPGenerator,
    PatchDiscriminator,
    ProGANDiscriminator,
    ResidualDiscriminator,
    UNetGenerator,
)
from lightning_gen.text import ByteTokenizer

LEVELS, CLASSES = 4, 2
COLOUR, GREY = (3, 32, 32), (1, 8, 8)

MIXTURE = {"num_levels": LEVELS, "num_components": 2}

FAMILIES = {
    "GAN": small_model(GAN, COLOUR, latent_size=4),
    "DCGAN": small_model(DCGAN, COLOUR, latent_size=4),
    "LSGAN": small_model(LSGAN, COLOUR, latent_size=4),
    "WGAN": small_model(WGAN, COLOUR, latent_size=4, n_critic=2),
    "WGANGP": small_model(WGANGP, COLOUR, latent_size=4, n_critic=2),
    "SNGAN": small_model(
        SNGAN, COLOUR, discriminator=small(ResidualDiscriminator), latent_size=4, n_critic=2, num_classes=CLASSES
    ),
    "FGAN": small_model(FGAN, COLOUR, latent_size=4),
    "ProGAN": small_model(ProGAN, COLOUR, latent_size=4, num_classes=CLASSES),
    "StyleGAN": small_model(StyleGAN, COLOUR, latent_size=4),
    "R3GAN": small_model(R3GAN, COLOUR, latent_size=4, num_classes=CLASSES),
    "CycleGAN": small_model(CycleGAN, (3, 16, 16), discriminator=small(PatchDiscriminator, layers=1)),
    "Pix2Pix": small_model(Pix2Pix, COLOUR, discriminator=small(PatchDiscriminator)),
    "PixelCNN": small_model(PixelCNN, GREY, num_levels=LEVELS),
    "GatedPixelCNN": small_model(GatedPixelCNN, GREY, num_levels=LEVELS, num_classes=CLASSES),
    "RowLSTM": small_model(RowLSTM, GREY, num_levels=LEVELS),
    "DiagonalBiLSTM": small_model(DiagonalBiLSTM, GREY, num_levels=LEVELS),
    "PixelCNNPP": small_model(PixelCNNPP, GREY, **MIXTURE),
    "PixelSNAIL": small_model(PixelSNAIL, GREY, **MIXTURE),
    "LMConv": small_model(LMConv, GREY, **MIXTURE, num_orders=1),
    "VAE": small_model(VAE, GREY, likelihood=Pixelwise(Categorical(LEVELS)), latent_size=2, importance_samples=2),
    "GumbelVAE": small_model(GumbelVAE, GREY, num_codes=4, code_size=3, features=8),
    "VQGAN": small_model(
        VQGAN,
        (3, 16, 16),
        discriminator=small(PatchDiscriminator, norm="batch"),
        perceptual=FeatureDistance(partial(SceneFeatures, num_scenes=64, epochs=1)),
        channels=4,
        discriminator_start=0,
    ),
    "VQVAE": small_model(VQVAE, GREY),
    "VQVAE2": small_model(VQVAE2, GREY),
    "CodePrior": small_model(
        CodePrior, GREY, first_stage=small_model(VQVAE, GREY, data_variance=1.0)(), num_classes=CLASSES
    ),
    "Scorer": small_model(Scorer, GREY, tokenizer=ByteTokenizer(length=8)),
    "TextToImage": small_model(
        TextToImage, GREY, first_stage=small_model(VQVAE, GREY, data_variance=1.0)(), tokenizer=ByteTokenizer(length=8)
    ),
    "KDE": partial(KDE, GREY, num_levels=LEVELS),
    "Classifier": partial(Classifier, GREY, num_classes=CLASSES, keep=False),
}


def test_no_model_is_left_out():
    assert {getattr(lightning_gen.models, name) for name in lightning_gen.models.__all__} == {
        family.func for family in FAMILIES.values()
    }


@dataclass(frozen=True, eq=False)
class Pictures(DrawDataset):
    """Pictures of levels with labels, which are pairs too."""

    shape: tuple[int, int, int]
    number: int

    def __len__(self):
        return self.number

    def __getitem__(self, draw):
        random = torch.Generator().manual_seed(draw.index)
        a, b = (levels_to_images(torch.randint(LEVELS, self.shape, generator=random), LEVELS) for _ in "AB")
        label = torch.tensor(draw.index % CLASSES)
        others = {"A": a, "B": b, "paired": torch.ones(()), "index": torch.tensor(draw.index)}
        return {"image": a, "label": label, "caption": "two" if draw.index % 2 else "one", **others}


class Data(ImageDataModule):
    """Four batches for training, two pictures each unless told otherwise, and two for validation and test."""

    num_classes = CLASSES

    def __init__(self, image_shape, batch_size=2):
        super().__init__(batch_size=batch_size, num_workers=0)
        self.shape = image_shape

    image_shape = property(lambda self: self.shape)

    def train_set(self):
        return Pictures(self.shape, 4 * self.batch_size * self.trainer.world_size)

    def val_set(self):
        return Pictures(self.shape, 4)

    test_set = val_set


class Witness(pl.Callback):
    """Which pictures each batch had, and how many batches of validation there were."""

    def __init__(self):
        self.seen, self.validated = [], 0

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.seen.append(batch["index"].tolist())

    def on_validation_batch_start(self, *_):
        self.validated += 1


def fit(family, model=None, batch_size=2, **flags):
    """Three steps, unless the flags say otherwise; the trainer, the model and the witness."""
    if model is None:
        torch.manual_seed(0)
        model = FAMILIES[family]()
    witness = Witness()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    if flags.get("barebones"):
        quiet = {}
    defaults = {"max_steps": 3, "accelerator": "cpu", "enable_checkpointing": False, "callbacks": [witness]}
    trainer = Trainer(**{**defaults, **quiet, **flags})
    trainer.fit(model, datamodule=Data(model.image_shape, batch_size))
    return trainer, model, witness


def moved(family, model):
    """The networks that have learnt something."""
    torch.manual_seed(0)
    before = FAMILIES[family]().state_dict()
    return {
        name.partition(".")[0]
        for name, parameter in model.named_parameters()
        if not torch.equal(before[name], parameter.to(before[name]))
    }


def batches_for(model, steps):
    """Training batches that so many steps take."""
    return steps * getattr(model, "n_critic", 1)


# -- what each flag must do -----------------------------------------------------------------------------------------


def ddp(family):
    """One process of DDP computes, to the bit, what a process without does, and has nothing to warn of."""
    told, weights = [], []
    os.environ.pop("PL_GLOBAL_SEED", None)  # of an earlier test's `seed_everything`, which DDP would follow
    for flags in ({}, {"strategy": "ddp", "devices": 1}):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer, model, _ = fit(family, precision="bf16-mixed", **flags)
        told.append({str(warning.message) for warning in caught})
        weights.append(model.state_dict())
        assert trainer.global_step == 3
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert told[1] <= told[0]


def overfit(family, batches):
    """The first two batches again and again."""
    _, model, witness = fit(family, overfit_batches=batches)
    number = 2 if family == "KDE" else batches_for(model, 3)  # one pass is all that KDE makes
    assert witness.seen == ([[0, 1], [2, 3]] * 3)[:number]
    assert witness.validated


def limit(family, training, validation):
    """Two batches and one."""
    limits = {"limit_train_batches": training, "limit_val_batches": validation}
    trainer, model, witness = fit(family, max_epochs=1, max_steps=-1, **limits)
    assert (len(witness.seen), witness.validated) == (2, 1)
    assert trainer.global_step == 2 / batches_for(model, 1)


def fast_dev_run(family):
    """One batch of each kind, which updates all there is."""
    trainer, model, witness = fit(family, fast_dev_run=True)
    assert (trainer.global_step, len(witness.seen), witness.validated) == (1, 1, 1)
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert moved(family, model) == {name.partition(".")[0] for name in learning}


def barebones(family):
    """Nothing but training and validation."""
    trainer, *_ = fit(family, barebones=True)
    assert trainer.global_step == 3


def refused(family, setting, instead, **flags):
    """Whether a model updates by hand and says, before Lightning refuses a setting, what there is instead of it."""
    by_hand = not FAMILIES[family]().automatic_optimization
    if by_hand:
        words = "A KDE has no gradients" if family == "KDE" else instead
        with pytest.raises(ValueError, match=f"^The trainer was given {setting}=.*{words}"):
            fit(family, **flags)
    return by_hand


class Norms(pl.Callback):
    """Of the gradients that an optimizer has seen."""

    def __init__(self):
        self.clipped = []

    def on_before_zero_grad(self, trainer, module, optimizer):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.clipped += [torch.cat([gradient.flatten() for gradient in gradients]).norm().item()] if gradients else []


def clipping(family):
    if not refused(family, "gradient_clip_val", r"set model\.gradient_clip_norm", gradient_clip_val=0.5):
        float16 = [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))]
        for plugins in ([], float16):
            norms = Norms()
            trainer, *_ = fit(family, gradient_clip_val=1e-3, plugins=plugins, callbacks=[norms])
            assert trainer.global_step == 3
            assert norms.clipped == pytest.approx([1e-3] * 2, rel=1e-2)


def accumulation(family):
    """Where Lightning does it, two batches make a step."""
    if not refused(family, "accumulate_grad_batches", r"micro_batches to 2", accumulate_grad_batches=2):
        trainer, model, witness = fit(family, accumulate_grad_batches=2)
        assert (trainer.global_step, len(witness.seen), model.images_seen) == (3, 6, 12)


# Networks in which pictures do not influence each other, and which draw nothing.
PLAIN = {"generator": small(MLPGenerator)}
SURE = {"discriminator": small(MLPDiscriminator, dropout=0, input_dropout=0)}
UNTIED = {
    "GAN": SURE,
    "FGAN": SURE,
    "WGAN": PLAIN | SURE,
    "WGANGP": PLAIN,
    "SNGAN": PLAIN,
    "ProGAN": {"discriminator": small(ProGANDiscriminator, group_size=1)},
    "R3GAN": {},
    "VQGAN": {"discriminator": small(PatchDiscriminator), "adaptive": False},
    "CycleGAN": {},
    "Pix2Pix": {
        "generator": small(UNetGenerator, norm="instance", dropout=0),
        "discriminator": small(PatchDiscriminator),
    },
}


def rows_in_turn(draw):
    """Gives so many rows of one draw, however they are asked for."""
    table, given = draw(), itertools.count()
    return lambda number: torch.stack([table[next(given)] for _ in range(number)])


TYPES = {"64-true": torch.float64, "bf16-true": torch.bfloat16, "16-true": torch.float16}


def precision(family, kind):
    """Training, pictures, validation, test and prediction; then all that the model can do, from its checkpoint too."""
    if kind == "16-true" or (family == "KDE" and kind == "bf16-true"):
        reason = f"precision {kind} would round" if family == "KDE" else "in float16 the square of a gradient"
        with pytest.raises(ValueError, match=reason):
            fit(family, precision=kind)
        if family != "KDE":  # all others can be used, though not trained
            does_what_it_can(FAMILIES[family]().to(TYPES[kind]))
        return
    model = FAMILIES[family]()
    drawing = callbacks.Pictures(every_n_steps=2, num_images=2)
    # By its name, Lightning takes bfloat16 in place of float16 on a CPU, and scales no gradients.
    chosen = {"plugins": MixedPrecision(kind, "cpu")} if kind == "16-mixed" else {"precision": kind}
    trainer, model, _ = fit(family, **chosen, max_steps=2, callbacks=[drawing])
    assert trainer.global_step == 2
    assert {p.dtype for p in model.parameters()} == {TYPES.get(kind, torch.float32)} or family == "KDE"
    assert list(Path().rglob("step_00000002.png")) or not isinstance(model, Samples | Translates)
    trainer.test(model, datamodule=trainer.datamodule, verbose=False)
    trainer.predict(model, datamodule=trainer.datamodule)
    does_what_it_can(model)
    trainer.save_checkpoint("a.ckpt")
    loaded = GenerativeModule.load_from_checkpoint("a.ckpt")
    does_what_it_can(loaded)
    does_what_it_can(loaded.to(TYPES.get(kind, torch.float32)))


def does_what_it_can(model):
    """Every capability gives finite float32, or better, whatever the weights are."""
    random = torch.Generator().manual_seed(0)
    images = levels_to_images(torch.randint(LEVELS, (2, *model.image_shape), generator=random), LEVELS)
    known = torch.zeros(model.image_shape[1:], dtype=torch.bool)
    known[:4] = True
    results = []
    if isinstance(model, Samples):
        results.append(model.sample(2, generator=random))
    if isinstance(model, Translates):
        results += [model.translate(images, direction) for direction in model.directions]
    if isinstance(model, Completes):
        results.append(model.complete(images, known, generator=random))
    if isinstance(model, Reconstructs):
        results.append(model.reconstruct(images))
    if isinstance(model, HasCodes):
        results.append(model.decode(model.codes(images)))
    if isinstance(model, ScoresCaptions):
        results.append(model.score(images, ["one", "two"]))
    assert all(result.dtype == torch.float32 for result in results)
    if isinstance(model, HasLogProb):
        results.append(model.log_prob(images))
    assert results or isinstance(model, Classifier)
    assert all(result.isfinite().all() for result in results)
    assert all(result.dtype in (torch.float32, torch.float64) for result in results)


FLAGS = {
    "ddp": ddp,
    "overfit_batches": partial(overfit, batches=2),
    "overfit_batches-share": partial(overfit, batches=0.5),
    "limit_batches": partial(limit, training=2, validation=1),
    "limit_batches-share": partial(limit, training=0.5, validation=0.5),
    "fast_dev_run": fast_dev_run,
    "barebones": barebones,
    "gradient_clip_val": clipping,
    "accumulate_grad_batches": accumulation,
    **{kind: partial(precision, kind=kind) for kind in ("bf16-mixed", "16-mixed", *TYPES)},
}


@pytest.mark.parametrize("flag", FLAGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_model_takes_every_flag_or_says_what_to_do_instead(family, flag, fresh_process, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if flag == "ddp":  # which leaves a process group behind
        fresh_process(ddp, family)
    else:
        FLAGS[flag](family)


@pytest.mark.parametrize(
    "family", [name for name, family in FAMILIES.items() if issubclass(family.func, AdversarialModule)]
)
def test_a_batch_in_pieces_teaches_what_it_does_as_a_whole(family, monkeypatch):
    """Batches of five, cut into three and two, teach what whole ones do; no network sees more than a piece at once."""
    descent = partial(torch.optim.SGD, lr=1e-4)
    weights, sizes = [], []
    for pieces in (1, 2):
        random, sizes = torch.Generator().manual_seed(1), []
        torch.manual_seed(0)
        settings = {"generator_optimizer": descent, "discriminator_optimizer": descent, "micro_batches": pieces}
        model = FAMILIES[family](**settings, **UNTIED.get(family, {}))
        if isinstance(model, GAN):
            model.latents = rows_in_turn(lambda r=random: torch.randn(100, 4, generator=r))
            model.random_labels = rows_in_turn(lambda r=random: torch.randint(CLASSES, (100,), generator=r))
            if model.num_classes is None:
                model.random_labels = lambda number: None
        ratios = rows_in_turn(lambda r=random: torch.rand(100, 1, 1, 1, generator=r).double())
        monkeypatch.setattr(penalties, "_one_a_sample", lambda images, give=ratios: give(len(images)))
        for network in model.children():
            network.register_forward_pre_hook(lambda _, inputs, s=sizes: s.append(len(inputs[0])))
        trainer, model, _ = fit(family, model, batch_size=5, precision="64-true", limit_val_batches=0)
        assert trainer.global_step == 3
        assert model.images_seen == 5 * batches_for(model, 3)
        weights.append({name: p.detach().clone() for name, p in model.named_parameters()})
    joined = 2 if any(size > 3 for size in sizes) else 1  # real and generated in one call, or two domains
    assert max(sizes) == 3 * joined
    dropout = any(isinstance(module, nn.modules.dropout._DropoutNd) for module in model.modules())
    assert (dropout or ties_samples(model)) == (family not in UNTIED)
    if family not in UNTIED:
        return  # the mathematics itself depends on how a batch is cut
    torch.manual_seed(0)
    for name, start in FAMILIES[family](**UNTIED[family]).named_parameters():
        whole, cut = (each[name] - start for each in weights)
        torch.testing.assert_close(cut, whole, rtol=1e-6, atol=1e-9 + 1e-6 * whole.abs().max().item())


def clipped_steps(devices, path):
    """Two steps of descent on batches of four pictures, with every gradient clipped."""
    descent = partial(torch.optim.SGD, lr=1.0)
    torch.manual_seed(0)
    model = FAMILIES["CycleGAN"](
        generator_optimizer=descent, discriminator_optimizer=descent, gradient_clip_norm=0.01, micro_batches=devices
    )
    launching._check_bad_cuda_fork = lambda: None  # nothing here uses CUDA
    strategy = {"devices": devices, "strategy": "ddp_fork" if devices > 1 else "auto"}
    settings = {"max_steps": 2, "precision": "64-true", "limit_val_batches": 0, "callbacks": [Keep(path)]}
    fit("CycleGAN", model, batch_size=4 // devices, **settings, **strategy)


class Keep(pl.Callback):
    """Writes the weights when training ends."""

    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, module):
        if trainer.is_global_zero:
            torch.save(dict(module.named_parameters()), self.path)


def test_two_processes_in_pieces_clip_the_gradient_of_their_joined_batch(tmp_path, fresh_process):
    weights = []
    for devices in (1, 2):
        fresh_process(clipped_steps, devices, tmp_path / f"{devices}.pt")
        weights.append(torch.load(tmp_path / f"{devices}.pt", weights_only=True))
    for name, whole in weights[0].items():
        torch.testing.assert_close(weights[1][name], whole, rtol=1e-9, atol=1e-9)


# -- as modules like any other --------------------------------------------------------------------------------------


def called(family):
    """A model in evaluation mode, what it is called with, and what that must give."""
    torch.manual_seed(0)
    model = FAMILIES[family](**({"noise_at_test": False} if family == "Pix2Pix" else {})).eval()
    labels = torch.tensor([1, 0])
    images = levels_to_images(torch.randint(LEVELS, (2, *model.image_shape)), LEVELS)
    if isinstance(model, GAN):
        latents = model.draw_latents(2)
        given = (latents, labels) if model.num_classes else (latents,)
        return model, given, {}, model.generate(*given)
    if isinstance(model, Translates):
        return model, (images,), {}, model.translate(images)
    if isinstance(model, Classifier):
        return model, (images,), {}, model.network(images)[1]
    if isinstance(model, Reconstructs):
        return model, (images,), {}, model.reconstruct(images)
    if isinstance(model, KDE):
        model.add(images)
        return model, (images,), {}, model.log_prob(images)
    if model.text is not None:
        tokens = model.text(["one", "two"])
        if isinstance(model, ScoresCaptions):
            return model, (images, tokens), {}, model.score(images, ["one", "two"])
        return model, (images,), {"captions": tokens}, model.log_prob(images, captions=tokens)
    context = {"labels": labels} if model.num_classes else {"order": 0} if isinstance(model, LMConv) else {}
    return model, (images,), context, model.log_prob(images, context.get("labels"))


def meaning(model, images, result):
    """What a model's own method makes of what a call of it gives."""
    if isinstance(model, AutoregressiveModule):
        return model.log_prob_of_levels(result, model.to_levels(images))
    if isinstance(model, ScoresCaptions):
        return (result[0] * result[1]).sum(1)
    return result[1] if isinstance(model, Classifier) else result


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_gives_what_the_model_is_for(family):
    model, given, context, expected = called(family)
    torch.testing.assert_close(meaning(model, given[0], model(*given, **context)), expected)


EXPORTED = [
    "GAN",
    "SNGAN",
    "ProGAN",
    "StyleGAN",
    "CycleGAN",
    "Pix2Pix",
    "VAE",
    "GumbelVAE",
    "VQVAE",
    "VQVAE2",
    "GatedPixelCNN",
    "PixelSNAIL",
    "Classifier",
]


@pytest.mark.parametrize("family", EXPORTED)
def test_a_call_can_be_exported(family):
    model, given, context, expected = called(family)
    exported = torch.export.export(model, given, context).module()
    torch.testing.assert_close(meaning(model, given[0], exported(*given, **context)), expected, rtol=1e-4, atol=1e-5)
