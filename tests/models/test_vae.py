"""The VAE against linear-Gaussian models, whose likelihood and posterior are known, and its objective written out."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.utils.data import DataLoader

from lightning_gen.data import Digits
from lightning_gen.evaluation.likelihood import likelihood
from lightning_gen.losses import (
    Bernoulli,
    Categorical,
    GaussianPixels,
    Pixelwise,
    gaussian_kl,
    gaussian_log_prob,
    importance_weighted_bound,
)
from lightning_gen.models import VAE, vae
from lightning_gen.networks import MLPDecoder, MLPEncoder
from lightning_gen.schedules import Linear
from tests.shared import Recorder, trainer

LINEAR = {"encoder": partial(MLPEncoder, widths=()), "decoder": partial(MLPDecoder, widths=())}
SMALL = {"encoder": partial(MLPEncoder, widths=(8,)), "decoder": partial(MLPDecoder, widths=(8,))}
STD = 0.3
PIXELS, LATENTS = 5, 2


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small(shape=(1, 2, 3), latent_size=3, **settings):
    torch.manual_seed(0)
    return VAE(shape, **SMALL | {"latent_size": latent_size} | settings)


def black_and_white(number, shape=(1, 2, 3), seed=0):
    return torch.randint(2, (number, *shape), generator=seeded(seed)) * 2.0 - 1


def linear_gaussian(num_classes=None):
    """x = W z + b + noise, the columns of W orthogonal, so that an encoder can be the posterior; and log p(x | y)."""
    pixels = GaussianPixels(std=STD, cut=False)
    model = VAE((PIXELS, 1, 1), likelihood=pixels, latent_size=LATENTS, num_classes=num_classes, **LINEAR)
    orthogonal = torch.linalg.qr(torch.randn(PIXELS, LATENTS, generator=seeded(), dtype=torch.float64))[0]
    weight = orthogonal * torch.tensor([0.5, 0.2])
    shifts = torch.randn(num_classes or 1, PIXELS, generator=seeded(1), dtype=torch.float64)
    variances = 1 / (1 + weight.square().sum(0) / STD**2)
    back = variances[:, None] * weight.T / STD**2  # the posterior's mean is back @ (x - b)
    decoder, encoder = model.decoder.layers[0], model.encoder.head
    with torch.no_grad():
        encoder.weight.zero_()
        decoder.weight[:, :LATENTS], encoder.weight[:LATENTS, :PIXELS] = weight, back
        if num_classes is None:
            decoder.bias.copy_(shifts[0])
            encoder.bias.copy_(torch.cat([-back @ shifts[0], variances.log()]))
        else:
            decoder.bias.zero_()
            decoder.weight[:, LATENTS:] = shifts.T
            encoder.bias.copy_(torch.cat([torch.zeros(LATENTS), variances.log()]))
            encoder.weight[:LATENTS, PIXELS:] = -back @ shifts.T
    covariance = weight @ weight.T + STD**2 * torch.eye(PIXELS)
    truth = MultivariateNormal(shifts[:, None], covariance.expand(num_classes or 1, 1, -1, -1))
    return model, lambda images: truth.log_prob(images.flatten(1).double())  # [classes, N]


POINTS = torch.randn(6, PIXELS, 1, 1, generator=seeded(2))


# -- bounds ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_with_the_true_posterior_the_bound_is_the_likelihood():
    model, log_p = linear_gaussian()
    truth = log_p(POINTS)[0]
    for number in (2, 3, 50):  # whatever the noise: the weights are all p(x)
        found = model.log_prob(POINTS, num_samples=number)
        torch.testing.assert_close(found.double(), truth, rtol=1e-4, atol=1e-4)
    draws = model.log_prob(POINTS.repeat(4000, 1, 1, 1), generator=seeded()).view(4000, -1).double()
    assert ((draws.mean(0) - truth).abs() < 4 * draws.std(0) / 4000**0.5).all()
    assert draws.std(0).min() > 0.1  # by its reconstruction alone


@torch.no_grad()
def test_with_another_encoder_the_gap_is_its_divergence_and_closes_with_samples():
    model, log_p = linear_gaussian()
    means, log_variances = model.encode(POINTS)
    model.encoder.head.bias += torch.tensor([0.3, -0.2, 0.5, 0.7])
    off_means, off_log_variances = model.encode(POINTS)
    # KL(q || p(z | x)) of diagonal Gaussians, as of standard ones after both are shifted and scaled.
    gap = gaussian_kl((off_means - means) * (-log_variances / 2).exp(), off_log_variances - log_variances)
    truth, many = log_p(POINTS)[0], 3000

    def gaps(number):
        draws = model.log_prob(POINTS.repeat(many, 1, 1, 1), num_samples=number, generator=seeded())
        return truth - draws.view(many, -1).double().mean(0), draws.view(many, -1).std(0) / many**0.5

    one, error = gaps(1)
    assert ((one - gap).abs() < 4 * error).all()
    few, many_samples = gaps(4)[0], gaps(40)[0]
    assert (one > few).all()
    assert (few > many_samples).all()
    assert (many_samples > -0.01).all()
    assert (many_samples < gap / 8).all()


@torch.no_grad()
def test_a_prior_taken_at_other_numbers_than_the_sample_would_be_seen():
    """Of PyTorch-VAE's mistake: there log p(z) is taken at (z - mean) / log-variance."""
    model, log_p = linear_gaussian()
    means, log_variances = (each.expand(64, -1, -1) for each in model.encode(POINTS))
    latents = means + (log_variances / 2).exp() * torch.randn(means.shape, generator=seeded())
    nats = model.judge(latents.flatten(0, 1), POINTS.repeat(64, 1, 1, 1), {}).view(64, -1)

    def bound(prior_at: Tensor) -> Tensor:
        prior = gaussian_log_prob(prior_at, torch.zeros(()), torch.zeros(()))
        return importance_weighted_bound(
            (nats + (prior - gaussian_log_prob(latents, means, log_variances)).sum(2)).T
        ).double()

    truth = log_p(POINTS)[0]
    torch.testing.assert_close(bound(latents), truth, rtol=1e-4, atol=1e-4)
    assert ((bound((latents - means) / log_variances) - truth).abs() > 0.1).all()


@torch.no_grad()
def test_without_labels_the_probability_is_averaged_over_classes():
    model, log_p = linear_gaussian(num_classes=3)
    truth = log_p(POINTS)
    found = model.log_prob(POINTS, num_samples=2).double()
    torch.testing.assert_close(found, truth.logsumexp(0) - math.log(3), rtol=1e-4, atol=1e-4)
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    found = model.log_prob(POINTS, labels, num_samples=2).double()
    torch.testing.assert_close(found, truth[labels, torch.arange(6)], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.log_prob(POINTS, 1, num_samples=2).double(), truth[1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("number", [1, 7])
def test_noise_is_the_generators_alone_however_samples_are_dealt(monkeypatch, number):
    model, images = small(), black_and_white(5)
    found = model.log_prob(images, num_samples=number, generator=seeded())
    monkeypatch.setattr(vae, "samples_at_once", lambda shape: 11)
    parts = model.log_prob(images, num_samples=number, generator=seeded())
    torch.testing.assert_close(parts, found)
    state = torch.get_rng_state()
    assert not torch.equal(model.log_prob(images), model.log_prob(images))  # fresh entropy
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_are_weighed_in_memory_that_does_not_grow(monkeypatch):
    model, sizes = small(), []
    monkeypatch.setattr(vae, "samples_at_once", lambda shape: 10)
    model.decoder.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    model.log_prob(black_and_white(4), num_samples=9)
    assert sizes == [8, 8, 8, 8, 4]
    assert model.log_prob(black_and_white(0), num_samples=9).shape == (0,)


# -- the objective --------------------------------------------------------------------------------------------------


def first_steps(model, images, steps=1, batch_size=None):
    """What the first steps log, and their gradients."""
    recorder = Recorder()
    trainer(max_steps=steps, callbacks=[recorder], log_every_n_steps=1).fit(
        model, DataLoader(images, batch_size=batch_size or len(images))
    )
    return recorder.terms, recorder.gradients


def fixed_noise(model, noise):
    """The model, with this noise of one picture for each."""
    model.latents = lambda number: noise.expand(number, -1)
    return model


def test_the_loss_is_a_sum_over_pixels_and_latents_and_a_mean_over_pictures():
    model, images = small(beta=0.7), black_and_white(4)
    noise = torch.randn(3, generator=seeded(1))
    with torch.no_grad():
        means, log_variances = model.encode(images)
        logits = model.decoder(means + (log_variances / 2).exp() * noise)
    reconstruction = kl = 0.0
    for picture in range(4):
        for pixel, logit in zip(images[picture].flatten(), logits[picture].flatten(), strict=True):
            white = 1 / (1 + math.exp(-logit))
            reconstruction += math.log(white if pixel == 1 else 1 - white) / 4
        for mean, log_variance in zip(means[picture].tolist(), log_variances[picture].tolist(), strict=True):
            kl += (mean**2 + math.exp(log_variance) - 1 - log_variance) / 2 / 4
    ((terms,), _) = first_steps(fixed_noise(model, noise), images)
    assert kl > 0.1
    assert terms["loss"] == pytest.approx(0.7 * kl - reconstruction, rel=1e-5)
    assert terms["reconstruction"] == pytest.approx(reconstruction, rel=1e-5)
    assert terms["kl"] == pytest.approx(kl, rel=1e-5)


@pytest.mark.parametrize("free", [0.0, 0.2])
def test_losses_and_gradients_of_a_picture_do_not_depend_on_how_often_it_comes(free):
    noise, found = torch.randn(3, generator=seeded(1)), []
    for number in (1, 8, 64):
        model = fixed_noise(small(free_bits=free), noise)
        (terms,), (gradients,) = first_steps(model, black_and_white(1).expand(number, -1, -1, -1))
        found.append((terms["loss"], *(gradient.norm().item() for gradient in gradients)))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
    assert found[0] == pytest.approx(found[2], rel=1e-4)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_without_beta_nothing_pulls_at_an_encoder_that_the_decoder_does_not_heed(beta):
    model = small(beta=beta)
    nn.init.zeros_(model.decoder.layers[0].weight)
    _, (gradients,) = first_steps(model, black_and_white(4))
    pulled = [bool(gradient.any()) for gradient in gradients[: len(list(model.encoder.parameters()))]]
    assert pulled == [beta > 0] * 4


def test_beta_follows_its_schedule():
    model = small(beta=Linear(0.0, 1.0, until=2))
    terms, _ = first_steps(model, black_and_white(12), steps=4, batch_size=3)
    assert [(t["loss"] + t["reconstruction"]) / t["kl"] for t in terms] == pytest.approx([0, 0.5, 1, 1], abs=1e-5)


def test_free_bits_are_free():
    model, images = small(free_bits=100.0), black_and_white(4)
    nn.init.zeros_(model.decoder.layers[0].weight)
    (terms,), (gradients,) = first_steps(model, images)
    assert terms["loss"] == pytest.approx(3 * 100 - terms["reconstruction"], rel=1e-5)
    assert not any(gradient.any() for gradient in gradients[:4])
    assert terms["kl"] < 100


# -- figures --------------------------------------------------------------------------------------------------------


def test_figures_tell_bound_binarization_and_levels_and_repeat():
    model, data = small((1, 8, 8), importance_samples=4), Digits(binarization="static", num_workers=0)
    (found,) = trainer().test(model, data, verbose=False)
    names = ("elbo-static", "iwae-4-static", "bpd-1bit-elbo", "bpd-1bit-iwae-4", "kl", "reconstruction")
    assert found.keys() == {f"test/{name}" for name in names}
    assert found["test/iwae-4-static"] > found["test/elbo-static"]
    assert found["test/elbo-static"] == pytest.approx(found["test/reconstruction"] - found["test/kl"], rel=1e-5)
    assert found["test/bpd-1bit-iwae-4"] == pytest.approx(-found["test/iwae-4-static"] / 64 / math.log(2))
    assert trainer().test(model, data, verbose=False) == [found]

    figures = likelihood(model, data, 1000, 50, seed=0)
    for name, error in (("elbo", 0.2), ("iwae-4", 0.1)):
        value = figures[f"{name}-static"]["value"]
        assert value == pytest.approx(found[f"test/{name}-static"], abs=error)
        assert value != found[f"test/{name}-static"]  # by other noise
    assert figures == likelihood(model, data, 1000, 50, seed=0)
    assert figures["elbo-static"] != likelihood(model, data, 1000, 50, seed=1)["elbo-static"]
    assert {"elbo_stderr-static", "iwae_stderr-4-static", "bpd-1bit-iwae-4"} <= figures.keys()


def test_a_density_has_no_bits_and_without_samples_there_is_one_bound():
    model = small((1, 8, 8), likelihood=GaussianPixels(), importance_samples=None)
    (found,) = trainer().validate(model, Digits(num_workers=0), verbose=False)
    assert found.keys() == {"val/elbo", "val/kl", "val/reconstruction"}
    model = small((1, 8, 8), likelihood=GaussianPixels(), importance_samples=4)
    (both,) = trainer().validate(model, Digits(num_workers=0), verbose=False)
    assert both == found | {"val/iwae-4": both["val/iwae-4"]}
    assert both["val/iwae-4"] > both["val/elbo"]


# -- pictures -------------------------------------------------------------------------------------------------------


def test_pixels_are_means_or_drawn_by_noise_of_the_latents():
    model = small((1, 4, 4))
    latents = model.draw_latents(6, seeded())
    means = model.generate(latents)
    torch.testing.assert_close(means, model.decoder(latents).sigmoid() * 2 - 1)
    drawn = model.generate(latents, pixels="sample")
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(model.generate(latents[[4, 2]], pixels="sample"), drawn[[4, 2]])
    assert torch.equal(model.generate(latents.T.contiguous().T, pixels="sample"), drawn)
    assert torch.equal(model.sample(6, generator=seeded(), pixels="sample"), drawn)
    repeated = model.generate(model.draw_latents(2000, seeded()) * 1e-3, pixels="sample").mean(0)
    assert (repeated - model.generate(torch.zeros(1, 3))[0]).abs().max() < 0.1  # 4.5 standard errors at most
    cold = model.sample(3, generator=seeded(), temperature=0.0)
    torch.testing.assert_close(cold, model.generate(torch.zeros(3, 3)))


@torch.no_grad()
def test_reconstructions_are_of_the_mean_and_of_the_likeliest_class():
    model, log_p = linear_gaussian()
    means, _ = model.encode(POINTS)
    expected = means @ model.decoder.layers[0].weight.T + model.decoder.layers[0].bias
    torch.testing.assert_close(model.reconstruct(POINTS), expected[..., None, None])
    model, log_p = linear_gaussian(num_classes=3)
    labels = torch.tensor([2, 0, 1, 2])
    pictures = model.generate(model.draw_latents(4, seeded()), labels)  # with shifts far apart
    assert log_p(pictures).argmax(0).tolist() == labels.tolist()
    assert torch.equal(model.reconstruct(pictures), model.reconstruct(pictures, labels))
    assert not torch.equal(model.reconstruct(pictures), model.reconstruct(pictures, 0))
    assert model.reconstruct(pictures[:0]).shape == (0, PIXELS, 1, 1)


def test_forward_is_a_reconstruction_with_a_graph_and_can_be_exported():
    model, images = small(), black_and_white(3)
    exported = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(exported(images), model(images))
    assert torch.equal(model(images).detach(), model.reconstruct(images))
    model(images).sum().backward()
    assert model.encoder.head.weight.grad.any()


# -- what is refused ------------------------------------------------------------------------------------------------


class Narrow(nn.Module):
    """Gives one number a pixel, whatever it is asked for; or one tensor where two are expected."""

    def __init__(self, image_shape, latent_size, outputs=None):
        super().__init__()
        self.shape = (latent_size,) if outputs is None else (1, *image_shape[1:])
        self.weight = nn.Parameter(torch.zeros(self.shape))

    def forward(self, given):
        return self.weight.expand(len(given), *self.shape)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": -0.1}, "beta must be 0 or more, got -0.1"),
        ({"free_bits": -1.0}, "free_bits must be 0 or more"),
        ({"free_bits": math.inf}, "free_bits must be 0 or more"),
        ({"latent_size": 0}, "latent_size must be 1 or more"),
        ({"importance_samples": 1}, "importance_samples must be 2 or more"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"decoder": Narrow, "likelihood": Pixelwise(Categorical(4))}, r"gives \[1, 1, 2, 3\].* needs \[1, 4, 2, 3\]"),
        ({"encoder": Narrow}, r"the encoder Narrow must give means and log-variances, \[N, 3\] each"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_data_and_pictures_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="Give the model a likelihood of 17 levels"):
        trainer(max_steps=1).fit(small((1, 8, 8)), Digits(num_workers=0))
    model = small(likelihood=Pixelwise(Bernoulli()))
    with pytest.raises(ValueError, match="level"):
        trainer(max_steps=1).fit(model, DataLoader(torch.full((4, 1, 2, 3), 0.3), 2))
    with pytest.raises(ValueError, match="level"):
        model.log_prob(torch.full((4, 1, 2, 3), 0.3))
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        model.log_prob(black_and_white(2), num_samples=0)
    with pytest.raises(ValueError, match="Pictures must be"):
        model.reconstruct(torch.zeros(2, 1, 3, 3))
    with pytest.raises(ValueError, match="labels"):
        model.log_prob(black_and_white(2), 1)
    with pytest.raises(ValueError, match="pixels must be 'mean' or 'sample', got 'mode'"):
        model.sample(1, pixels="mode")
