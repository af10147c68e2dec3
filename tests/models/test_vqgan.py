"""VQGAN against the published algorithm, written again in plain PyTorch; and what the players keep from each other."""

import functools
from copy import deepcopy
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_gen.capabilities import HasCodes, Reconstructs
from lightning_gen.layers.quantize import (
    FiniteScalarQuantizer,
    GumbelQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
)
from lightning_gen.losses import R1, LPIPSDistance, PerceptualLoss, RelativisticPairing
from lightning_gen.models import VQGAN
from lightning_gen.networks import GaussianLatent, PatchDiscriminator, VQGANDecoder, VQGANEncoder
from tests.shared import Recorder, save, trainer

SHAPE = (3, 16, 16)
ENCODER = functools.partial(VQGANEncoder, **VQGANEncoder.small)
DECODER = functools.partial(VQGANDecoder, **VQGANDecoder.small)
# Weights ten times as large as the paper's, so that gradients of such a small network stand well above rounding.
DISCRIMINATOR = functools.partial(PatchDiscriminator, filters=2, layers=1, norm="batch", init_std=0.2)
QUANTIZER = functools.partial(VectorQuantizer, num_codes=8)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")


class Edges(PerceptualLoss):
    """Differences between neighbours, squared."""

    def load(self):
        return nn.Identity()

    def distances(self, network, reconstructions, images):
        return (network(reconstructions) - network(images)).diff(dim=3).square().flatten(1).mean(1)


def make(**settings):
    torch.manual_seed(0)
    networks = {"encoder": ENCODER, "decoder": DECODER, "quantizer": QUANTIZER, "discriminator": DISCRIMINATOR}
    return VQGAN(SHAPE, **{**networks, "perceptual": Edges(), "channels": 6, "discriminator_start": 0, **settings})


def batches(number, size=4):
    draw = torch.Generator().manual_seed(1)
    return [{"image": torch.rand(size, *SHAPE, generator=draw) * 2 - 1} for _ in range(number)]


def fit(model, data, callbacks=(), **settings):
    t = trainer(max_steps=len(data), callbacks=list(callbacks), limit_val_batches=0, **settings)
    t.fit(model, DataLoader(data, batch_size=None))
    return t


# -- the algorithm ----------------------------------------------------------------------------------------------------


class Published:
    """Section 3.1 of the paper, sharing nothing with the package but the networks and the quantizer."""

    def __init__(self, model, start, warmup):
        self.E, self.q, self.G, self.D = map(
            deepcopy, (model.encoder, model.quantizer, model.decoder, model.discriminator)
        )
        self.start, self.warmup, self.steps = start, warmup, 0
        self.own = [*self.E.parameters(), *self.q.parameters(), *self.G.parameters()]
        self.adam_G = torch.optim.Adam(self.own, lr=5.4e-5, betas=(0.5, 0.9))
        self.adam_D = torch.optim.Adam(self.D.parameters(), lr=5.4e-5, betas=(0.5, 0.9))

    def step(self, x):
        quantized, _, losses = self.q(self.E(x))
        reconstructed = self.G(quantized)
        terms = {"reconstruction": (reconstructed - x).abs().mean(), **losses}
        terms["perceptual"] = (reconstructed.float() - x.float()).diff(dim=3).square().mean()
        if self.steps >= self.start:
            nll, adversarial = terms["reconstruction"] + terms["perceptual"], -self.D(reconstructed).mean()
            last = self.G.layers[-1].weight
            gradients = [torch.autograd.grad(loss, last, retain_graph=True)[0] for loss in (nll, adversarial)]
            ratio = (gradients[0].norm() / (gradients[1].norm() + 1e-4)).clamp(0, 1e4).detach()
            terms |= {"generator": 0.8 * ratio * adversarial, "adaptive_weight": ratio}
        self.adam_G.zero_grad()
        sum(term for name, term in terms.items() if name != "adaptive_weight").backward()
        found = [p.grad.clone() for p in self.own]
        self.adam_G.step()

        if self.steps >= self.start - self.warmup:
            real, fake = self.D(x), self.D(reconstructed.detach())
            terms["discriminator"] = 0.5 * ((1 - real).relu().mean() + (1 + fake).relu().mean())
            self.adam_D.zero_grad()
            terms["discriminator"].backward()
            found += [p.grad.clone() for p in self.D.parameters()]
            self.adam_D.step()
        self.steps += 1
        return {name: term.item() for name, term in terms.items()}, found


@pytest.mark.parametrize(
    "quantizer", [QUANTIZER, functools.partial(QUANTIZER, codebook="gradient")], ids=["means", "gradient"]
)
def test_steps_equal_the_published_algorithm_before_and_after_the_discriminator_counts(quantizer):
    """In float64, where Adam magnifies the rounding of gradients near zero; of four steps one, one, and two."""
    model = make(discriminator_start=2, discriminator_warmup=1, quantizer=quantizer, channels_last=False).double()
    published, recorder, data = Published(model, 2, 1), Recorder(), batches(4)
    assert fit(model, data, [recorder], precision="64-true").global_step == 4
    for i, batch in enumerate(data):
        terms, gradients = published.step(batch["image"].double())
        logged = {name: value for name, value in recorder.terms[i].items() if name in terms}
        assert logged == pytest.approx(terms, rel=1e-5)
        assert ("discriminator" in recorder.terms[i]) == (i >= 1)
        assert ("generator" in recorder.terms[i]) == (i >= 2)
        largest = max(g.abs().max() for g in gradients).item()
        for mine, theirs in zip(recorder.gradients[i], gradients, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6 * largest)
    # One pass of the autoencoder a step: the codebook moved once, not once for each player.
    assert int(model.quantizer.updates) == 4
    for mine, theirs in ((model.quantizer, published.q), (model.discriminator, published.D)):
        for (name, buffer), expected in zip(mine.named_buffers(), theirs.buffers(), strict=True):
            torch.testing.assert_close(buffer, expected, msg=lambda text, name=name: f"{name}: {text}")


class Gradients(pl.Callback):
    """What lies in each player's gradients when either is about to take its step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        player = trainer.optimizers.index(optimizer)
        networks = module.players().values()
        now = [[p.grad.clone() for n in part for p in n.parameters() if p.grad is not None] for part in networks]
        self.seen.append((player, now))


def equal(a, b):
    return len(a) == len(b) > 0 and all(map(torch.equal, a, b))


def test_nothing_of_a_players_turn_stays_in_the_others_gradients():
    """In the largest library's script the discriminator's turn leaves its gradient in the autoencoder's weights."""
    gradients = Gradients()
    fit(make(), batches(3), [gradients])
    assert [player for player, _ in gradients.seen] == [0, 1] * 3
    for before, after in zip(gradients.seen, gradients.seen[1:], strict=False):
        waiting = 1 - after[0]
        assert equal(before[1][waiting], after[1][waiting])
        assert not equal(before[1][after[0]], after[1][after[0]])


def test_the_perceptual_loss_moves_the_decoder_and_the_encoder():
    model, images = make(), batches(1)[0]["image"]
    model.terms(images, model.encode(images))["perceptual"].backward()
    for network in (model.encoder, model.decoder):
        assert max(p.grad.abs().max() for p in network.parameters()) > 0
    assert all(p.grad is None for p in model.discriminator.parameters())


def test_until_it_counts_the_discriminator_is_not_asked():
    model = make(discriminator_start=3, discriminator_warmup=1)
    asked = []
    model.discriminator.register_forward_hook(lambda *_: asked.append(model.trainer.global_step))
    before = deepcopy(model.discriminator.state_dict())
    fit(model, batches(2))
    assert not asked
    assert all(torch.equal(value, before[name]) for name, value in model.discriminator.state_dict().items())


# -- the adaptive weight ----------------------------------------------------------------------------------------------


def weight_of(model, distances=1.0, adversarial=1.0, scaler=None):
    """The ratio, where both losses are multiplied by something."""
    model._trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    images = batches(1)[0]["image"]
    output = model.decoded(model.encode(images).maps)
    first, second = distances * (output - images).abs().mean(), -adversarial * model.discriminator(output).mean()
    return model.adaptive_weight(first, second).item()


def test_the_adaptive_weight_makes_gradients_of_the_last_layer_equally_long():
    model = make().eval()
    ratio = weight_of(model)
    assert 0 < ratio < 1e4
    assert weight_of(model, distances=3.0) == pytest.approx(3 * ratio, rel=1e-5)
    assert weight_of(model, adversarial=1e-2) == pytest.approx(100 * ratio, rel=0.1)  # 1e-4 is added to the norm
    assert weight_of(model, distances=1e6, adversarial=0.0) == 1e4
    assert weight_of(model, distances=0.0) == 0.0
    # float16 would lose gradients of 1e-8, so the trainer makes losses larger, which changes no ratio.
    assert weight_of(model, scaler=SimpleNamespace(scale=lambda loss: loss * 2**16)) == pytest.approx(ratio, rel=1e-5)


def ratio_of_ranks(rank, model, scale):
    return weight_of(model.eval(), distances=scale[rank], adversarial=scale[::-1][rank])


def test_over_ranks_it_is_the_ratio_of_the_averaged_gradients(on_ranks):
    ratio = weight_of(make().eval(), 2.0, 2.0)
    # Gradients of 1 and 3 times the same, and of 3 and 1: each rank alone would say 1/3 or 3 times as much.
    assert on_ranks(ratio_of_ranks, make(), [1.0, 3.0]) == pytest.approx([ratio, ratio], rel=1e-4)


def test_without_it_the_weight_is_the_one_given():
    recorder = Recorder()
    model = make(adaptive=False, discriminator_weight=0.25)
    scores = []
    model.discriminator.register_forward_hook(lambda *args: scores.append(args[2].mean().item()))
    fit(model, batches(1), [recorder])
    assert recorder.terms[0]["generator"] == pytest.approx(-0.25 * scores[0], rel=1e-5)
    assert "adaptive_weight" not in recorder.terms[0]


# -- pieces, penalties, quantizers ------------------------------------------------------------------------------------


def test_pieces_of_a_batch_give_the_gradient_of_the_batch_and_move_the_codebook_once():
    independent = functools.partial(DISCRIMINATOR, norm="instance")
    found = []
    for pieces in (1, 2, 3):
        recorder, settings = Recorder(), {"micro_batches": pieces, "adaptive": False, "discriminator": independent}
        model = make(**settings)
        fit(model, batches(1, size=6), [recorder])
        found.append((recorder.gradients[0], [*model.quantizer.buffers()], recorder.terms[0]))
        assert int(model.quantizer.updates) == 1
    for gradients, buffers, terms in found[1:]:
        largest = max(g.abs().max() for g in found[0][0]).item()
        for mine, whole in zip(gradients, found[0][0], strict=True):
            torch.testing.assert_close(mine, whole, rtol=1e-4, atol=1e-5 * largest)
        for mine, whole in zip(buffers, found[0][1], strict=True):
            torch.testing.assert_close(mine, whole, rtol=1e-5, atol=1e-6)
        assert terms == pytest.approx(found[0][2], rel=1e-4)


def test_lazy_r1_comes_in_every_sixteenth_batch_and_needs_scores_of_single_pictures():
    with pytest.raises(ValueError, match=r"VQGAN: a penalty on the gradient .* without batch norm"):
        make(penalties=[R1(interval=16)])
    recorder = Recorder()
    model = make(penalties=[R1(interval=16)], discriminator=functools.partial(DISCRIMINATOR, norm="none"))
    found = []
    model.penalty_losses = lambda *args: found.append(VQGAN.penalty_losses(model, *args)) or found[-1]
    fit(model, batches(17, size=2), [recorder])
    assert [i for i, losses in enumerate(found) if losses] == [0, 16]


@pytest.mark.parametrize(
    "quantizer",
    [
        functools.partial(FiniteScalarQuantizer, levels=[3, 3]),
        functools.partial(GumbelQuantizer, num_codes=8),
        functools.partial(QUANTIZER, code_size=2, normalize=True),
        lambda channels: ResidualQuantizer([QUANTIZER(channels) for _ in range(2)]),
        None,
    ],
)
def test_any_quantizer(quantizer):
    model, images = make(quantizer=quantizer), batches(2)
    fit(model, images)
    assert isinstance(model, HasCodes)
    assert model.num_codes in (8, 9, 1024)
    images = images[0]["image"]
    assert torch.equal(model.decode(model.codes(images)), model.reconstruct(images))


def test_with_a_gaussian_latent_there_are_no_codes():
    model = make(quantizer=functools.partial(GaussianLatent, kl_weight=0.5), channels=8)
    assert isinstance(model, Reconstructs)
    assert not isinstance(model, HasCodes)
    images = batches(1)[0]["image"]
    assert torch.equal(model.reconstruct(images), model.reconstruct(images))
    for lacking in (model.codes, model.decode):
        with pytest.raises(ValueError, match=r"This VQGAN has no codes: .* it has a GaussianLatent"):
            lacking(images)
    # Latent diffusion has sums over a picture: |x - x'| + beta KL. Here all of it is over the 768 numbers.
    means, log_variances = model.encoder(images).chunk(2, 1)
    kl = 0.5 * (means**2 + log_variances.exp() - 1 - log_variances).sum((1, 2, 3)).mean()
    assert model.encode(images).losses["kl"].item() == pytest.approx(0.5 * kl.item() / 768, rel=1e-4)
    t = trainer(max_steps=2, limit_val_batches=1)
    t.fit(model, DataLoader(batches(2), batch_size=None), DataLoader(batches(1), batch_size=None))
    assert {"val/kl", "val/reconstruction", "val/perceptual"} <= t.callback_metrics.keys()
    assert not any("perplexity" in name for name in t.callback_metrics)


def test_validation_says_what_is_lost_and_what_codes_are_used():
    model = make()
    model.perceptual.prepare(SHAPE)
    t = trainer(limit_val_batches=2)
    t.validate(model, DataLoader(batches(2), batch_size=None), verbose=False)
    assert {"val/reconstruction", "val/perceptual", "val/commitment", "val/perplexity"} <= t.callback_metrics.keys()
    with torch.no_grad():
        images = torch.cat([batch["image"] for batch in batches(2)])
        error = (model.decoded(model.eval().encode(images).maps) - images).abs().mean().item()
    assert t.callback_metrics["val/reconstruction"].item() == pytest.approx(error, rel=1e-5)  # two batches of one size


# -- what it is kept as, and what is refused --------------------------------------------------------------------------


def test_a_checkpoint_has_the_recipe_of_the_perceptual_loss_and_no_weight(tmp_path):
    model = make(perceptual=LPIPSDistance("alex"), encoder=ENCODER)
    parts = {name.partition(".")[0] for name in model.state_dict()}
    assert parts == {"encoder", "decoder", "quantizer", "discriminator"}
    again = VQGAN.load_from_checkpoint(save(model, tmp_path / "a.ckpt", global_step=0))
    assert again.perceptual == LPIPSDistance("alex")
    assert again.perceptual._network is None
    images = batches(1)[0]["image"]
    assert torch.equal(again.reconstruct(images), model.reconstruct(images))


def test_absent_weights_of_the_perceptual_loss_stop_a_run_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: (_ for _ in ()).throw(OSError("offline")))
    model = make(perceptual=LPIPSDistance("squeeze"))
    with pytest.raises(FileNotFoundError, match=r"offline.*squeezenet1_1-.*FeatureDistance.*weight of 0"):
        fit(model, batches(1))
    fit(make(perceptual=LPIPSDistance("squeeze"), perceptual_weight=0.0), batches(1))
    trainer().predict(make(perceptual=LPIPSDistance("squeeze")), DataLoader(batches(1), batch_size=None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"perceptual_weight": -1.0}, "perceptual_weight must be 0 or more, got -1.0"),
        ({"discriminator_weight": float("inf")}, "discriminator_weight must be 0 or more, got inf"),
        ({"discriminator_warmup": 1}, "from 0 to all of them; got 1 of 0"),
        ({"discriminator_start": -1}, "from 0 to all of them; got 0 of -1"),
        ({"reconstruction": "l3"}, "reconstruction must be 'l1' or 'l2', got 'l3'"),
        ({"channels": 0}, "channels must be at least 1"),
        ({"quantizer": GaussianLatent, "channels": 5}, "even number of channels"),
        ({"decoder": functools.partial(DECODER, multipliers=(1,))}, r"makes pictures of \(3, 8, 8\)"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
    ],
)
def test_what_does_not_fit_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_a_loss_of_pairs_compares_reconstructions_with_their_pictures():
    model = make(loss=RelativisticPairing(), adaptive=False, discriminator_weight=1.0).eval()
    images, shown = batches(1)[0]["image"], []
    term = model.generator_losses(shown, True, images)["generator"]
    differences = model.discriminator(images) - model.discriminator(shown[0])
    torch.testing.assert_close(term, (1 + differences.exp()).log().mean())
