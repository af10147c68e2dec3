import itertools
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lightning_gen.layers.orders import random_order, raster_order
from lightning_gen.losses.categorical import levels_to_images
from lightning_gen.losses.pixels import Bernoulli, Categorical, LogisticMixture
from lightning_gen.networks import pixel_sampler as sampling
from lightning_gen.networks.density import LevelEmbedding
from lightning_gen.networks.pixel_sampler import draw_pixels
from lightning_gen.networks.stepping import call, places_of
from lightning_gen.testing import assert_autoregressive, assert_cached_equals_naive


@dataclass
class LinearCache:
    images: Tensor
    labels: Tensor | None


class Linear(nn.Module):
    """Parameters that are a linear function of all that comes before in an order, pixel or channel by channel.

    Labels move all of them.
    """

    def __init__(self, image_shape, num_parameters, order, *, by_channel, seed=0):
        super().__init__()
        self.image_shape, self.by_channel = image_shape, by_channel
        channels, height, width = image_shape
        time = order.argsort()[:, None] * channels + torch.arange(channels)  # [pixel, channel]
        if not by_channel:
            time = time[:, :1].expand(-1, channels)
        mask = time.T.flatten()[:, None] > time.T.flatten()  # [to, from], channel by channel
        if not by_channel:
            mask = mask[: height * width]
        generator = torch.Generator().manual_seed(seed)
        weight = torch.randn(num_parameters, *mask.shape, generator=generator) * mask
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.randn(num_parameters, len(mask), generator=generator))
        self.steps: list[int] = []

    def forward(self, images, labels=None):
        shape = self.image_shape if self.by_channel else self.image_shape[1:]
        out = torch.einsum("pij,nj->npi", self.weight, images.flatten(1)) + self.bias
        out = out if labels is None else out + labels[:, None, None]
        return out.unflatten(2, shape)

    def init_cache(self, batch, device, labels=None):
        return LinearCache(self.weight.new_zeros(batch, *self.image_shape, device=device), labels)

    def step(self, cache, position, run=call):
        self.steps.append(position)
        return run(self.parameters_at, cache, places_of(*self.image_shape[1:], cache.images.device)[position])

    def parameters_at(self, cache, place):
        return self(cache.images, cache.labels).flatten(-2).index_select(-1, place).squeeze(-1)


class Prefilled(Linear):
    """The same, which takes known pixels in one pass."""

    prefilled: int | None = None

    def prefill(self, cache, position):
        self.prefilled = position


LIKELIHOODS = [
    (Bernoulli(), 1, True), (Bernoulli(), 3, True), (Categorical(3), 2, True), (Categorical(3), 2, False),
    (LogisticMixture(5, 2), 3, False),
]  # fmt: skip


def network_for(likelihood, channels, by_channel, height=3, width=2, order=None, kind=Linear):
    order = raster_order(height, width) if order is None else order
    number = likelihood.num_parameters(channels) // (channels if by_channel else 1)
    return kind((channels, height, width), number, order, by_channel=by_channel)


def blank(number, channels, height=3, width=2):
    levels = torch.zeros(number, channels, height, width, dtype=torch.int64)
    return levels, torch.ones(number, height, width, dtype=torch.bool)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("likelihood", "channels", "by_channel"), LIKELIHOODS)
def test_the_network_of_these_tests_is_what_it_should_be(likelihood, channels, by_channel):
    network = network_for(likelihood, channels, by_channel)
    assert_autoregressive(network, network.image_shape, channels="ordered" if by_channel else "joint", perturb=False)
    assert_cached_equals_naive(network, network.image_shape, perturb=False)


class Embedded(Linear):
    """The same, of vectors that stand for levels, one of each channel after the other."""

    def __init__(self, image_shape, num_parameters, order, *, by_channel):
        channels, height, width = image_shape
        super().__init__((2 * channels, height, width), num_parameters, order, by_channel=False)
        self.embed = LevelEmbedding(num_parameters // channels, 2)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_network_may_look_at_vectors_in_place_of_levels(channels):
    """All pictures of 2 pixels, by both methods; the second pixel depends on the first by its vector alone."""
    likelihood, order, number = Categorical(3), torch.tensor([1, 0]), 20_000
    network = Embedded((channels, 1, 2), 3 * channels, order, by_channel=False)
    every = torch.tensor(list(itertools.product(range(3), repeat=2 * channels))).view(-1, channels, 1, 2)
    with torch.no_grad():
        p = likelihood.log_prob(network(network.embed(every)), every).flatten(1).sum(1).exp().double()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    drawn = [draw_pixels(network, likelihood, *blank(number, channels, 1, 2), order, seeded(), method=method)
             for method in ("cached", "naive")]  # fmt: skip
    assert torch.equal(*drawn)
    places = (drawn[0].flatten(1) * 3 ** torch.arange(2 * channels).flip(0)).sum(1)
    shares = torch.bincount(places, minlength=len(every)).double() / number
    assert ((shares - p).abs() < 5 * (p * (1 - p) / number).sqrt() + 1e-3 / number).all()


@pytest.mark.parametrize(("likelihood", "channels", "by_channel"), LIKELIHOODS)
def test_cached_and_naive_draw_the_same(likelihood, channels, by_channel):
    order = random_order(3, 2, seed=1)
    network = network_for(likelihood, channels, by_channel, order=order)
    results = [
        draw_pixels(network, likelihood, *blank(5, channels), order, seeded(), method=method)
        for method in ("cached", "naive")
    ]
    assert torch.equal(*results)
    assert results[0].shape == (5, channels, 3, 2)
    assert results[0].dtype == torch.int64
    assert set(results[0].flatten().tolist()) <= set(range(likelihood.num_levels))
    assert network.steps == [p for p in order.tolist() for _ in range(channels if by_channel else 1)]


@pytest.mark.parametrize("method", ["cached", "naive"])
@pytest.mark.parametrize(("channels", "by_channel"), [(1, True), (2, True), (2, False)])
def test_pictures_have_the_probabilities_of_the_model(method, channels, by_channel):
    """All pictures of 2 pixels, with their exact probabilities, against 20,000 draws."""
    likelihood, order, number = Categorical(3), torch.tensor([1, 0]), 20_000
    network = network_for(likelihood, channels, by_channel, 1, 2, order)
    every = torch.tensor(list(itertools.product(range(3), repeat=2 * channels))).view(-1, channels, 1, 2)
    p = likelihood.log_prob(network(levels_to_images(every, 3)), every).flatten(1).sum(1).exp().double()
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    drawn = draw_pixels(network, likelihood, *blank(number, channels, 1, 2), order, seeded(), method=method)
    places = (drawn.flatten(1) * 3 ** torch.arange(2 * channels).flip(0)).sum(1)
    shares = torch.bincount(places, minlength=len(every)).double() / number
    assert ((shares - p).abs() < 5 * (p * (1 - p) / number).sqrt() + 1e-3 / number).all()


@pytest.mark.parametrize("method", ["cached", "naive"])
def test_known_pixels_stay_and_only_what_is_needed_is_stepped(method):
    likelihood = Categorical(4)
    network = network_for(likelihood, 1, True, 3, 3)
    levels = torch.randint(4, (3, 1, 3, 3), generator=seeded())
    hole = torch.zeros(3, 3, 3, dtype=torch.bool)
    hole[0, 1, 1] = hole[1, 2, 0] = True  # the third picture has none
    drawn = draw_pixels(network, likelihood, levels, hole, raster_order(3, 3), seeded(), method=method)
    assert torch.equal(drawn[:, 0][~hole], levels[:, 0][~hole])
    # By Bayes' rule nothing else may be asked: the hole's distribution is that given the pixels before it.
    if method == "cached":
        assert network.steps == list(range(7))  # from the start, for want of prefill; not beyond the last


def test_known_pixels_before_the_hole_cost_one_pass():
    likelihood = Categorical(4)
    network = network_for(likelihood, 1, True, 3, 3, kind=Prefilled)
    levels, hole = blank(2, 1, 3, 3)
    hole[:, :1] = hole[:, 2] = False
    draw_pixels(network, likelihood, levels, hole, raster_order(3, 3), seeded())
    assert network.prefilled == 3
    assert network.steps == [3, 4, 5]


def test_noise_drawn_ahead_in_parts_is_the_same(monkeypatch):
    likelihood = Categorical(4)
    network = network_for(likelihood, 1, True)
    whole = draw_pixels(network, likelihood, *blank(4, 1), raster_order(3, 2), seeded())
    monkeypatch.setattr(sampling, "_NOISE_AT_ONCE", 40)
    assert torch.equal(draw_pixels(network, likelihood, *blank(4, 1), raster_order(3, 2), seeded()), whole)


def test_labels_reach_the_network():
    likelihood = Bernoulli()
    network = network_for(likelihood, 1, True)
    labels = torch.tensor([100.0, -100.0])
    for method in ("cached", "naive"):
        drawn = draw_pixels(
            network, likelihood, *blank(2, 1), raster_order(3, 2), seeded(), settings={"labels": labels}, method=method
        )
        assert (drawn[0] == 1).all()
        assert (drawn[1] == 0).all()


class Guided(Linear):
    """The same, of three classes and none, whose numbers move every other parameter."""

    null_label = 3

    def forward(self, images, labels=None):
        of_label = torch.tensor([-1.0, 0.5, 2.0, 0.1])[labels].view(-1, 1, 1, 1, 1)
        return super().forward(images) + of_label * torch.tensor([1.0, 0.0, -1.0]).view(3, 1, 1, 1)


def guided(channels=1, width=2):
    return network_for(Categorical(3), channels, True, 1, width, kind=Guided)


@pytest.mark.parametrize("method", ["cached", "naive"])
def test_guidance_leads_away_from_pictures_without_a_label(method):
    """Codes of two pixels are drawn with the probabilities of null + s (cond - null), pixel by pixel."""
    network, likelihood, number, s = guided(), Categorical(3), 20_000, 2.5
    every = torch.tensor(list(itertools.product(range(3), repeat=2))).view(-1, 1, 1, 2)
    pictures = levels_to_images(every, 3)
    with torch.no_grad():
        cond, null = (network(pictures, torch.full((9,), label)) for label in (2, 3))
        p = likelihood.log_prob(null + s * (cond - null), every).flatten(1).sum(1).exp().double()
        plain = likelihood.log_prob(cond, every).flatten(1).sum(1).exp().double()
    assert (p - plain).abs().max() > 0.05
    settings = {"labels": torch.full((number,), 2)}
    blanks, order = blank(number, 1, 1, 2), raster_order(1, 2)
    drawn = draw_pixels(network, likelihood, *blanks, order, seeded(), settings=settings, guidance=s, method=method)
    places = drawn.flatten(1) @ torch.tensor([3, 1])
    shares = torch.bincount(places, minlength=9).double() / number
    assert ((shares - p).abs() < 5 * (p * (1 - p) / number).sqrt()).all()


def test_settings_that_change_nothing_change_no_bit():
    network, likelihood = guided(2, 3), Categorical(3)
    labels = torch.tensor([0, 1, 2, 0, 1])

    def draw(**settings):
        given, order = {"labels": labels}, raster_order(1, 3)
        return draw_pixels(network, likelihood, *blank(5, 2, 1, 3), order, seeded(), settings=given, **settings)

    plain = draw()
    for settings in ({"guidance": 1.0}, {"top_k": 3}, {"top_p": 1.0}, {"top_k": 3, "top_p": 1.0, "guidance": 1.0}):
        assert torch.equal(draw(**settings), plain)
    # And those that do, change it by either method alike.
    chosen = {"top_k": 2, "top_p": 0.9, "guidance": 3.0, "temperature": 1.5}
    assert torch.equal(draw(**chosen), draw(**chosen, method="naive"))
    assert not torch.equal(draw(**chosen), plain)
    assert torch.equal(draw(top_k=1), draw(temperature=0.0))
    assert torch.equal(draw(guidance=0.0, temperature=0.0)[0], draw(guidance=0.0, temperature=0.0)[1])  # of no label


def test_known_pixels_are_known_with_and_without_the_label():
    network, likelihood = guided(1, 3), Categorical(3)
    levels, hole = blank(4, 1, 1, 3)
    levels[..., 1], hole[..., 1] = 2, False
    settings = {"labels": torch.tensor([0, 1, 2, 2])}
    drawn = [
        draw_pixels(network, likelihood, levels, hole, raster_order(1, 3), seeded(), settings=settings, guidance=2.0,
                    method=method)
        for method in ("cached", "naive")
    ]  # fmt: skip
    assert torch.equal(*drawn)
    assert (drawn[0][..., 1] == 2).all()


def test_the_likeliest_of_black_and_white():
    likelihood = Bernoulli()
    network = network_for(likelihood, 1, True)
    drawn = [draw_pixels(network, likelihood, *blank(50, 1), raster_order(3, 2), seeded(), **settings) for settings in (
        {}, {"top_k": 2}, {"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.5}
    )]  # fmt: skip
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[2], drawn[3])
    assert torch.equal(drawn[2], drawn[4])  # the likelier one of two has half of the probability or more
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_k": 4}, "1 to 3, or None"),
        ({"top_k": 0}, "1 to 3, or None"),
        ({"top_p": 0.0}, "above 0 and at most 1"),
        ({"guidance": 2.0}, "trained without dropping labels"),
        ({"guidance": -1.0}, "guidance must be"),
    ],
)
def test_choices_that_cannot_be(settings, words):
    network = network_for(Categorical(3), 1, True)
    with pytest.raises(ValueError, match=words):
        draw_pixels(network, Categorical(3), *blank(2, 1), raster_order(3, 2), seeded(), **settings)


def test_a_mixture_has_no_likeliest_levels():
    likelihood = LogisticMixture(5, 2)
    network = network_for(likelihood, 3, False)
    with pytest.raises(ValueError, match="top_k and top_p choose among the levels of a softmax"):
        draw_pixels(network, likelihood, *blank(2, 3), raster_order(3, 2), seeded(), top_k=2)


def test_weights_in_half_precision_do_not_cost_levels():
    likelihood = LogisticMixture(256, 2)
    network = network_for(likelihood, 1, False).bfloat16()
    drawn = draw_pixels(network, likelihood, *blank(4, 1), raster_order(3, 2), seeded())
    assert drawn.min() >= 0
    assert drawn.max() < 256
    assert len(drawn.unique()) > 8


def test_a_step_without_run_and_a_network_without_steps():
    class Plain(Linear):
        def step(self, cache, position):
            return super().step(cache, position)

    likelihood = Bernoulli()
    network, plain = (network_for(likelihood, 1, True, kind=kind) for kind in (Linear, Plain))
    expected = draw_pixels(network, likelihood, *blank(3, 1), raster_order(3, 2), seeded())
    assert torch.equal(draw_pixels(plain, likelihood, *blank(3, 1), raster_order(3, 2), seeded()), expected)
    with pytest.raises(TypeError, match=r"Conv2d has no cached steps"):
        draw_pixels(nn.Conv2d(1, 1, 1), likelihood, *blank(3, 1), raster_order(3, 2), seeded())
    with pytest.raises(ValueError, match="cached"):
        draw_pixels(network, likelihood, *blank(3, 1), raster_order(3, 2), seeded(), method="fast")
    with pytest.raises(ValueError, match="temperature"):
        draw_pixels(network, likelihood, *blank(3, 1), raster_order(3, 2), seeded(), temperature=-1)


@pytest.mark.parametrize(("likelihood", "channels", "by_channel"), [LIKELIHOODS[1], LIKELIHOODS[4]])
def test_compiled_pieces_draw_the_same(likelihood, channels, by_channel, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda piece, **options: compiled.append((piece.__name__, options)) or piece)
    network = network_for(likelihood, channels, by_channel)
    expected = draw_pixels(network, likelihood, *blank(3, channels), raster_order(3, 2), seeded())
    drawn = draw_pixels(network, likelihood, *blank(3, channels), raster_order(3, 2), seeded(), compile=True)
    assert torch.equal(drawn, expected)
    options = {"fullgraph": True, "dynamic": False, "options": {"inplace_buffers": False}}
    assert compiled == [("parameters_at", options), ("write", options)]  # each once, for all positions


@pytest.mark.parametrize("method", ["cached", "naive"])
def test_autocast_around_it_makes_no_difference(method):
    likelihood = Categorical(4)
    network = network_for(likelihood, 1, True)
    expected = draw_pixels(network, likelihood, *blank(3, 1), raster_order(3, 2), seeded(), method=method)
    with torch.autocast("cpu", torch.bfloat16):
        drawn = draw_pixels(network, likelihood, *blank(3, 1), raster_order(3, 2), seeded(), method=method)
    assert torch.equal(drawn, expected)


def test_a_long_sampling_shows_how_far_it_is(monkeypatch, capsys):
    monkeypatch.setattr(sampling, "_SILENCE", 0.0)
    monkeypatch.setattr(sampling, "tqdm", partial(sampling.tqdm, mininterval=0))  # and as if someone watched
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    likelihood = Bernoulli()
    draw_pixels(network_for(likelihood, 1, True), likelihood, *blank(3, 1), raster_order(3, 2), seeded())
    assert "pixels" in (told := capsys.readouterr().err)
    assert "/6" in told


@pytest.mark.gpu
def test_recorded_graphs_draw_the_same():
    likelihood = Categorical(4)
    network = network_for(likelihood, 2, True).cuda()
    cached, naive = (
        draw_pixels(network, likelihood, *blank(5, 2), raster_order(3, 2), seeded(), method=method)
        for method in ("cached", "naive")
    )
    assert torch.equal(cached, naive)
    assert len(set(network.steps)) == 6
