"""The discrete autoencoder of DALL-E: its schedules, its objective, and the gap between codes and their relaxation."""

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.shipped import small, small_model
from lightning_gen.callbacks import EMA
from lightning_gen.losses import Bernoulli, GaussianPixels, LogitLaplace, Pixelwise, categorical_token_kl
from lightning_gen.models import GumbelVAE
from lightning_gen.networks import DALLEDecoder, DALLEEncoder
from lightning_gen.schedules import Cosine, Exponential, Linear
from tests.shared import Recorder, trainer

SIZES = {"num_codes": 6, "code_size": 3, "features": 8}


def make(shape=(3, 8, 8), seed=0, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return small_model(GumbelVAE, shape, **SIZES | settings)()


def pictures(number, shape=(3, 8, 8), seed=0):
    return torch.rand(number, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def fit(model, number=4, batch=2, **settings):
    fitting = trainer(**{"max_steps": 2, "num_sanity_val_steps": 0} | settings)
    fitting.fit(model, DataLoader(pictures(number), batch), DataLoader(pictures(6, seed=1), batch))
    return fitting


# -- the paper's numbers --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published():
    with torch.device("meta"):
        return GumbelVAE((3, 256, 256))


def test_the_published_model(published):
    assert sum(p.numel() for p in published.parameters()) == 53_786_240 + 43_829_766
    assert (published.num_codes, published.code_shape) == (8192, (32, 32))
    assert published.likelihood == LogitLaplace(0.1)
    assert not published.quantizer.hard
    (average,) = published.configure_callbacks()
    assert (average.decay, average.modules) == (0.999, ["encoder", "quantizer", "decoder"])
    group = published.default_optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 1e-4)


@pytest.mark.parametrize(
    ("name", "length", "start", "end"),
    [("temperature", 150_000, 1, 1 / 16), ("kl_weight", 5000, 0, 6.6), ("learning_rate", 1_200_000, 1e-4, 1.25e-6)],
)
def test_the_published_schedules_at_given_steps(published, name, length, start, end):
    """Half a cosine; karpathy's, a quarter of one, would be at 0.29 of the way where this is halfway."""
    schedule = getattr(published, name)
    assert schedule.by == "steps"
    assert schedule(0) == start
    assert schedule(length / 4) == pytest.approx(start + (end - start) * (1 - math.sqrt(0.5)) / 2)
    assert schedule(length / 2) == pytest.approx((start + end) / 2)
    assert schedule(length) == schedule(3_000_000) == end


def test_a_step_is_taken_with_the_numbers_of_its_place_wherever_a_run_began(tmp_path):
    """A temperature that is multiplied in place, as DALLE-pytorch's, is at 0.5 at step 11,800 instead of 693,147."""
    settings = {
        "temperature": Exponential(1.0, 2, lowest=0.2),
        "kl_weight": Linear(0.0, 6.0, 4),
        "learning_rate": Cosine(1e-3, 1e-5, 4),
    }
    seen = []

    def watched(seed):
        model = make(seed=seed, **settings)
        quantize = model.quantizer.quantize
        model.quantizer.quantize = lambda tokens, **given: seen.append(given) or quantize(tokens, **given)
        return model

    recorder = Recorder()
    model = watched(0)
    first = fit(model, number=8, max_steps=3, limit_val_batches=0, callbacks=[recorder])
    first.save_checkpoint(tmp_path / "a.ckpt")
    whole = [given["temperature"] for given in seen]
    assert whole == pytest.approx([1.0, 0.5**0.5, 0.5])
    for terms, beta in zip(recorder.terms, [0.0, 1.5, 3.0], strict=True):
        assert (terms["kl_weight"], terms["temperature"]) == pytest.approx((beta, whole.pop(0)))
    seen.clear()
    again = trainer(max_steps=5, limit_val_batches=0)
    again.fit(watched(1), DataLoader(pictures(20), 2), ckpt_path=tmp_path / "a.ckpt")
    assert [given["temperature"] for given in seen] == pytest.approx([0.5**1.5, 0.25])
    assert again.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-5)


# -- the objective --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "groups"), [(3, 4), (3, 3), (3, 1), (1, 2)])
def test_the_divergence_weighs_as_published_for_any_stride(channels, groups):
    """Beta / (C f^2) on the mean over tokens, 6.6 / 192 at f = 8, beside nats a value."""
    shape, factor = (channels, 16, 24), 2 ** (groups - 1)
    networks = {
        "encoder": small(DALLEEncoder, groups=groups),
        "decoder": small(DALLEDecoder, groups=groups),
    }
    model, images = make(shape, **networks), pictures(3, shape)
    logits = nn.functional.conv2d(model.encoder(images), model.quantizer.to_logits.weight[..., None, None])
    terms = model.terms(images, model.encode(images))
    expected = categorical_token_kl(logits).mean() / (channels * factor**2)
    torch.testing.assert_close(terms["kl"], expected)
    if (channels, groups) == (3, 4):
        torch.testing.assert_close(6.6 * terms["kl"], 6.6 / 192 * categorical_token_kl(logits).mean())


def test_terms_and_gradients_of_a_picture_do_not_depend_on_the_size_of_the_batch():
    model, image = make().eval(), pictures(1)

    def found(number):
        images = image.expand(number, -1, -1, -1)
        terms = model.terms(images, model.encode(images))
        gradients = torch.autograd.grad(terms["reconstruction"] + 6.6 * terms["kl"], list(model.parameters()))
        return [*terms.values(), *gradients]

    once = found(1)
    for number in (8, 64):
        torch.testing.assert_close(found(number), once, rtol=1e-3, atol=1e-5)
    # planted: DALLE-pytorch's sum over the batch
    logits = torch.randn(1, 6, 4, 4).expand(8, -1, -1, -1)
    assert categorical_token_kl(logits).sum() == pytest.approx(8 * categorical_token_kl(logits[:1]).sum().item())


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_the_divergence_is_of_the_encoder_whatever_the_temperature(temperature):
    model, images = make(), pictures(2)
    terms = [model.terms(images, model.encode(images, temperature=each)) for each in (temperature, 10.0)]
    assert torch.equal(terms[0]["kl"], terms[1]["kl"])
    assert not terms[0]["reconstruction"].allclose(terms[1]["reconstruction"])
    nn.init.zeros_(model.quantizer.to_logits.weight)
    assert model.terms(images, model.encode(images))["kl"].item() == pytest.approx(0, abs=1e-7)
    model.quantizer.to_logits.bias.data[2] = 100.0  # all tokens are one code: log K each, 4 x 4 of them
    assert model.terms(images, model.encode(images))["kl"].item() == pytest.approx(math.log(6) * 16 / 192)


def test_the_loss_is_the_sum_of_both_terms():
    losses, recorder = [], Recorder()
    model = make(kl_weight=2.5, temperature=0.7)
    step = model.training_step
    model.training_step = lambda *given: losses.append(step(*given)) or losses[-1]
    fit(model, callbacks=[recorder])
    for loss, terms in zip(losses, recorder.terms, strict=True):
        assert loss.item() == pytest.approx(terms["reconstruction"] + 2.5 * terms["kl"])
    assert model.images_seen == 4


def test_with_drawn_codes_the_objective_is_a_bound_with_its_closed_form():
    """One token of 6 codes can be summed over: E_q log p(x | z) - KL(q || p), which is below log p(x)."""
    shape = (1, 2, 2)
    model = make(shape, straight_through=True, likelihood=Pixelwise(Bernoulli()))
    nn.init.normal_(model.quantizer.to_logits.bias)
    image = pictures(1, shape).sign()
    decoded = model.decoded(model.look_up([torch.arange(6).view(6, 1, 1)]))
    log_prob = model.likelihood.log_prob(decoded, image.expand(6, -1, -1, -1))
    logits = model.quantizer.to_logits(model.encoder(image)[0, :, 0, 0])
    share = logits.softmax(0)
    bound = (share * (log_prob + math.log(1 / 6) - share.log())).sum()
    assert bound < log_prob.logsumexp(0) - math.log(6)
    many = image.expand(20_000, -1, -1, -1)
    terms = model.terms(many, model.encode(many, temperature=0.3))
    # Of the 20,000 draws the mean is off by a 140th of a standard deviation; five times that is allowed.
    error = 5 * (share * (log_prob - (share * log_prob).sum()).square()).sum().sqrt() / math.sqrt(20_000)
    found = -4 * (terms["reconstruction"] + terms["kl"])
    assert found.item() == pytest.approx(bound.item(), abs=error.item())


# -- codes and their relaxation -------------------------------------------------------------------------------------


def test_pictures_are_of_the_likeliest_codes_and_training_is_of_their_relaxation():
    model, images = make(), pictures(5)
    assert torch.equal(model.decode(model.codes(images)), model.reconstruct(images))
    relaxed = model.pictures_of(model.decoded(model.encode(images, temperature=1.0).maps))
    assert (relaxed - model.reconstruct(images)).abs().max() > 1e-3
    vectors = model.quantizer.lookup(torch.arange(6))  # [K, D]

    def distance(maps):
        tokens = maps.movedim(1, -1).reshape(-1, 1, 3)
        return (tokens - vectors).norm(dim=2).amin(1).max()  # of all tokens, to the nearest vector

    assert distance(model.encode(images, temperature=1.0).maps[0]) > 0.01
    hard = make(straight_through=True)  # of the same seed
    assert distance(hard.encode(images, temperature=1.0).maps[0]) < 1e-5
    assert model.training


def test_the_gap_between_them_is_logged_and_the_same_again():
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        model = make(temperature=Cosine(1.0, 0.5, 2))
        fitting = fit(model)
        found.append({name: v.item() for name, v in fitting.callback_metrics.items() if name.startswith("val/")})
    assert found[0] == found[1]
    figures = found[0]
    gap = figures["val/reconstruction"] - figures["val/reconstruction-relaxed"]
    assert figures["val/gap"] == pytest.approx(gap, abs=1e-6)
    assert figures["val/gap"] != 0
    assert 1 <= figures["val/perplexity"] <= 6
    # what validation reports of codes is no function of the noise
    (alone,) = trainer().validate(model, DataLoader(pictures(6, seed=1), 2), verbose=False)
    assert "val/gap" not in alone  # no step, no temperature


def test_the_gap_closes_at_a_low_temperature_where_the_encoder_is_sure():
    model, images = make(), pictures(4).double()
    model = model.double().eval()
    model.quantizer.to_logits.weight.data *= 1e6

    def gap(temperature):
        relaxed = model.encode(images, relaxed=True, temperature=temperature)
        of_codes, of_relaxed = (model.terms(images, each)["reconstruction"] for each in (model.encode(images), relaxed))
        return (of_codes - of_relaxed).abs()

    assert gap(1.0) < 1e-6
    assert gap(1e8) > 1e-3


def test_the_average_of_the_weights_is_the_models_own_unless_the_run_has_one():
    assert [each.decay for each in fit(make()).callbacks if isinstance(each, EMA)] == [0.999]
    assert not [each for each in fit(make(ema_decay=None)).callbacks if isinstance(each, EMA)]
    own = EMA(["decoder"], decay=0.5)
    assert [each for each in fit(make(), callbacks=[own]).callbacks if isinstance(each, EMA)] == [own]


@pytest.mark.parametrize("likelihood", [LogitLaplace(), GaussianPixels(), Pixelwise(Bernoulli())])
def test_it_learns_to_tell_pictures_by_their_codes(likelihood):
    """Black and white ones, by any likelihood: after 150 steps each is decoded as itself."""
    torch.manual_seed(0)
    model = make(
        (1, 4, 4), likelihood=likelihood, learning_rate=0.01, kl_weight=0.1, ema_decay=None,
        temperature=Cosine(1.0, 0.1, 100),
    )  # fmt: skip
    images = torch.tensor([-1.0, 1.0]).repeat(8).view(16, 1, 1, 1).expand(16, 1, 4, 4)
    trainer(max_steps=150, max_epochs=None).fit(model, DataLoader(images, 16))
    found = model.reconstruct(images[:2])
    assert found[0].max() < -0.5
    assert found[1].min() > 0.5
    assert len(model.codes(images).unique()) > 1


@pytest.mark.parametrize(
    ("make_one", "message"),
    [
        (lambda: make(temperature=0), "temperature must be above 0, from the first step to the last; got 0"),
        (lambda: make(temperature=Cosine(1.0, 0.0, 10)), "temperature must be above 0"),
        (lambda: make(temperature=math.inf), "temperature must be above 0"),
        (lambda: make(kl_weight=-1.0), "kl_weight must be 0 or more; got -1.0"),
        (lambda: make(kl_weight=Linear(0.0, -1.0, 10)), "kl_weight must be 0 or more"),
        (lambda: make(ema_decay=1.0), "ema_decay must lie in"),
        (lambda: make(num_codes=1), "2 codes at least"),
        (lambda: make((3, 9, 8)), "divisible by 2, got 9 x 8"),
        (lambda: make(decoder=small(DALLEDecoder, groups=3)), r"makes pictures of \(3, 16, 16\), but they are to be"),
        (lambda: make(encoder=lambda shape, channels: nn.Flatten()), r"features \[N, D, h, w\], got \[1, 192\]"),
        (lambda: make(encoder=lambda shape, channels: nn.Conv2d(3, 5, 1)), r"takes float features \[N, 8, ...\], got"),
        (lambda: make(decoder=lambda shape, channels, outputs: nn.Conv2d(3, 5, 1)), "num_parameters.3. is what a"),
        (lambda: fit(make(likelihood=Pixelwise(Bernoulli()))), "level"),
        (lambda: make().reconstruct(torch.zeros(1, 3, 8, 10)), "Pictures must be"),
    ],
)  # fmt: skip
def test_mistakes_are_named(make_one, message):
    with pytest.raises(ValueError, match=message):
        make_one()
