"""Priors of codes, on autoencoders so small that all of their pictures can be written down."""

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_gen.capabilities import Completes, HasLogProb, Samples
from lightning_gen.checkpoints import digest_weights
from lightning_gen.data import Digits
from lightning_gen.evaluation.likelihood import likelihood
from lightning_gen.generative import GenerativeModule
from lightning_gen.layers import ResidualQuantizer, VectorQuantizer
from lightning_gen.models import VQVAE2
from lightning_gen.models.autoencoder import Encoded, TrainedAutoencoder
from lightning_gen.models.code_prior import CodePrior
from lightning_gen.networks import (
    GatedPixelCNNNetwork,
    GPTNetwork,
    PixelCNNNetwork,
    PixelSNAILNetwork,
    VQVAE2Decoder,
    VQVAE2Encoder,
)
from tests.shared import differences, save, trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

COLOURS = torch.tensor([[1.0, -1.0, -1.0], [-1.0, 1.0, -1.0], [0.0, 0.5, 1.0]])


class Mosaic(GenerativeModule):
    """Each code is a colour of 2 x 2 pixels; in between, the nearest."""

    num_codes = 3

    def __init__(self, image_shape: tuple[int, int, int] = (3, 4, 4)) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.colours = torch.nn.Parameter(COLOURS.clone())
        self.code_shape = (image_shape[1] // 2, image_shape[2] // 2)
        self.saw_autocast = False

    def codes(self, images: Tensor) -> Tensor:
        self.saw_autocast |= torch.is_autocast_enabled("cpu")
        distances = F.avg_pool2d(images, 2).unsqueeze(1) - self.colours[:, :, None, None]
        return distances.square().sum(2).argmin(1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        self.saw_autocast |= torch.is_autocast_enabled("cpu")
        return self.colours[codes].movedim(3, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.decode(self.codes(images))


class TwoMaps(GenerativeModule):
    """Grey pictures of 2 x 4: each level is a digit of a map of 1 x 2, and then one of a map of 2 x 2."""

    num_codes = 3
    code_shape = [(1, 2), (2, 2)]  # noqa: RUF012  # a list, as of all models with several maps

    def __init__(self, image_shape: tuple[int, int, int] = (1, 2, 4)) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()

    def codes(self, images: Tensor) -> list[Tensor]:
        levels = ((images[:, 0] + 1) * 4).round().long()[:, :, ::2]
        return [levels[:, :1] // 3, levels % 3]

    def decode(self, codes: list[Tensor]) -> Tensor:
        levels = 3 * codes[0] + codes[1]
        return (levels.float() / 4 - 1).unsqueeze(1).repeat_interleave(2, 3)

    def reconstruct(self, images: Tensor) -> Tensor:
        return self.decode(self.codes(images))


class Depths(TrainedAutoencoder):
    """An `Autoencoder` with a residual quantizer of two depths, of which a picture is whatever it is."""

    def __init__(self, image_shape: tuple[int, int, int] = (1, 2, 4)) -> None:
        super().__init__(image_shape)
        self.save_hyperparameters()
        self.encoder = torch.nn.Conv2d(1, 2, 2, stride=2)
        self.quantizer = ResidualQuantizer([VectorQuantizer(2, num_codes=3) for _ in range(2)])
        self.decoder = torch.nn.ConvTranspose2d(2, 1, 2, stride=2)
        self.declare_codes(3, (1, 2), (1, 2))

    def terms(self, images: Tensor, encoded: Encoded) -> dict[str, Tensor]:
        return encoded.losses


NETWORKS = {
    "GPT": partial(GPTNetwork, width=16, layers=1, heads=2),
    "Gated": partial(GatedPixelCNNNetwork, filters=8, layers=1, head_filters=16, kernel_size=3, embedding=4),
    "SNAIL": partial(PixelSNAILNetwork, filters=8, num_blocks=1, num_resnets=1, dropout=0.0, embedding=4),
}
GPT, GATED = NETWORKS["GPT"], NETWORKS["Gated"]


def every(shape, number=3):
    """All maps of codes of a shape."""
    size = math.prod(shape)
    return torch.tensor(list(itertools.product(range(number), repeat=size))).view(-1, *shape)


MAPS = {
    "one map": (Mosaic, [every((1, 2, 2))]),
    "two maps": (TwoMaps, [every((1, 1, 2)).repeat_interleave(81, 0), every((1, 2, 2)).repeat(9, 1, 1, 1)]),
    "two depths": (Depths, [every((2, 1, 2))]),
}


def prior(kind=Mosaic, network="GPT", moved=0.3, **settings):
    """A small prior, its weights away from where training starts them."""
    torch.manual_seed(0)
    first = kind()
    model = CodePrior(first.image_shape, first, NETWORKS[network], **settings).eval()
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(moved * torch.randn_like(parameter))
    return model


def grey_mosaic():
    first = Mosaic((1, 8, 8))
    first.colours.data = COLOURS[:, :1].clone()
    return first


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# Probabilities


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", MAPS)
def test_the_probabilities_of_all_codes_sum_to_one_and_are_those_of_samples(kind, network):
    first, maps = MAPS[kind]
    if (kind, network) == ("two maps", "SNAIL"):
        with pytest.raises(ValueError, match="PixelSNAILNetwork takes no condition_channels"):
            prior(first, network)
        network, finer = "SNAIL", GATED
    else:
        finer = None
    model, number = prior(first, network, finer_network=finer), 20_000
    with torch.no_grad():
        p = model.log_prob_of_levels(model.network(maps), maps).double().exp()
        if first is not Depths:  # whose pictures have other codes than they were made of
            torch.testing.assert_close(model.log_prob(model.to_images(maps)).double().exp(), p)
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    assert p.std() > 1e-4
    drawn = model.draw_levels(number, {}, seeded(), temperature=1.0, method="cached")
    digits = torch.cat([each.flatten(1) for each in drawn], dim=1)
    places = (digits * 3 ** torch.arange(digits.shape[1]).flip(0)).sum(1)
    shares = torch.bincount(places, minlength=len(p)).double() / number
    assert ((shares - p).abs() < 5 * (p * (1 - p) / number).sqrt() + 2e-4).all()


@pytest.mark.parametrize("network", ["GPT", "Gated"])
@pytest.mark.parametrize("kind", MAPS)
def test_cached_and_naive_draw_the_same_pictures(kind, network):
    model = prior(MAPS[kind][0], network, num_classes=3)
    settings = {"top_k": 2, "temperature": 1.5, "guidance": 2.0 if network == "GPT" else 1.0}
    cached, naive = (model.sample(50, generator=seeded(), method=method, **settings) for method in ("cached", "naive"))
    assert torch.equal(cached, naive)
    assert cached.shape == (50, *model.image_shape)
    assert cached.dtype == torch.float32
    assert not cached.requires_grad
    plain = model.sample(50, generator=seeded())
    assert not torch.equal(cached, plain)
    assert torch.equal(model.sample(50, generator=seeded(), top_k=3, top_p=1.0, guidance=1.0), plain)


def test_a_finer_map_depends_on_the_coarser_alone():
    """Its condition is at the place of the code that it predicts, and no gradient of it reaches the coarser network."""
    model, maps = prior(TwoMaps), [each[:1] for each in MAPS["two maps"][1]]
    other = [maps[0].clone(), maps[1]]
    other[0][..., 1] = 2
    before, after = (model.network(each)[1] for each in (maps, other))
    same = (before == after).all(dim=1).squeeze()
    assert same[0, 0]
    assert not same[0, 1]
    coarse, fine = (model.log_probs(model.network(maps), maps)[number].sum() for number in (0, 1))
    levels, coarser = model.network.levels, model.network.coarser
    of_coarse = [*levels[0].parameters()]
    of_fine = [*levels[1].parameters(), *coarser.parameters()]
    assert not any(g is not None for g in torch.autograd.grad(fine, of_coarse, retain_graph=True, allow_unused=True))
    assert not any(g is not None for g in torch.autograd.grad(coarse, of_fine, allow_unused=True))
    assert len(coarser[0]) == 0
    assert len(coarser[1]) == 1


# Training


def pairs():
    """Codes of two maps of which the finer ones are the coarser plus one, nine times of ten, and their pictures."""
    maps = MAPS["two maps"][1]
    follows = maps[1].squeeze(1) == (maps[0].squeeze(1) + 1) % 3
    p = torch.where(follows, 0.9, 0.05).double().flatten(1).prod(1) / 9
    assert p.sum().item() == pytest.approx(1)
    rows = torch.multinomial(p, 4000, replacement=True, generator=seeded())
    return p, TwoMaps().decode([each[rows].squeeze(1) for each in maps])


def test_it_learns_the_codes_and_calls_its_figure_so():
    p, images = pairs()
    torch.manual_seed(0)
    first = TwoMaps()
    model = CodePrior(first.image_shape, first, GPT, coarse_embedding=8, learning_rate=1e-2)
    assert isinstance(model, Samples)
    assert isinstance(model, Completes)
    assert isinstance(model, HasLogProb)
    loop = trainer(max_steps=150)
    loop.fit(model, DataLoader(images, 100), DataLoader(images[:500], 100))
    assert {name for name in loop.callback_metrics if name.startswith("val/")} == {"val/nll-codes"}
    assert {"train/nll-codes", "train/nll-codes_0", "train/nll-codes_1"} <= loop.callback_metrics.keys()
    whole, *parts = (float(loop.callback_metrics[f"train/nll-codes{which}"]) for which in ("", "_0", "_1"))
    assert whole == pytest.approx(sum(parts), rel=1e-5)
    assert model.images_seen == 150 * 100
    with torch.no_grad():
        log_prob = model.log_prob(model.to_images(MAPS["two maps"][1])).double()
    entropy = -(p * p.log()).sum().item()
    assert entropy <= -(p * log_prob).sum().item() < entropy + 0.1  # all codes as likely are 2.8 above it
    maps = model.first_stage.codes(model.sample(2000, generator=seeded()))
    follows = (maps[1] == (maps[0] + 1) % 3).float().mean().item()
    assert follows == pytest.approx(0.9, abs=0.03)


def test_the_loss_is_nats_a_code_of_each_map(monkeypatch):
    model, (_, images) = prior(TwoMaps).train(), pairs()
    monkeypatch.setattr(model, "log", lambda *_, **__: None)
    monkeypatch.setattr(model, "log_dict", lambda *_, **__: None)
    monkeypatch.setattr(model, "watch", lambda losses: None)
    model._trainer = type("Trainer", (), {"world_size": 1, "training": True})()
    for level in model.network.levels:
        level.eval()
    loss = model.training_step(images[:7], 0)
    maps = model.to_levels(images[:7])
    expected = 0.0
    for parameters, codes in zip(model.network(maps), maps, strict=True):
        expected += F.cross_entropy(parameters, codes).item()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_codes_may_be_as_many_as_pixels_and_are_made_in_the_step_alone():
    model = prior(Mosaic)
    model.level_shape = model.image_shape
    batch = {"codes": [torch.zeros(2, 2, 2, dtype=torch.int64)]}
    assert model.on_before_batch_transfer(batch, 0) is batch
    images = {"image": torch.full((2, 3, 4, 4), math.nan)}  # which are looked at when it trains
    assert model.on_before_batch_transfer(images, 0) is images


def test_weights_of_one_number_a_feature_do_not_decay():
    optimizer = prior().configure_optimizers()["optimizer"]
    assert isinstance(optimizer, torch.optim.AdamW)
    matrices, vectors = optimizer.param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.05, 0.0)
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}
    assert matrices["betas"] == (0.9, 0.95)
    assert matrices["lr"] == 1e-4
    assert not any(p.requires_grad for p in prior().first_stage.parameters())


def test_the_first_stage_stays_and_works_in_its_own_precision():
    model = prior()
    images = model.sample(16, generator=seeded())
    trainer(max_steps=2, precision="bf16-mixed").fit(model.train(), DataLoader(images, 8), DataLoader(images, 8))
    with torch.autocast("cpu", torch.bfloat16):
        model.sample(2)
        model.log_prob(images)
    assert not model.first_stage.saw_autocast
    assert torch.equal(model.first_stage.colours, COLOURS)
    assert not model.first_stage.training


def test_figures_of_test_pictures_are_of_codes(tmp_path):
    """Whatever levels and binarization these have; in bits per dim of pixels they cannot be."""
    model = CodePrior((1, 8, 8), grey_mosaic(), GPT)
    figures = likelihood(model, Digits(num_workers=0, binarization="static"), 32, 16, 0)
    assert figures.keys() == {"nll-codes", "nll_stderr-codes"}
    assert figures["nll-codes"]["value"] == pytest.approx(16 * math.log(3), rel=1e-5)  # before training


# Completion


def test_known_pixels_stay_and_codes_that_touch_the_hole_are_drawn():
    model = prior(Mosaic)
    images = model.sample(6, generator=seeded()) * 0.9  # near the colours, and of no level
    known = torch.ones(4, 4, dtype=torch.bool)
    known[3, 1] = False  # one pixel, but its code stands for four
    garbage = images.masked_fill(~known, math.nan)
    filled = model.complete(garbage, known, generator=seeded())
    assert torch.equal(filled[..., known], images[..., known])
    codes = model.first_stage.codes(images)
    # What is drawn at the place comes from the codes before it alone, not from the last.
    parameters = model.network([codes.unsqueeze(1)])[0][:, :, 0, 1, 0].softmax(1)
    number = 4000
    one = images[:1].expand(number, -1, -1, -1)
    drawn = model.complete(one, known, generator=seeded(1))[:, :, 3, 1]
    shares = torch.stack([(drawn == colour).all(1).double().mean() for colour in COLOURS])
    assert shares.sum() == 1
    sigma = (parameters[0] * (1 - parameters[0]) / number).sqrt()
    assert ((shares - parameters[0]).abs() < 5 * sigma).all()


@pytest.mark.parametrize("kind", MAPS)
def test_masks_of_their_own(kind):
    model = prior(MAPS[kind][0])
    images = torch.rand(3, *model.image_shape, generator=seeded()) * 2 - 1
    known = torch.ones(3, *model.image_shape[1:], dtype=torch.bool)
    known[0, 0], known[1, :, 1:], known[2, -1, -1] = False, False, False
    drawn = [model.complete(images, known, generator=seeded(), method=method) for method in ("cached", "naive")]
    assert torch.equal(*drawn)
    kept = known.unsqueeze(1).expand_as(images)
    assert torch.equal(drawn[0][kept], images[kept])
    assert drawn[0].isfinite().all()
    with pytest.raises(ValueError, match="mask of picture 1 hides nothing"):
        model.complete(images, known | (torch.arange(3) == 1).view(3, 1, 1))


# Checkpoints


def _drawn_elsewhere(path, folder):
    import os

    os.chdir(folder)
    again = GenerativeModule.load_from_checkpoint(path, trust=("tests",))
    return again.sample(8, generator=seeded(), temperature=0.9).tolist(), digest_weights(again.first_stage.state_dict())


def small_vqvae2():
    small = {
        name: partial(each, **each.small) for name, each in (("encoder", VQVAE2Encoder), ("decoder", VQVAE2Decoder))
    }
    return VQVAE2((1, 16, 16), **small, quantizer=partial(VectorQuantizer, num_codes=3), channels=4)


@pytest.mark.parametrize("kind", [Mosaic, TwoMaps, Depths, small_vqvae2])
def test_its_checkpoint_is_enough(kind, fresh_process, tmp_path):
    """In another process and folder, of a first stage that came from a file which is no more."""
    torch.manual_seed(0)
    first = kind()
    inner, outer, elsewhere = tmp_path / "first.ckpt", tmp_path / "prior.ckpt", tmp_path / "elsewhere"
    elsewhere.mkdir()
    save(first, inner)
    first = GenerativeModule.load_from_checkpoint(inner, trust=("tests",))
    model = CodePrior(first.image_shape, first, GPT, finer_network=GATED, num_classes=2)
    images = torch.rand(8, *model.image_shape, generator=seeded()) * 2 - 1
    loop = trainer(max_steps=2)
    loop.fit(model, DataLoader([{"image": image, "label": torch.tensor(1)} for image in images], 4))
    loop.save_checkpoint(outer)
    inner.unlink()
    drawn, digest = fresh_process(_drawn_elsewhere, outer, elsewhere)
    assert torch.equal(torch.tensor(drawn), model.sample(8, generator=seeded(), temperature=0.9))
    assert digest == digest_weights(first.state_dict())


def test_going_on_equals_never_having_stopped(tmp_path):
    """With dropout of features and of labels, to the bit."""

    def train(steps, path=None):
        torch.manual_seed(3)
        model = CodePrior((1, 8, 8), grey_mosaic(), GPT, num_classes=10)
        loop = trainer(max_steps=steps, gradient_clip_val=1.0)
        loop.fit(model, datamodule=Digits(batch_size=4, num_workers=0), ckpt_path=path, weights_only=True)
        loop.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return torch.load(tmp_path / f"{steps}.ckpt", weights_only=True)

    whole = train(4)
    train(2)
    again = train(4, tmp_path / "2.ckpt")
    assert not differences(whole["state_dict"], again["state_dict"])
    assert not differences(whole["optimizer_states"], again["optimizer_states"])
    assert whole["images_seen"] == again["images_seen"] == 16


# Wrong input


def test_what_does_not_fit_is_said():
    first = Mosaic()
    for make, words in (
        (
            lambda: CodePrior((3, 8, 8), first, GPT),
            r"for pictures of the shape that its first stage takes, \(3, 4, 4\)",
        ),
        (lambda: CodePrior((3, 4, 4), first, GPT, condition_channels=2), "takes no condition_channels"),
        (lambda: CodePrior((3, 4, 4), first, partial(GATED, embedding=None)), "GatedPixelCNNNetwork takes them as num"),
        (lambda: CodePrior((3, 4, 4), first, partial(PixelCNNNetwork, embedding=4), num_classes=2), "no num_classes"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
    model = prior(num_classes=2)
    for settings, words in (
        ({"top_k": 4}, "1 to 3, or None"),
        ({"top_p": 0}, "above 0 and at most 1"),
        ({"top_p": 1.5}, "above 0 and at most 1"),
        ({"labels": 2}, "0 .. 1"),
        ({"labels": torch.tensor([0, -1])}, "0 .. 1"),
        ({"guidance": -2.0}, "guidance must be"),
    ):
        with pytest.raises(ValueError, match=words):
            model.sample(2, **settings)
    with pytest.raises(ValueError, match=r"0 \.\. 1 for num_classes=2; got 1 \.\. 2"):
        model.images_and_context({"codes": [torch.zeros(2, 2, 2).long()], "label": torch.tensor([1, 2])})
    for other in (prior(), prior(network="Gated", num_classes=2)):
        with pytest.raises(ValueError, match=r"guidance=2 needs .* trained without dropping labels"):
            other.sample(2, guidance=2.0)
