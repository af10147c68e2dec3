"""Path lengths of generators whose derivatives are known, and the network of the paper with weights made up."""

import math
import urllib.error
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from lightning_gen.metrics.path_length import LPIPS, perceptual_path_length
from lightning_gen.models import GAN, StyleGAN
from lightning_gen.networks import StyleGANDiscriminator, StyleGANGenerator
from lightning_gen.randomness import generator_for

SIZE = 24


def squared_distance(a, b):
    return (a - b).square().flatten(1).sum(1)


class Model:
    """G(z) = f(z) as a picture one pixel high, in float64; w is z."""

    num_classes = None
    latent_shape = (SIZE,)
    sample = NotImplemented

    def __init__(self, function=lambda z: z, normalized=False):
        self.function, self.normalized = function, normalized

    def draw_latents(self, num_samples, generator=None):
        z = torch.randn(num_samples, SIZE, generator=generator, dtype=torch.float64)
        return z / z.norm(dim=1, keepdim=True) if self.normalized else z

    def generate(self, latents, labels=None):
        return self.function(latents)[:, None, None]

    def map_latents(self, latents, labels=None):
        return latents

    def synthesize(self, intermediate):
        return self.generate(intermediate)


def length(model, **arguments):
    return perceptual_path_length(model, squared_distance, **{"num_samples": 300, "discard": 0.0} | arguments)


def pairs(model, number=300, seed=0):
    """The same pairs, read off the generators that the function promises to draw them from."""
    drawn = []
    for i in range(number):
        draw = generator_for(seed, i)
        a, b = model.draw_latents(1, draw)[0], model.draw_latents(1, draw)[0]
        drawn.append((a, b, torch.rand((), generator=draw, dtype=torch.float64)))
    a, b, t = (torch.stack(things) for things in zip(*drawn, strict=True))
    angle = torch.acos((a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1))
    return a, b, t, angle


def close(found, expected, rtol=1e-6):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=0)


# -- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["full", "end"])
def test_a_linear_generator_moves_by_the_difference_of_its_ends(sampling):
    weight = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    model = Model(lambda z: z @ weight)
    a, b, _, _ = pairs(model)
    found = length(model, space="w", sampling=sampling)
    close(found.distances, ((b - a) @ weight).square().sum(1))
    # z' - z has the covariance 2 I.
    assert found.mean == pytest.approx(2 * weight.square().sum().item(), abs=4.5 * found.std / math.sqrt(300))


def test_lines_in_w_lead_from_the_w_of_one_latent_to_that_of_the_other():
    class Cubes(Model):
        def map_latents(self, latents, labels=None):
            return latents**3

    a, b, _, _ = pairs(Model())
    close(length(Cubes(), space="w").distances, (b**3 - a**3).square().sum(1))


@pytest.mark.parametrize("sampling", ["full", "end"])
def test_unit_latents_turn_by_their_angle_at_constant_speed(sampling):
    model = Model(normalized=True)
    close(length(model, sampling=sampling).distances, pairs(model)[3].square())


def test_latents_of_unequal_lengths_move_along_and_outward():
    model = Model()
    a, b, t, angle = pairs(model)
    long_a, long_b = a.norm(dim=1), b.norm(dim=1)
    for sampling, at in (("full", t), ("end", torch.zeros_like(t))):
        expected = (angle * torch.lerp(long_a, long_b, at)).square() + (long_b - long_a).square()
        close(length(model, sampling=sampling, epsilon=1e-6).distances, expected)


def test_the_ends_of_a_path_are_not_its_middle():
    """G = z^2 has the speed 2 z (z' - z): for Gaussian ends 16 a dimension squared at t = 0, and 8 over the path."""
    model = Model(torch.square)
    for sampling, expected in (("end", 16), ("full", 8)):
        found = length(model, space="w", sampling=sampling, num_samples=3000)
        assert found.mean == pytest.approx(expected * SIZE, abs=4.5 * found.std / math.sqrt(3000))
        a, b, t, _ = pairs(model, 3000)
        here = a + t[:, None] * (b - a) if sampling == "full" else a
        close(found.distances, ((2 * here + 1e-4 * (b - a)) * (b - a)).square().sum(1))


def test_the_step_is_divided_out():
    model = Model(torch.sin)
    found = [length(model, epsilon=epsilon).mean for epsilon in (1e-3, 1e-4, 1e-5)]
    assert found == pytest.approx([found[1]] * 3, rel=1e-2)


def test_float32_has_digits_enough():
    class Float32(Model):
        def draw_latents(self, num_samples, generator=None):
            return super().draw_latents(num_samples, generator).float()

    model = Float32()
    a, b, _, _ = pairs(model)
    found = length(model, space="w")
    close(found.distances, (b - a).double().square().sum(1), rtol=1e-2)
    assert found.mean == pytest.approx((b - a).square().sum(1).mean().item(), rel=1e-4)


def test_the_extremes_are_discarded_as_the_authors_do():
    distances = length(Model()).distances.numpy()
    for discard in (0.01, 0.2):
        lowest = np.percentile(distances, 100 * discard, method="lower")
        highest = np.percentile(distances, 100 * (1 - discard), method="higher")
        kept = distances[(distances >= lowest) & (distances <= highest)]
        assert 0 < len(kept) < 300
        found = length(Model(), discard=discard)
        assert found.mean == pytest.approx(kept.mean())
        assert found.std == pytest.approx(kept.std(ddof=1))
        assert found.distances.tolist() == distances.tolist()
    by_default = perceptual_path_length(Model(), squared_distance, num_samples=300)
    assert by_default.mean == length(Model(), discard=0.01).mean != length(Model(), discard=0.02).mean


# -- what the figure does not depend on -------------------------------------------------------------------------------


def test_a_pair_depends_on_the_seed_and_its_number_alone():
    model = Model(torch.sin)
    whole = length(model, batch_size=1000).distances
    for batch_size in (1, 7, 300):
        close(length(model, batch_size=batch_size).distances, whole)
    close(length(model, num_samples=11).distances, whole[:11])
    assert not torch.isclose(length(model, seed=1).distances, whole).any()


class Classes(Model):
    """Pictures of unlike classes are far apart."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.seen = []

    def generate(self, latents, labels=None):
        self.seen += labels.tolist()
        return (latents + 1000 * labels[:, None])[:, None, None]

    def map_latents(self, latents, labels=None):
        return latents + 1000 * labels[:, None]

    def synthesize(self, intermediate):
        return intermediate[:, None, None]


def test_both_ends_have_one_label_drawn_evenly():
    model = Classes()
    close(length(model).distances, length(Model()).distances)
    counts = np.bincount(model.seen, minlength=3) / len(model.seen)
    assert counts == pytest.approx([1 / 3] * 3, abs=4.5 * math.sqrt(2 / 9 / 300))
    close(length(model, space="w").distances, length(Model(), space="w").distances)


class Network(nn.Module, Model):
    """Random in training mode, and only there."""

    def __init__(self):
        nn.Module.__init__(self)
        self.layers = nn.Sequential(nn.Linear(SIZE, 40), nn.BatchNorm1d(40), nn.Dropout(), nn.Linear(40, SIZE))
        self.layers[1].eval()

    def draw_latents(self, num_samples, generator=None):
        return torch.randn(num_samples, SIZE, generator=generator)

    def generate(self, latents, labels=None):
        return self.layers(latents)[:, None, None]


class NetworkDistance(nn.Module):
    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout()

    def forward(self, a, b):
        assert not a.requires_grad
        return self.dropout(a - b).square().flatten(1).sum(1)[:, None, None, None]  # the shape of LPIPS networks


def test_modules_are_asked_in_evaluation_mode_and_left_as_they_were():
    model, distance = Network().train(), NetworkDistance()
    model.layers[1].eval()
    state = torch.get_rng_state()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    found = perceptual_path_length(model, distance, num_samples=40).distances
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.layers] == [True, False, True, True]
    assert distance.training
    assert distance.dropout.training
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    model.eval()
    distance.eval()
    assert torch.equal(perceptual_path_length(model, distance, num_samples=40).distances, found)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(perceptual_path_length(model, distance, num_samples=40).distances, found)


def test_a_model_of_the_family_has_what_it_takes():
    found = perceptual_path_length(GAN((1, 8, 8)), squared_distance, num_samples=20)
    assert 0 < found.mean < math.inf


@pytest.mark.parametrize("num_classes", [None, 3])
def test_paths_of_a_stylegan_in_z_and_in_w(num_classes):
    networks = (partial(network, **network.small) for network in (StyleGANGenerator, StyleGANDiscriminator))
    model = StyleGAN((1, 8, 8), *networks, latent_size=8, num_classes=num_classes)
    turns, lines = (
        perceptual_path_length(model, squared_distance, num_samples=20, space=space, epsilon=1e-3) for space in "zw"
    )
    assert 0 < turns.mean < math.inf
    assert 0 < lines.mean < math.inf
    assert turns.mean != lines.mean


# -- bad input --------------------------------------------------------------------------------------------------------


class Noisy(Model):
    def generate(self, latents, labels=None):
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
        return (latents + 1e-3 * noise)[:, None, None]


class WithoutW:
    num_classes = None
    latent_shape = (SIZE,)
    sample = draw_latents = generate = NotImplemented


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (Noisy(), {}, "two pictures of one latent that differ by 0.00"),
        (Network().bfloat16(), {}, "Half precision"),
        (nn.Linear(2, 2), {}, "Linear is no model with latents"),
        (WithoutW(), {"space": "w"}, "WithoutW has no w"),
        (Model(), {"num_samples": 0}, "num_samples must be at least 1, got 0"),
        (Model(), {"batch_size": 0}, "batch_size must be at least 1"),
        (Model(), {"epsilon": 0.0}, "epsilon must be above 0"),
        (Model(), {"discard": 0.5}, "below 0.5, got 0.5"),
        (Model(), {"sampling": "start"}, "full or end"),
        (Model(), {"space": "x"}, "z or w"),
        (Model(), {"distance": lambda a, b: squared_distance(a, b).mean()}, r"64 pairs must be \[64\], got \[\]"),
        (Model(lambda z: torch.where(z > 3, math.nan, z)), {}, r"distance of pair \d+ is nan"),
    ],
)
def test_what_cannot_be_measured_is_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        perceptual_path_length(model, **{"distance": squared_distance, "num_samples": 300} | arguments)


def test_a_pair_without_a_distance_is_named_by_its_number():
    def fails_at_70(a, b):
        return squared_distance(a, b).index_fill(0, torch.tensor([6]), math.nan if len(a) == 16 else 1.0)

    with pytest.raises(ValueError, match="distance of pair 70 is nan"):
        perceptual_path_length(Model(), fails_at_70, num_samples=80)


# -- the network of the paper -----------------------------------------------------------------------------------------


@pytest.fixture
def random_vgg(monkeypatch):
    """The network without its weights, which are not at hand."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SimpleNamespace(features=make_layers(cfgs["D"]))
    monkeypatch.setattr(torchvision.models, "vgg16", lambda weights: network)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_lpips_is_a_distance_of_one_number_a_pair(random_vgg):
    lpips = LPIPS()
    a, b = images(3, 3, 32, 24), images(3, 3, 32, 24, seed=1)
    assert lpips(a, b).shape == (3,)
    assert (lpips(a, b) > 0).all()
    assert torch.equal(lpips(a, a), torch.zeros(3))
    torch.testing.assert_close(lpips(a, b), lpips(b, a))
    torch.testing.assert_close(lpips(a[1:2], b[1:2])[0], lpips(a, b)[1])
    lpips.train()  # its dropout would answer otherwise
    torch.testing.assert_close(lpips(a, b), lpips(b, a))


def test_lpips_sees_grey_as_colour_and_large_pictures_by_blocks(random_vgg):
    lpips = LPIPS()
    a, b = images(1, 1, 32, 32), images(1, 1, 32, 32, seed=1)
    torch.testing.assert_close(lpips(a, b), lpips(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)))
    small, other = images(1, 3, 16, 256), images(1, 3, 16, 256, seed=1)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(lpips(large, other.repeat_interleave(2, 2).repeat_interleave(2, 3)), lpips(small, other))
    assert not torch.isclose(lpips(small[..., :128], other[..., :128]), lpips(small, other))


def test_lpips_can_look_at_faces_alone(random_vgg):
    a, b = images(1, 3, 64, 64), images(1, 3, 64, 64, seed=1)
    found = LPIPS(crop_faces=True)(a, b)
    torch.testing.assert_close(found, LPIPS()(a[..., 24:56, 16:48], b[..., 24:56, 16:48]))
    with pytest.raises(ValueError, match="too short"):
        LPIPS(crop_faces=True)(images(1, 3, 24, 24), images(1, 3, 24, 24))


def test_lpips_is_the_default_and_draws_nothing(random_vgg):
    class Pictures(Model):
        def generate(self, latents, labels=None):
            return latents.float().tanh().repeat_interleave(32, 1).view(-1, 3, 16, 16)

    state = torch.get_rng_state()
    found = perceptual_path_length(Pictures(), num_samples=3).distances
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(perceptual_path_length(Pictures(), LPIPS(), num_samples=3).distances, found)
    assert (found > 0).all()


def test_absent_weights_are_told_with_both_remedies(monkeypatch):
    def fails(weights):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchvision.models, "vgg16", fails)
    with pytest.raises(RuntimeError, match=r"no network.*vgg16-397923af.pth.*checkpoints.*another distance"):
        perceptual_path_length(Model())
