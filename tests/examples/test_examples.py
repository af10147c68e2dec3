"""The mathematics that the example scripts stand on; the scripts themselves check their claims when they run."""

import functools
import importlib
import math
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lightning_gen.data.toy import Line, Mixture
from lightning_gen.layers import VectorQuantizer
from lightning_gen.losses import FDivergence, Minimax, NonSaturating
from lightning_gen.metrics.frechet import Gaussian, frechet_distance
from lightning_gen.metrics.scores import kernel_distance
from lightning_gen.models import VQVAE2, CodePrior
from lightning_gen.networks import GPTNetwork, VQVAE2Decoder, VQVAE2Encoder
from lightning_gen.testing import receptive_field_report

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != "plot")


@pytest.fixture(autouse=True)
def beside_the_scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield
    for name in [*SCRIPTS, "plot"]:
        sys.modules.pop(name, None)


def script(name):
    return importlib.import_module(name)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_short_and_listed_with_its_picture(name):
    source, readme = (EXAMPLES / f"{name}.py").read_text(), (EXAMPLES / "README.md").read_text()
    assert len(source.splitlines()) < 120
    assert f"python examples/{name}.py" in source
    assert f"{name}.py" in readme


def test_every_loss_gives_the_generator_its_own_gradient():
    """With D = s the same for all fakes, minimax passes on a share sigmoid(s), non-saturating sigmoid(-s)."""
    vanishing = script("vanishing_gradients")

    class Constant(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = nn.Parameter(torch.tensor(value))

        def forward(self, latents):
            return self.value.expand(len(latents))

    generator, latents = Constant(-3.0), torch.zeros(8, 2)
    share = torch.sigmoid(torch.tensor(-6.0)).item()
    norms = [
        vanishing.gradient_norm(loss, generator, lambda x: 2 * x, latents) for loss in (Minimax(), NonSaturating())
    ]
    assert norms == pytest.approx([2 * share, 2 * (1 - share)], rel=1e-5)


def test_the_best_discriminator_between_two_gaussians_saturates_as_computed_by_hand():
    """The logit is -16 x, so |d/dx log(1 - D*)| = 16 sigmoid(-16 x): 16 exp(-32) at the fakes' mean."""
    critic = script("optimal_critic")
    x = torch.tensor([[-2.0], [0.0], [2.0]], dtype=torch.float64)
    assert critic.best_score(x).tolist() == pytest.approx([32, 0, -32])
    slopes = critic.slopes(critic.best_score, x, generator_loss=True).tolist()
    assert slopes == pytest.approx([16, 8, 16 * math.exp(-32)])
    assert critic.slopes(critic.best_score, x, generator_loss=False).tolist() == pytest.approx([16, 16, 16])


def test_distances_between_lines_and_gaussians():
    distances = script("distances")
    assert distances.line_divergences(0.0) == (0, 0, 0)
    assert distances.line_divergences(-0.3) == (math.inf, math.log(2), 0.3)
    assert distances.exact_distance(Mixture([[-0.5]], 0.25), Mixture([[0.5]], 0.25)) == pytest.approx(1, abs=2e-3)
    assert distances.exact_distance(Line(0.0), Line(0.4)) == pytest.approx(0.4, rel=0.02)


def test_a_critic_measures_the_distance_of_two_lines():
    torch.set_num_threads(1)
    estimate, slope = script("distances").critic_estimate(Line(0.0), Line(0.5), steps=150)
    assert estimate == pytest.approx(0.5, rel=0.05)
    assert slope < 1.1


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "jensen_shannon", "pearson"])
def test_the_mixture_has_the_optima_that_the_fgan_paper_prints(name):
    fgan = script("fgan_table")
    mu, sigma, value = fgan.optimum(FDivergence(name))
    paper = fgan.PAPER[name]
    assert [value, mu, sigma] == pytest.approx([paper[0], paper[2], paper[4]], abs=1e-3)


def test_the_bound_is_tight_at_the_best_score_and_below_elsewhere():
    """For KL the best V is f'(p / q) = 1 + log p / q."""
    fgan, f = script("fgan_table"), FDivergence("kl")
    mu, sigma = torch.tensor(1.0, dtype=torch.float64), torch.tensor(1.8, dtype=torch.float64)

    def best(x):
        return 1 + fgan.DATA.log_prob(x.double()) - torch.distributions.Normal(mu, sigma).log_prob(x.double()).flatten()

    exact = fgan.divergence(f, mu, sigma).item()
    assert fgan.bound(f, best, mu, sigma).item() == pytest.approx(exact, abs=1e-6)
    assert fgan.bound(f, lambda x: best(x) + 0.1, mu, sigma).item() < exact - 1e-3


def test_quadrature_gives_the_divergence_of_two_gaussians(monkeypatch):
    fgan = script("fgan_table")
    monkeypatch.setattr(fgan, "DATA", Mixture([[2.0]], 1.5))
    mu, sigma = torch.tensor(1.0, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64)
    by_hand = math.log(2.0 / 1.5) + (1.5**2 + 1) / (2 * 2.0**2) - 0.5
    assert fgan.divergence(FDivergence("kl"), mu, sigma).item() == pytest.approx(by_hand, abs=1e-6)


def test_the_value_of_the_game_is_minus_log_4_for_the_data_and_0_far_away():
    game = script("optimal_value")
    assert game.best_value(game.DATA) == pytest.approx(-math.log(4), abs=1e-9)
    assert game.best_value(Mixture([[-9.0]], 0.5)) == pytest.approx(0, abs=1e-9)
    assert -math.log(4) < game.best_value(Mixture([[1.1]], 0.5)) < -1.37


def test_the_law_of_a_linear_generator():
    game = script("optimal_value")
    generator = nn.Linear(1, 1)
    nn.init.constant_(generator.weight, -0.5)
    nn.init.constant_(generator.bias, 1.0)
    law = game.law(generator)
    assert (law.means.item(), law.std.item()) == (1.0, 0.5)
    blind = nn.Sequential(nn.Flatten(0), nn.Threshold(math.inf, 0.0))
    assert game.value(generator, blind, 100) == pytest.approx(-math.log(4))


def test_every_game_of_the_coverage_table_can_be_played():
    coverage = script("mode_coverage")
    for name in coverage.GAMES:
        samples = coverage.play("ring", name, batches=5)
        assert samples.shape == (2500, 2)
        assert samples.isfinite().all()


def test_the_landscape_of_a_plane_has_its_slope_and_its_top_at_the_top():
    landscape = script("spectral_norm_landscape")
    scores, slopes = landscape.landscape(lambda points: points @ torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(slopes, torch.full_like(slopes, 5.0))
    assert scores[0, -1].item() == pytest.approx(7 * landscape.VIEW)  # right and up
    assert scores[-1, 0].item() == pytest.approx(-7 * landscape.VIEW)


def test_a_normalised_discriminator_of_few_steps_is_1_lipschitz():
    landscape = script("spectral_norm_landscape")
    judge = landscape.train("reshape", steps=20)
    assert list(landscape.layer_norms(judge).values()) == pytest.approx([1] * 4, abs=0.05)  # 20 steps are few
    assert landscape.landscape(judge)[1].max() <= 1.01
    assert landscape.layer_norms(landscape.train("none", steps=1)) == {}


def test_lipschitz_quotients_and_gradients_of_known_functions():
    """With |w| = 1, sin(3 <w, x>) is steepest, 3, where x is; sigmoid(4 <w, x> - 10) is, 1, where one must climb to."""
    lipschitz = script("lipschitz_constants")
    torch.manual_seed(0)
    w = nn.functional.normalize(torch.randn(48), dim=0)
    images = torch.rand(32, 3, 4, 4) * 2 - 1
    quotients = lipschitz.quotients(lambda x: (3 * x.flatten(1) @ w).sin(), images, 1000)
    assert len(quotients) == 1000
    assert 0.5 < quotients.max() <= 3.01  # few pairs differ in the direction of w
    assert lipschitz.largest_gradient(lambda x: (4 * x.flatten(1) @ w - 10).sigmoid(), images) == pytest.approx(
        1, rel=0.01
    )


@pytest.mark.parametrize("std", [2**0.5, 2.0])
def test_the_inception_score_of_two_points_and_its_gradient_by_hand(std):
    """With equally many of each class p(y = 1 | x) is the sigmoid of z = 2 x / std^2, and the score 2 exp(-entropy)."""
    failure = script("inception_score_failure")
    points = torch.tensor([-3.0, 3.0], dtype=torch.float64)
    z = 2 * 3 / std**2
    p = 1 / (1 + math.exp(-z))
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    assert failure.score(points, std) == pytest.approx(2 * math.exp(-entropy), rel=1e-12)
    by_hand = 2 / std**2 * z * p * (1 - p)
    assert failure.gradients(points, std).tolist() == pytest.approx([-by_hand, by_hand], rel=1e-12)


def test_the_gradient_of_the_score_is_that_of_its_logarithm():
    failure = script("inception_score_failure")
    points = torch.randn(20, generator=torch.Generator().manual_seed(0)).double()
    gradients, step = failure.gradients(points, 2.0), 1e-5
    for i in range(3):
        moved = [points.index_add(0, torch.tensor([i]), torch.tensor([d]).double()) for d in (step, -step)]
        up, down = (math.log(failure.score(each, 2.0)) for each in moved)
        assert len(points) * (up - down) / (2 * step) == pytest.approx(gradients[i].item(), rel=1e-5)


def test_the_points_that_climb_are_drawn_from_the_data_and_move_outward():
    failure = script("inception_score_failure")
    points = failure.draw(2.0, seed=0)
    assert points.mean().item() == pytest.approx(0, abs=1e-12)
    assert points.var().item() == pytest.approx(1 + 2.0**2, rel=0.05)
    path = failure.climb(points[::100], 2.0)
    travelled = failure.RATE * failure.STEPS
    torch.testing.assert_close(path[-1].abs(), points[::100].abs() + travelled)
    torch.testing.assert_close(path[-1].sign(), points[::100].sign())


def test_the_true_distances_of_the_models_whose_samples_are_counted():
    counted = script("fid_and_sample_count")
    for s in (0.5, 1.0, 1.1):
        model = Gaussian(2, torch.zeros(counted.D), s**2 * torch.eye(counted.D, dtype=torch.float64))
        assert frechet_distance(counted.DATA, model) == pytest.approx(counted.distance(s), abs=1e-9)
    generator = torch.Generator().manual_seed(0)
    x, y = counted.samples(1.0, 4000, generator), counted.samples(2.0, 4000, generator)
    assert kernel_distance(x, y).value == pytest.approx(counted.squared_mmd(2.0), rel=0.05)


def test_the_bias_of_the_fid_is_the_one_of_theory():
    """From 20 sets of 1000, c has an error of 1 %. The mean's share, which could be forgotten, is 5 % or more."""
    counted, generator = script("fid_and_sample_count"), torch.Generator().manual_seed(0)
    for s in counted.MODELS.values():
        sets = [Gaussian.fit(counted.samples(s, 1000, generator)) for _ in range(20)]
        bias = sum(frechet_distance(counted.DATA, each) for each in sets) / len(sets) - counted.distance(s)
        assert 1000 * bias == pytest.approx(counted.bias(s), rel=0.03)


def test_every_corruption_keeps_shape_and_type_and_strength_0_changes_nothing():
    corruption = script("fid_under_corruption")
    images = corruption.draw(24)
    for title, (_, step, corrupt, _) in corruption.CORRUPTIONS.items():
        corrupted = corrupt(images, step)
        assert (corrupted.shape, corrupted.dtype) == (images.shape, torch.uint8), title
        assert not corrupted.equal(images), title
    for title in ("Gaussian noise", "Salt and pepper", "Truncation", "Pictures by night", "Missing modes"):
        assert corruption.CORRUPTIONS[title][2](images, 0).equal(images), title


def test_corruptions_do_what_their_words_say():
    corruption = script("fid_under_corruption")
    corrupt = {title: row[2] for title, row in corruption.CORRUPTIONS.items()}
    gray, images = torch.full((200, 3, 32, 32), 128, dtype=torch.uint8), corruption.draw(200)
    assert corrupt["Gaussian blur"](gray, 2.0).equal(gray)
    assert (corrupt["Gaussian noise"](gray, 20).float() - 128).std().item() == pytest.approx(20, rel=0.01)
    salted = corrupt["Salt and pepper"](gray, 4).float()
    assert [(salted == level).float().mean().item() for level in (0, 255)] == pytest.approx([0.02, 0.02], rel=0.05)
    assert corrupt["Truncation"](torch.tensor([0, 127, 255], dtype=torch.uint8), 4).tolist() == [0, 112, 240]
    errors = [(corrupt["JPEG"](images, lost).float() - images).abs().mean().item() for lost in (0, 80)]
    assert errors[0] < 3 < 9 < errors[1]  # of 255 levels
    assert len(corrupt["Repeated pictures"](images, 4).unique(dim=0)) == 13  # 200 / 16, rounded up
    by_night = (corrupt["Pictures by night"](images, 20) != images).flatten(1).any(1)
    assert by_night.float().mean().item() == pytest.approx(0.2, abs=0.08)
    red, green, _ = corruption.draw(200, colors=4)[:, :, 16:].float().mean((0, 2, 3))
    assert green > 1.2 * red  # without houses the lower half is grass
    twice = corruption.draw(5, size=64).float()
    area = corrupt["Resize kernel"](images[:5], 1).float()
    torch.testing.assert_close(area, nn.functional.avg_pool2d(twice, 2), atol=1.0, rtol=0)


def test_the_likelihood_curve_is_that_of_densities_written_out():
    """With two points at 0 and 1, each left out has the other alone: N(1; 0, h^2)."""
    density = script("kernel_density")
    train, held_out = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0.5]).view(1, 1, 1, 1)
    for h in (0.5, 2.0):
        normal = torch.distributions.Normal(0.0, h)
        (left_out,), (new,) = density.curves(train, held_out, [h])
        assert left_out == pytest.approx(normal.log_prob(torch.tensor(1.0)).item(), rel=1e-6)
        assert new == pytest.approx(normal.log_prob(torch.tensor(0.5)).item(), rel=1e-6)


def test_the_chosen_width_is_the_top_of_its_curve():
    density = script("kernel_density")
    points = density.draw(density.DATA["the plane"], 60, seed=0)
    chosen = density.fit(points).width.item()
    scores, _ = density.curves(points, points[:1], [chosen / 1.3, chosen, chosen * 1.3])
    assert max(scores) == scores[1]


@pytest.mark.parametrize("name", ["PixelCNN", "Row LSTM", "Diagonal BiLSTM", "Gated PixelCNN", "PixelCNN++", "LMConv"])
def test_the_bits_of_the_hidden_half_are_of_a_distribution_over_all_halves(name, monkeypatch):
    """Of 4 x 4 black and white pixels 2 are hidden: the four ways to fill them have probabilities that sum to 1."""
    completions = script("completions")
    known = torch.ones(4, 4, dtype=torch.bool)
    known[3, 2:] = False
    monkeypatch.setattr(completions, "KNOWN", known)
    make, _, _, size = completions.MODELS[name]
    torch.manual_seed(0)
    model = make((1, 4, 4), num_levels=2, **size)
    image = torch.randint(0, 2, (1, 1, 4, 4)) * 2.0 - 1
    probabilities = []
    for pixels in ([-1, -1], [-1, 1], [1, -1], [1, 1]):
        image[0, 0, ~known] = torch.tensor(pixels, dtype=torch.float32)
        probabilities.append(2 ** (-2 * completions.bits(model, image)))
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)
    assert max(probabilities) - min(probabilities) > 1e-3  # the models are not trained, but not flat either


def test_completions_without_a_model_keep_what_is_known_and_take_the_rest_from_training():
    completions = script("completions")
    train = torch.stack([torch.full((1, 8, 8), shade) for shade in (-1.0, 0.0, 1.0)])
    images = torch.tensor([-0.9, 0.1, 0.6]).view(3, 1, 1, 1).expand(3, 1, 8, 8)
    found = completions.without_model(images, train)
    for name, filled in found.items():
        assert filled.shape == (2, 3, 1, 8, 8), name
        assert (filled == images)[..., :4, :].all(), name
        assert torch.isin(filled[..., 4:, :], train).all(), name
    halves = {name: filled[..., 4:, :].flatten(-3) for name, filled in found.items()}
    assert halves["nearest half"].equal(torch.tensor([-1.0, 0.0, 1.0]).view(3, 1).expand(2, 3, 32))
    assert (halves["any half"] == halves["any half"][..., :1]).all()
    assert not (halves["independent pixels"] == halves["independent pixels"][..., :1]).all(-1).any()


def test_the_nearest_of_points_in_the_plane():
    others = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]])
    points = torch.tensor([[[1.9, 0.0], [2.1, 0.0]], [[0.0, 1.6], [9.0, 9.0]]])
    assert script("completions").nearest(points, others).tolist() == [[0, 1], [2, 1]]


def test_the_wedge_has_the_size_that_is_counted_by_hand():
    """With c columns to the right of the pixel, u rows up, it is c - u - 2 wide: with 10, 7 + 6 + ... + 1."""
    blind = script("blind_spot")
    assert blind.WEDGE.sum(1).tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7] + [0] * 7
    assert (blind.WEDGE & blind.within(5)).nonzero().tolist() == [[7, 14], [8, 13], [8, 14]]
    assert blind.LAST_ABOVE.nonzero().tolist() == [[8, 19]]


@pytest.mark.parametrize("layers", [1, 3])
def test_what_is_seen_to_the_right_has_its_closed_form(layers):
    """Each layer wins a column, for which all but the right network pay with a row; the first wins three for one."""
    blind = script("blind_spot")
    torch.manual_seed(0)
    for network, wins, rows in [
        (blind.pixelcnn(layers), True, 3 + layers),
        (blind.gated(layers), False, 4 + layers),
        (blind.gated(layers, mistaken=True), True, 4 + 2 * layers),
    ]:
        field = receptive_field_report(network, blind.SHAPE, (blind.ROW, blind.COLUMN))
        assert not field.leaks.any()
        seen = field.influence[: blind.ROW, blind.COLUMN + 1 :].sum(1).flip(0).tolist()  # the row above first
        columns = 3 + layers
        expected = [min(up + 2, columns) if wins else columns for up in range(1, blind.ROW + 1)]
        assert seen == [number if up <= rows else 0 for up, number in enumerate(expected, start=1)]


def test_neighbours_of_a_small_picture_counted_by_hand():
    """In 2 x 3 pixels are 7 pairs side by side and 4 across corners. The raster jumps once."""
    generation = script("generation_orders")
    order = torch.arange(6)
    assert generation.jumps(order, 3).tolist() == [False, False, True, False, False]
    assert generation.count(order, 2, 3)[:2] == (1, 11)
    kinds = generation.kinds(order, 2, 3)
    assert kinds[:, 0].tolist() == [0, 0, 0, 0, 5, 1, 0, 1, 1]  # the first sees nothing
    assert (kinds[:, 5] > 1).nonzero().flatten().tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize(
    "name", ["Raster", "S-curve", "Hilbert", "Generalised Hilbert", "Random", "S-curve, hole last"]
)
def test_what_the_kinds_of_taps_say_is_what_the_order_says(name):
    generation = script("generation_orders")
    curve, height, width = generation.ORDERS[name]
    order, known = curve(height, width), generation.known(height, width)
    kinds, time = generation.kinds(order, height, width).view(9, height, width), order.argsort().view(height, width)
    given = beside = 0
    for row, column, tap in np.ndindex(height, width, 9):
        other = row + tap // 3 - 1, column + tap % 3 - 1
        kind = kinds[tap, row, column]
        if not (0 <= other[0] < height and 0 <= other[1] < width):
            assert kind == 0
        elif tap == 4:
            assert kind == 5
        else:
            across = bool(known[other] & ~known[row, column])
            assert kind == 1 + (time[other] < time[row, column]) + 2 * across
            beside += across
            given += across and bool(time[other] < time[row, column])
    assert generation.count(order, height, width)[2:] == (given, beside)


def test_a_raster_and_its_reverse_share_what_there_is_to_see():
    generation = script("generation_orders")
    order = torch.arange(80)
    (_, _, seen, beside), (_, _, reverse, _) = (generation.count(each, 8, 10) for each in (order, order.flip(0)))
    assert seen == reverse == beside / 2
    assert beside == 4 * 5 + 3 * (2 * (4 - 2) + 2 * (6 - 2))  # of a hole of 4 x 6: corners see 5 known ones, edges 3


def test_the_linear_gaussian_model_follows_the_rule_of_bayes():
    """log p(x, z) - log p(z | x) is log p(x), whatever z."""
    elbo = script("elbo_gap")
    images, latents = torch.randn(3, elbo.PIXELS).double(), torch.randn(4, 3, elbo.LATENTS).double()
    found = elbo.joint(images, latents) - elbo.posterior(images).log_prob(latents)
    torch.testing.assert_close(found, elbo.evidence().log_prob(images).expand(4, 3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("off", "width"), [(0.0, 1.0), (0.7, 1.3), (-0.4, 0.8)])
def test_the_distance_by_which_a_bound_is_short_equals_its_quadrature(off, width):
    """One latent, p = N(0, 1): E_q (p / q)^2 - 1 by the trapezoidal rule."""
    elbo = script("elbo_gap")
    p, q = (
        torch.distributions.MultivariateNormal(
            torch.tensor([[mean]]).double(), scale_tril=torch.tensor([[[std]]]).double()
        )
        for mean, std in ((0.0, 1.0), (off, width))
    )
    z = torch.linspace(-30, 30, 60001).double()[:, None, None]
    by_hand = torch.trapezoid((2 * p.log_prob(z) - q.log_prob(z)).exp().flatten(), z.flatten()).item() - 1
    assert elbo.chi_squared(p, q) == pytest.approx(by_hand, abs=1e-9)


def test_features_spread_and_then_move_away():
    collapse = script("codebook_collapse")
    spreads, middles = [], []
    for step in (0, 300, 600, 620):
        tokens = collapse.features(step, 4000, torch.Generator().manual_seed(0))
        spreads.append(tokens.std(0).mean().item())
        middles.append(tokens.mean(0))
    assert spreads[0] / spreads[1] == pytest.approx(0.1, rel=0.05)
    assert spreads[1:] == pytest.approx([spreads[1]] * 3, rel=0.05)
    assert (middles[2] - middles[1]).norm() < 0.2
    assert (middles[3] - middles[2]).norm() == pytest.approx(2 * middles[2].norm().item(), rel=0.1)


def test_what_is_measured_of_a_codebook_that_is_the_clusters_themselves(monkeypatch):
    collapse = script("codebook_collapse")
    monkeypatch.setattr(collapse, "features", lambda step, number, generator: torch.eye(16)[torch.arange(number) % 16])
    quantizer = collapse.VectorQuantizer(16, collapse.CODES)
    quantizer.codebook[:16], quantizer.codebook[16:] = torch.eye(16), 9.0
    assert collapse.measure(quantizer, 0) == pytest.approx((16 / collapse.CODES, 16, 0))
    assert quantizer.training


def test_a_hull_has_the_corners_and_the_distances_that_are_seen():
    convex = script("convex_hull")
    points = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0], [2.0, 2.0], [0.0, 2.0], [1.0, 0.0], [0.5, 1.5]])
    corners = convex.hull(points)
    assert corners.tolist() == [[0, 0], [2, 0], [2, 2], [0, 2]]
    places = torch.tensor([[1.0, 1.0], [2.5, 1.0], [1.0, 0.0], [0.25, 1.0], [1.0, -3.0]])
    assert convex.outside(places, corners).tolist() == [-1, 0.5, 0, -0.25, 3]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_weights_of_two_categories_are_those_of_a_logistic_number(temperature):
    """The first is sigmoid((logit p + L) / T), so that P(w < 1/2) is 1 - p, and at T = 1 its density is known."""
    softmax, p, count = script("gumbel_softmax"), 0.3, 100_000
    weights = softmax.weights_of(torch.tensor([p, 1 - p]), temperature, count)
    torch.testing.assert_close(weights.sum(1), torch.ones(count))
    first = weights[:, 0]
    logistic = (first.double().logit() * temperature - math.log(p / (1 - p))).sigmoid()  # uniform, if it is logistic
    spread = 4 / math.sqrt(count)  # of a share among so many draws, at most half of this
    assert logistic.mean().item() == pytest.approx(0.5, abs=spread)
    assert (logistic < 0.1).double().mean().item() == pytest.approx(0.1, abs=spread)
    assert softmax.chi_squared(weights, torch.tensor([p, 1 - p])) < 15.1  # once in 10,000 times above
    assert softmax.chi_squared(weights, torch.tensor([0.32, 0.68])) > 15.1


def test_distances_between_distributions_by_hand():
    softmax = script("gumbel_softmax")
    assert softmax.distance(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.25, 0.5])) == 0.5
    assert softmax.chi_squared(torch.eye(2)[[0, 0, 0, 1]], torch.tensor([0.5, 0.5])) == 1.0


@pytest.mark.parametrize("name", ["VAE", "VQ-VAE", "GumbelVAE", "VQGAN"])
def test_every_autoencoder_has_so_many_bits(name, monkeypatch):
    """8 x 8 codes of 8 bits; those of a VAE that has learned nothing are few."""
    equal = script("equal_bits")
    make, _ = equal.MODELS[name]
    without = {"perceptual_weight": 0.0, "discriminator_start": 1, "discriminator_warmup": 0}
    make = functools.partial(make, **without) if name == "VQGAN" else make
    monkeypatch.setitem(equal.MODELS, name, (make, 2))
    monkeypatch.setattr(equal, "scenes", lambda split: torch.rand(64, *equal.SHAPE) * 2 - 1)
    pictures, bits = equal.learn(name)
    assert pictures.shape == (64, *equal.SHAPE)
    assert not pictures.requires_grad
    model = make()
    if name == "VAE":
        assert 0 < bits < 100
    else:
        assert bits == math.prod(model.code_shape) * math.log2(model.num_codes)


def test_squares_of_few_colours_are_kept():
    equal = script("equal_bits")
    colours = torch.rand(8, 3) * 2 - 1
    images = colours[torch.randint(8, (40, 8, 8))].permute(0, 3, 1, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(equal.squares(images, images), images, rtol=0, atol=1e-5)


def test_a_chart_draws_where_the_numbers_are(tmp_path):
    plot = script("plot")
    chart = plot.Chart("title", "x", "y", (0, 10), (1e-4, 1e4), log_y=True)
    chart.dots([5.0, math.nan], [1.0, 1.0], "", "#ff0000", radius=5)
    chart.line([0.0, 10.0], [math.inf, 1.0], "", "#00ff00")  # has a gap only
    plot.save(tmp_path / "chart.png", [chart])
    pixels = np.asarray(Image.open(tmp_path / "chart.png")).astype(int)
    rows, columns = np.nonzero((pixels[..., 0] > 200) & (pixels[..., 1] < 60))
    frame_height, frame_width = 400 - 52 - 44, 560 - 62 - 16
    assert rows.mean() == pytest.approx(52 + frame_height / 2, abs=1)  # 1 is halfway between 1e-4 and 1e4
    assert columns.mean() == pytest.approx(62 + frame_width / 2, abs=1)
    assert not ((pixels[..., 1] > 200) & (pixels[..., 0] < 60)).any()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-1.1, 1.1), (0.4, 1.2), (-6, 12), (0, 1500), (0, 0.58)])
def test_ticks_are_round_and_within(low, high):
    ticks = script("plot")._ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert low <= ticks[0] <= ticks[-1] <= high
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_a_table_keeps_words_and_rounds_numbers(tmp_path):
    script("plot").write_table(tmp_path / "t.csv", ["name", "value"], [("KL, reverse", 1 / 3), ("n", 8)])
    assert (tmp_path / "t.csv").read_text() == 'name,value\n"KL, reverse",0.333333\nn,8\n'


def test_codes_drawn_without_a_prior_are_as_often_as_they_are_used():
    """At each place, or anywhere; and uniformly, whether used or not."""
    places, number = torch.tensor([[0, 3, 5], [0, 3, 7], [0, 4, 5], [0, 3, 5]]), 8000
    found = script("what_a_prior_adds").drawn(places, number)
    assert all(codes.shape == (number, 3) for codes in found.values())
    of_place, anywhere = found["by use there"], found["by use"]
    assert (of_place[:, 0] == 0).all()
    assert set(of_place[:, 1].tolist()) == {3, 4}
    assert (of_place[:, 1] == 3).double().mean().item() == pytest.approx(3 / 4, abs=0.03)  # 6 standard deviations
    both = ((of_place[:, 1] == 4) & (of_place[:, 2] == 7)).double().mean().item()  # never together in a picture
    assert both == pytest.approx(1 / 16, abs=0.017)
    assert (anywhere == 0).double().mean().item() == pytest.approx(1 / 3, abs=0.02)
    assert len(found["uniform"].unique()) == 128


def test_differences_of_pictures_of_one_caption_by_hand():
    said = script("what_was_said")
    pictures = torch.tensor([[0.0, 0.3], [1.0, 1.0]])[..., None, None, None].expand(-1, -1, 3, 4, 4)
    assert said.spread(pictures) == pytest.approx(math.sqrt(0.3**2 / 2))


def test_fine_codes_are_redrawn_and_coarse_ones_stay():
    details = script("redrawn_details")
    parts = partial(VQVAE2Encoder, filters=4, residual_filters=2, blocks=1), partial(VQVAE2Decoder, filters=4)
    torch.manual_seed(0)
    first = VQVAE2((3, 16, 16), *parts, partial(VectorQuantizer, num_codes=8), channels=4)
    prior = CodePrior((3, 16, 16), first, partial(GPTNetwork, width=8, layers=1, heads=2)).eval()
    given = []
    prior.to_images = lambda maps: given.append(maps) or torch.zeros(5, 3, 16, 16)
    images = torch.rand(5, 3, 16, 16) * 2 - 1
    for seed in (0, 0, 1):
        details.redrawn(prior, images, seed)
    (top, bottom), again, other = given
    assert torch.equal(top, prior.to_levels(images)[0])
    assert all(torch.equal(a, b) for a, b in zip((top, bottom), again, strict=True))
    assert torch.equal(other[0], top)
    assert not torch.equal(other[1], bottom)


def style_gan():
    torch.manual_seed(0)
    model = script("truncation_trick").make()
    model.growing = None  # it is as large as it gets
    with torch.no_grad():
        model.generator.mean_style.normal_()
        for layer in model.generator.to_image:
            layer.weight *= 0.1
    return model


def test_a_sweep_of_psi_has_the_pictures_themselves_and_that_of_the_mean():
    truncation, model = script("truncation_trick"), style_gan()
    found = truncation.sweep(model, 3)
    latents = model.draw_latents(3, torch.Generator().manual_seed(0))
    torch.testing.assert_close(found[1.0], model.generate(latents))
    mean = model.synthesize(model.generator.mean_style.expand(1, 8, -1))
    torch.testing.assert_close(found[0.0], mean.expand(3, -1, -1, -1))
    assert truncation.spread(found[0.0]) < 1e-6
    assert truncation.spread(torch.tensor([[0.0], [1.0]])) == 0.5


def test_what_noise_and_styles_do_in_a_network_that_has_learned_nothing():
    """Noise has no strength yet, and what each style has written is there."""
    styles, model = script("styles_and_noise"), style_gan()
    own = styles.styles_of(model, 3, 0)
    with torch.no_grad():
        assert styles.noise_deviation(model, own, 3).max() == 0
        for layer in model.generator.layers:
            layer.noise.strength.fill_(1.0)
        assert styles.noise_deviation(model, own, 3).min() > 0
        for _, means, deviations in styles.written_and_found(model, own):
            assert max(means, deviations) < 1e-4
        assert all(0 < share < 2 for both in styles.changes(model, 8).values() for share in both)


def test_pictures_are_drawn_when_a_resolution_has_been_left():
    growing, model = script("growing"), script("truncation_trick").make()
    watch = growing.Watch(torch.randn(3, 64))
    watch.on_train_batch_start(None, model, None, 0)
    watch.images = [0, 5984, 6000]  # at 6,000 pictures are still of 8 x 8
    watch.on_train_batch_start(None, model, None, 2)
    assert not watch.pictures
    watch.images.append(6016)
    watch.on_train_batch_start(None, model, None, 3)
    (pictures,) = watch.pictures.values()
    assert list(watch.pictures) == [8]
    assert pictures.shape == (3, 3, 32, 32)
    assert torch.equal(pictures[..., ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3), pictures)
    assert model.training


def test_how_far_pictures_not_seen_have_moved_towards_fakes(monkeypatch):
    """The 100 score 1, others 0.5 and fakes -1, so these have gone a quarter of the way; colours differ by 191."""

    class Reader:
        def __init__(self, size):
            assert size == 32

        def __call__(self, images):
            return SimpleNamespace(features=images[:, :2, 0, 0].float())

    few, table = script("few_pictures"), []
    monkeypatch.setattr(few, "SceneFeatures", Reader)
    model = few.make(None)
    model.judge = lambda images: images[:, 0, 0, :1]
    model.sample = lambda number, seed: torch.full((number, *few.SHAPE), -1.0)
    measure = few.Measure("none", table, torch.ones(4, *few.SHAPE), torch.full((6, *few.SHAPE), 0.5))
    for step in range(2 * few.EVERY + 1):
        measure.on_train_batch_end(SimpleNamespace(global_step=step, callbacks=[]), model)
    assert [row[3] for row in table] == pytest.approx([0.25] * len(table))
    assert [row[2] for row in table] == pytest.approx([2 * 191**2] * len(table))
    assert len(table) == 3
    assert model.training


def test_pictures_of_two_splits_have_nothing_in_common():
    few = script("few_pictures")
    train, val = few.scenes("train", 8), few.scenes("val", 8)
    assert train.shape == val.shape == (8, *few.SHAPE)
    assert (train - few.scenes("train", 8, "night")).abs().amax((1, 2, 3)).min() > 0
    assert torch.cdist(train.flatten(1), val.flatten(1)).min() > 1
