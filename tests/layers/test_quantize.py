import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.layers import quantize
from lightning_gen.layers.quantize import (
    FiniteScalarQuantizer,
    GumbelQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
    nearest,
)
from lightning_gen.schedules import Cosine, Linear

CHANNELS = 8
MAKERS = {
    "ema": lambda: VectorQuantizer(CHANNELS, 16),
    "gradient": lambda: VectorQuantizer(CHANNELS, 16, codebook="gradient"),
    "narrow": lambda: VectorQuantizer(CHANNELS, 16, code_size=4, normalize=True),
    "normalized gradient": lambda: VectorQuantizer(CHANNELS, 16, codebook="gradient", normalize=True),
    "k-means": lambda: VectorQuantizer(CHANNELS, 16, kmeans_iterations=4),
    "finite scalar": lambda: FiniteScalarQuantizer(CHANNELS, (4, 3, 2)),
    "gumbel": lambda: GumbelQuantizer(CHANNELS, 16),
    "hard gumbel": lambda: GumbelQuantizer(CHANNELS, 16, straight_through=True),
    "residual": lambda: ResidualQuantizer([VectorQuantizer(CHANNELS, 16, restart_below=0.2) for _ in range(3)]),
    "narrow residual": lambda: ResidualQuantizer([VectorQuantizer(CHANNELS, 16, code_size=4) for _ in range(2)]),
    "finite scalars": lambda: ResidualQuantizer([FiniteScalarQuantizer(CHANNELS, (3,) * 8) for _ in range(3)], 2),
    "gumbels": lambda: ResidualQuantizer([GumbelQuantizer(CHANNELS, 16) for _ in range(2)]),
}
every = pytest.mark.parametrize("name", MAKERS)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def features(count=3, seed=1, side=4):
    return torch.randn(count, CHANNELS, side, side, generator=torch.Generator().manual_seed(seed))


def tokens_of(maps):
    return maps.movedim(1, -1).flatten(0, -2)


# What all of them promise


@every
@pytest.mark.parametrize("space", [(), (5,), (3, 4), (2, 3, 2)])
def test_vectors_codes_and_losses_of_any_space(name, space):
    quantizer = MAKERS[name]()
    maps = torch.randn(6, CHANNELS, *space)
    quantized, codes, losses = quantizer(maps)
    depth = [len(quantizer.stages)] if isinstance(quantizer, ResidualQuantizer) else []
    assert quantized.shape == maps.shape
    assert codes.shape == (6, *depth, *space)
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < quantizer.num_codes
    assert all(loss.shape == () and loss.dtype == torch.float32 and loss >= 0 for loss in losses.values())
    quantized, codes, _ = quantizer.eval()(maps)
    torch.testing.assert_close(quantizer.lookup(codes), quantized, rtol=1e-5, atol=1e-6)


@every
def test_float32_within_autocast(name):
    quantizer = MAKERS[name]().eval()
    maps = features()
    expected = quantizer(maps)
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer(maps)
        decoded = quantizer.lookup(found.codes)
        halves = quantizer(maps.bfloat16())
    assert torch.equal(found.quantized, expected.quantized)
    assert torch.equal(found.codes, expected.codes)
    assert decoded.dtype == torch.float32
    assert halves.quantized.dtype == torch.bfloat16
    assert all(loss.dtype == torch.float32 for loss in halves.losses.values())


@every
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_weights_of_any_type_quantize_features_of_theirs(name, kind):
    quantizer = MAKERS[name]().to(kind)
    quantized, codes, losses = quantizer(features().to(kind).requires_grad_())
    assert quantized.dtype == kind
    assert all(loss.dtype == torch.promote_types(kind, torch.float32) for loss in losses.values())
    (quantized.double().square().mean() + sum(losses.values())).backward()
    quantized, codes, _ = quantizer.eval()(features().to(kind))
    torch.testing.assert_close(quantizer.lookup(codes).to(kind), quantized, rtol=0.01, atol=0.01)


def test_running_means_go_on_in_float32_where_weights_are_halves():
    plain, halves = VectorQuantizer(CHANNELS, 16), VectorQuantizer(CHANNELS, 16)
    halves.load_state_dict(plain.state_dict())
    halves.bfloat16()
    for step in range(20):
        maps = features(seed=step).bfloat16()
        plain(maps.float())
        halves(maps)
    for name in ("codebook", "counts", "sums"):
        assert torch.equal(getattr(halves, name), getattr(plain, name))
    planted = VectorQuantizer(CHANNELS, 16)
    for name in ("codebook", "counts", "sums"):
        setattr(planted, name, getattr(planted, name).bfloat16())
    assert planted.sums.lerp(planted.sums * 1.1, 0.01).equal(planted.sums), "in bfloat16 a step is lost"


@every
def test_losses_and_gradients_of_a_picture_do_not_depend_on_the_size_of_the_batch(name):
    once = MAKERS[name]().eval()
    found = []
    for times in (1, 8, 64):
        quantizer, maps = copy.deepcopy(once), features(1).expand(times, -1, -1, -1).clone().requires_grad_()
        quantized, _, losses = quantizer(maps)
        (quantized.square().sum((1, 2, 3)).mean() + sum(losses.values())).backward()
        grads = [p.grad for p in quantizer.parameters() if p.grad is not None]
        found.append([*losses.values(), *grads, maps.grad[0] * times])
    for one, other in zip(found[0], found[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    for one, other in zip(found[0], found[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


@every
def test_it_compiles_to_one_graph_that_learns_the_same(name):
    plain = MAKERS[name]()
    other = copy.deepcopy(plain)
    compiled = torch.compile(other, fullgraph=True, backend="eager")
    for step in range(3):
        results = []
        for quantizer in (plain, compiled):
            torch.manual_seed(step)
            maps = features(seed=step).requires_grad_()
            quantized, codes, losses = quantizer(maps)
            loss = quantized.square().mean() + sum(losses.values())
            gradients = torch.autograd.grad(loss, [maps, *quantizer.parameters()], allow_unused=True)
            results.append((quantized, codes, losses, [gradient for gradient in gradients if gradient is not None]))
        torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(plain.state_dict(), other.state_dict(), rtol=1e-6, atol=1e-7)


@every
def test_going_on_from_a_checkpoint_equals_never_having_stopped(name):
    quantizer = MAKERS[name]()
    for step in range(3):
        quantizer(features(seed=step))
    later = MAKERS[name]()
    later.load_state_dict(copy.deepcopy(quantizer.state_dict()))
    for step in range(3, 6):
        results = []
        for each in (quantizer, later):
            torch.manual_seed(step)
            results.append(each(features(seed=step)))
        assert torch.equal(results[0].quantized, results[1].quantized)
    for key, value in quantizer.state_dict().items():
        assert torch.equal(value, later.state_dict()[key]), key


@every
def test_evaluation_learns_nothing(name):
    quantizer = MAKERS[name]().eval()
    before = copy.deepcopy(quantizer.state_dict())
    quantizer(features())
    assert all(torch.equal(value, quantizer.state_dict()[key]) for key, value in before.items())


# Vector quantization


def test_the_nearest_code_whatever_the_blocks(monkeypatch):
    tokens, codebook = torch.randn(1000, 5), torch.randn(40, 5)
    expected = torch.cdist(tokens, codebook).argmin(1)
    assert torch.equal(nearest(tokens, codebook), expected)
    monkeypatch.setitem(quantize.BLOCK, "cpu", 1)  # 256 tokens, and a rest
    assert torch.equal(nearest(tokens, codebook), expected)


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_no_distances_are_kept_for_the_backward_pass(codebook):
    quantizer, kept = VectorQuantizer(CHANNELS, 64, codebook=codebook), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        maps = features(8).requires_grad_()
        result = quantizer(maps)
    (result.quantized.sum() + sum(result.losses.values())).backward()
    assert kept
    assert max(kept) <= maps.numel()  # an eighth of tokens times codes


@pytest.mark.parametrize("name", ["ema", "gradient", "residual"])
def test_gradients_pass_as_through_the_identity(name):
    quantizer, maps = MAKERS[name](), features().requires_grad_()
    direction = torch.randn_like(maps)
    (gradient,) = torch.autograd.grad((quantizer(maps).quantized * direction).sum(), maps)
    assert torch.equal(gradient, direction)


def test_the_losses_are_the_papers_and_pull_at_one_side_each():
    quantizer, maps = VectorQuantizer(CHANNELS, 16, codebook="gradient", beta=0.5), features().requires_grad_()
    found, losses = quantizer.lookup(quantizer(maps).codes).detach(), quantizer(maps).losses
    apart = F.mse_loss(maps, found)
    torch.testing.assert_close(losses, {"commitment": 0.5 * apart, "codebook": apart})
    commitment = torch.autograd.grad(losses["commitment"], [maps, quantizer.codebook], allow_unused=True)
    codebook = torch.autograd.grad(losses["codebook"], [maps, quantizer.codebook], allow_unused=True)
    torch.testing.assert_close(commitment[0], torch.autograd.grad(0.5 * apart, maps)[0])
    assert commitment[1] is None
    assert codebook[0] is None
    assert codebook[1].any()


def test_each_depth_pulls_at_the_encoder():
    quantizer, maps = MAKERS["residual"]().eval(), features().requires_grad_()
    _, codes, losses = quantizer(maps)
    expected = 0.25 * sum(F.mse_loss(maps, quantizer.lookup(codes[:, :depth]).detach()) for depth in (1, 2, 3))
    torch.testing.assert_close(losses["commitment"], expected)
    torch.testing.assert_close(torch.autograd.grad(losses["commitment"], maps), torch.autograd.grad(expected, maps))


@pytest.mark.parametrize("name", ["ema", "residual"])
def test_beta_0_leaves_the_encoder_without_a_pull(name):
    quantizer, maps = MAKERS[name](), features().requires_grad_()
    for layer in quantizer.modules():
        layer.beta = 0
    (gradient,) = torch.autograd.grad(sum(quantizer(maps).losses.values()), maps)
    assert not gradient.any()


def closed_form(codebook, batches, decay=0.99, eps=1e-5, count=1.0, start=1.0):
    """The codebook after batches of tokens and codes, from weighted sums over all of them."""
    total = torch.full((len(codebook),), count, dtype=torch.float64) * decay ** len(batches)
    sums = start * codebook.double() * decay ** len(batches)
    for age, (tokens, codes) in enumerate(reversed(batches)):
        codes = F.one_hot(codes, len(codebook)).double()
        total += (1 - decay) * decay**age * codes.sum(0)
        sums += (1 - decay) * decay**age * codes.T @ tokens.double()
    smooth = (total + eps) / (total.sum() + len(codebook) * eps) * total.sum()
    return sums / smooth.unsqueeze(1)


def test_running_means_equal_their_closed_form_and_quantization_comes_first():
    quantizer = VectorQuantizer(CHANNELS, 16, restart_below=0)
    start, batches = quantizer.codebook.clone(), []
    for step in range(20):
        maps, before = features(seed=step), quantizer.codebook.clone()
        quantized, codes, losses = quantizer(maps)
        tokens = tokens_of(maps)
        assert torch.equal(codes.flatten(), torch.cdist(tokens, before).argmin(1))
        assert torch.equal(tokens_of(quantized), before[codes.flatten()])
        torch.testing.assert_close(losses["commitment"], 0.25 * F.mse_loss(maps, quantized))
        batches.append((tokens, codes.flatten()))
    torch.testing.assert_close(quantizer.codebook, closed_form(start, batches).float(), rtol=1e-4, atol=1e-5)
    # the two well-known starts: counts of 0 beside sums of the codes, and zeros throughout
    for wrong in ({"count": 0.0}, {"count": 0.0, "start": 0.0}):
        assert not torch.allclose(quantizer.codebook, closed_form(start, batches, **wrong).float(), rtol=1e-2)
    # planted: the codebook of after the update, as a well-known notebook has it
    assert not torch.equal(tokens_of(quantized), quantizer.codebook[codes.flatten()])


def collapsed(**settings):
    """But one code is near the tokens."""
    quantizer = VectorQuantizer(CHANNELS, 16, **settings)
    with torch.no_grad():
        quantizer.codebook[1:] += 100
        quantizer._set(quantizer.codebook.clone(), quantizer.counts.clone())
    return quantizer


def distances(ones, others):
    """Exact ones, which `cdist` does not compute by itself."""
    return torch.cdist(ones, others, compute_mode="donot_use_mm_for_euclid_dist")


def moved(codes, before):
    return ((codes - before).norm(dim=1) / before.norm(dim=1)).max()


@pytest.mark.parametrize("normalize", [False, True])
def test_codes_that_are_not_hit_stay_where_they_are(normalize):
    quantizer = VectorQuantizer(CHANNELS, 16, restart_below=0, normalize=normalize)
    quantizer.codebook[1:] = -quantizer.codebook[:1] - 0.1 * quantizer.codebook[1:].abs()
    quantizer._set(quantizer._placed(quantizer.codebook.clone()), quantizer.counts.clone())
    before = quantizer.codebook[1:].clone()
    maps = quantizer.codebook[:1].expand(32, -1).clone()
    quantizer(maps)
    assert moved(quantizer.codebook[1:], before) < 1e-4
    for _ in range(2500):  # counts of 1e-11
        quantizer._update(maps, torch.zeros(32, dtype=torch.int64))
    assert moved(quantizer.codebook[1:], before) < 0.02
    assert quantizer.counts[1] < 1e-9


@pytest.mark.parametrize(("count", "start"), [(0.0, 1.0), (0.0, 0.0)], ids=["exploding", "vanishing"])
def test_the_well_known_starts_would_be_seen(count, start):
    quantizer = collapsed(restart_below=0)
    before = quantizer.codebook[1:].clone()
    quantizer.counts.fill_(count)
    quantizer.sums.mul_(start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "MIN_COUNT", -1)
        quantizer(torch.zeros(32, CHANNELS))
    assert moved(quantizer.codebook[1:], before) > 0.9


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
@pytest.mark.parametrize("code_size", [None, 3])
def test_normalized_codes_have_length_1_and_are_compared_by_direction(codebook, code_size):
    quantizer = VectorQuantizer(CHANNELS, 16, codebook=codebook, code_size=code_size, normalize=True)
    with torch.no_grad():
        if codebook == "gradient":  # an optimizer may leave any lengths
            quantizer.codebook.mul_(torch.rand(16, 1) * 9 + 1)
        quantizer.project_out = nn.Identity()
        maps = features()
        inner = F.normalize(quantizer.project_in(tokens_of(maps)), dim=1)
        expected = (inner @ F.normalize(quantizer.codebook, dim=1).T).argmax(1)
        quantized, codes, losses = quantizer.quantize(tokens_of(maps))
    assert torch.equal(codes, expected)
    torch.testing.assert_close(quantized.norm(dim=1), torch.ones(len(codes)))
    torch.testing.assert_close(losses["commitment"], 0.25 * F.mse_loss(inner, quantized))
    if codebook == "ema":
        torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(16))


# k-means and restarts


@pytest.mark.parametrize("normalize", [False, True])
def test_kmeans_on_few_distinct_points_has_only_real_vectors_and_counts(normalize):
    points = torch.randn(16, CHANNELS) + 3
    quantizer = VectorQuantizer(CHANNELS, 64, kmeans_iterations=10, normalize=normalize)
    tokens = points.repeat(20, 1)
    quantizer._place(quantizer._placed(tokens))
    assert distances(quantizer.codebook, quantizer._placed(points)).min(1).values.max() < 1e-3
    assert quantizer.counts.min() >= 1
    torch.testing.assert_close(quantizer.sums, quantizer.codebook * quantizer.counts.unsqueeze(1))  # not the mean
    assert quantizer.counts.sum() >= 320


def test_kmeans_finds_clusters_in_training_once_and_not_after_a_checkpoint():
    centres = 10 * torch.randn(4, CHANNELS)
    tokens = centres.repeat(50, 1) + 0.01 * torch.randn(200, CHANNELS)
    quantizer = VectorQuantizer(CHANNELS, 32, kmeans_iterations=10)
    quantizer.eval()(tokens)
    assert distances(centres, quantizer.codebook).min(1).values.max() > 1
    result = quantizer.train()(tokens)
    assert result.losses["commitment"] < 0.25 * 2e-4
    far = VectorQuantizer(CHANNELS, 32, kmeans_iterations=10)
    far.load_state_dict(quantizer.state_dict())
    for each in (quantizer, far):
        each(tokens + 50)
    assert torch.equal(quantizer.codebook, far.codebook)
    assert quantizer.updates == 2


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_dead_codes_begin_anew_at_tokens_with_all_their_statistics(codebook):
    quantizer, maps = collapsed(codebook=codebook, decay=0.5), torch.randn(64, CHANNELS)
    steps = 0
    while (quantizer.codebook.norm(dim=1) > 50).any():
        quantizer(maps)
        steps += 1
    assert 2 <= steps <= 10  # not at once: a count of 1 is more than a 30th of uniform use
    apart = distances(quantizer.codebook[1:], maps)
    assert apart.min(1).values.max() < 1e-4
    assert len(apart.argmin(1).unique()) == 15  # no token twice
    torch.testing.assert_close(quantizer.counts[1:], torch.full((15,), quantizer.counts[1].item()))
    if codebook == "ema":
        torch.testing.assert_close(
            quantizer.sums, quantizer.codebook * quantizer.counts.unsqueeze(1), rtol=1e-3, atol=1e-3
        )
    assert (quantizer(maps).codes.bincount(minlength=16) > 0).sum() > 8


def test_at_most_one_code_begins_anew_at_each_token():
    quantizer, maps = collapsed(decay=0.0), torch.randn(3, CHANNELS)
    quantizer(maps)
    near = quantizer.codebook.norm(dim=1) < 50
    assert near.sum() == 1 + 3
    assert len(distances(quantizer.codebook[near][1:], maps).argmin(1).unique()) == 3


def test_a_share_of_uniform_use_means_the_same_at_every_batch_size():
    kept = []
    for times in (1, 16):
        torch.manual_seed(3)
        quantizer = VectorQuantizer(CHANNELS, 16, decay=0.0, restart_below=0.9)
        codes = quantizer.eval()(features(8)).codes
        quantizer.train()._update(tokens_of(features(8)).repeat(times, 1), codes.flatten().repeat(times))
        rare = codes.flatten().bincount(minlength=16) < 0.9 * codes.numel() / 16
        kept.append(rare)
        restarted = distances(quantizer.codebook, tokens_of(features(8))).min(1).values < 1e-6
        assert torch.equal(restarted, rare)
    assert torch.equal(*kept)
    assert kept[0].any()


def test_without_restarts_none_begins_anew():
    quantizer = collapsed(restart_below=0, decay=0.5)
    for _ in range(20):
        quantizer(torch.randn(64, CHANNELS))
    assert (quantizer.codebook[1:].norm(dim=1) > 50).all()


# Several processes

BATCHES = torch.randn(20, 8, CHANNELS, 2, 2, generator=torch.Generator().manual_seed(5)) * torch.tensor([1.0, 4])


def in_processes(name):
    torch.manual_seed(7)
    if name == "residual":
        stages = [VectorQuantizer(CHANNELS, 24, decay=0.8, kmeans_iterations=2, restart_below=0.2) for _ in range(2)]
        return ResidualQuantizer(stages)
    settings = {"k-means": {"kmeans_iterations": 3}, "restarts": {"restart_below": 0.3}, "plain": {"restart_below": 0}}
    return VectorQuantizer(CHANNELS, 48, decay=0.8, **settings[name])


def train_on_rank(rank, quantizer, share):
    """Built before the process group."""
    for batch in BATCHES:
        quantizer(batch[share[rank] : share[rank + 1]])
    return {key: value.clone() for key, value in quantizer.state_dict().items()}


def train_alone(quantizer):
    return train_on_rank(0, quantizer, (0, 8))


@pytest.mark.parametrize("name", ["plain", "k-means", "restarts", "residual"])
@pytest.mark.parametrize("share", [(0, 4, 8), (0, 3, 8)])
def test_processes_agree_to_the_bit_and_equal_one_with_all_pictures(on_ranks, name, share):
    quantizer = in_processes(name)
    zero, one = on_ranks(train_on_rank, copy.deepcopy(quantizer), share)
    alone = train_alone(quantizer)
    for key, value in alone.items():
        assert torch.equal(zero[key], one[key]), key
        torch.testing.assert_close(zero[key], value, rtol=1e-5, atol=1e-5)


def train_with_a_decision_of_the_constructor(rank, quantizer):
    """The mistake of other libraries: whether there are processes is asked once, before there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "total", lambda values: values)
        return train_on_rank(rank, quantizer, (0, 4, 8))


def test_statistics_that_stay_with_their_process_would_be_seen(on_ranks):
    zero, one = on_ranks(train_with_a_decision_of_the_constructor, in_processes("plain"))
    assert not torch.equal(zero["codebook"], one["codebook"])


# Finite scalars


def test_finite_scalars_are_the_published_levels():
    quantizer = FiniteScalarQuantizer(4)
    assert quantizer.num_codes == 1000
    vectors = quantizer.lookup(torch.arange(1000))
    for dimension, (low, high, count) in enumerate([(-1, 0.75, 8), (-1, 1, 5), (-1, 1, 5), (-1, 1, 5)]):
        found = vectors[:, dimension].unique()
        torch.testing.assert_close(found, torch.linspace(low, high, count))
    far = torch.tensor([[-100.0] * 4, [0.0] * 4, [100.0] * 4])
    quantized, codes, losses = quantizer(far)
    assert quantized[:, 0].tolist() == [-1, 0, 0.75]
    assert quantized[:, 1].tolist() == [-1, 0, 1]
    assert codes.tolist() == [0, 4 + 8 * 2 + 40 * 2 + 200 * 2, 999]
    assert not losses
    # whoever hits the levels is given them back
    bounded = (torch.arange(8) - 3.5) / (7 * 0.999 / 2), (torch.arange(5) - 2) / (4 * 0.999 / 2)
    eight = torch.atanh(bounded[0].clamp(-0.9999, 0.9999)) - math.atanh(0.5 / (7 * 0.999 / 2))
    five = torch.atanh(bounded[1].clamp(-0.9999, 0.9999))
    inputs = torch.cartesian_prod(five, five, five, eight).flip(1)
    assert torch.equal(quantizer(inputs).codes, torch.arange(1000))


def test_two_levels_are_symmetric():
    quantizer = FiniteScalarQuantizer(3, (2, 2, 2))
    quantized, codes, _ = quantizer(torch.tensor([[0.1, -0.1, 9.0], [-9.0, 2.0, -0.1]]))
    assert quantized.tolist() == [[1, -1, 1], [-1, 1, -1]]
    assert codes.tolist() == [5, 2]


def test_gradients_of_finite_scalars_are_those_of_the_bound():
    quantizer, tokens = FiniteScalarQuantizer(2, (5, 4)).double(), torch.randn(7, 2, dtype=torch.float64)
    tokens.requires_grad_()
    (gradient,) = torch.autograd.grad(quantizer(tokens).quantized.sum(), tokens)
    half = torch.tensor([4, 3], dtype=torch.float64) * 0.999 / 2
    shift = torch.tensor([0, math.atanh(0.5 / half[1])], dtype=torch.float64)
    expected = (1 - torch.tanh(tokens + shift).square()) * half / 2
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def test_finite_scalars_in_depth_come_closer():
    maps = torch.rand(64, CHANNELS) * 1.6 - 0.8
    stage = functools.partial(FiniteScalarQuantizer, CHANNELS, (5,) * CHANNELS)
    errors = [
        F.mse_loss(ResidualQuantizer([stage() for _ in range(depth)], 3)(maps).quantized, maps).item()
        for depth in (1, 2, 3)
    ]
    assert errors[2] < errors[1] < errors[0] / 2


# Gumbel-softmax


def identity_gumbel(num_codes=5, **settings):
    """Logits come in, weights come out."""
    quantizer = GumbelQuantizer(num_codes, num_codes, **settings)
    for layer in (quantizer.to_logits, quantizer.codebook):
        nn.init.eye_(layer.weight)
    return quantizer


LOGITS = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])


def test_codes_are_drawn_with_their_probabilities_and_means_tend_to_them():
    quantizer, count = identity_gumbel(temperature=0.05), 20_000
    weights, codes, _ = quantizer(LOGITS.expand(count, -1))
    expected = LOGITS.softmax(0) * count
    statistic = ((codes.bincount(minlength=5) - expected).square() / expected).sum()
    assert statistic < 18.47  # of chi-squared with 4 degrees of freedom, 1 in 1000 is above
    torch.testing.assert_close(weights.mean(0), LOGITS.softmax(0), rtol=0, atol=0.015)
    warm = quantizer(LOGITS.expand(count, -1), temperature=5.0).quantized.mean(0)
    assert (warm - LOGITS.softmax(0)).abs().max() > 0.1
    # planted: noise that is not Gumbel's
    wrong = (LOGITS + torch.randn(count, 5)).argmax(1).bincount(minlength=5)
    assert ((wrong - expected).square() / expected).sum() > 18.47


def test_relaxed_in_both_directions_unless_straight_through():
    tokens = torch.randn(50, 5)
    soft, hard = identity_gumbel()(tokens).quantized, identity_gumbel(straight_through=True)(tokens)
    assert ((soft > 0.01) & (soft < 0.99)).any()
    torch.testing.assert_close(hard.quantized, F.one_hot(hard.codes, 5).float())
    gradients = []
    for straight_through in (False, True):
        torch.manual_seed(2)
        tokens.requires_grad_()
        weights = identity_gumbel(straight_through=straight_through)(tokens).quantized
        gradients.append(torch.autograd.grad((weights * torch.arange(5)).sum(), tokens)[0])
    torch.testing.assert_close(*gradients)


def test_evaluation_takes_the_largest_logit_unless_asked_to_relax():
    quantizer, tokens = identity_gumbel().eval(), torch.randn(50, 5)
    assert torch.equal(quantizer(tokens).codes, tokens.argmax(1))
    torch.testing.assert_close(quantizer(tokens).quantized, F.one_hot(tokens.argmax(1), 5).float())
    assert not torch.equal(quantizer(tokens, relaxed=True).codes, tokens.argmax(1))
    assert torch.equal(quantizer.train()(tokens, relaxed=False).codes, tokens.argmax(1))


def test_vectors_may_be_of_another_length_than_features():
    quantizer, maps = GumbelQuantizer(CHANNELS, 16, code_size=3), features()
    assert quantizer.vector_size == 3
    assert quantizer(maps).quantized.shape == (len(maps), 3, *maps.shape[2:])
    quantized, codes, _ = quantizer.eval()(maps)
    assert torch.equal(quantizer.lookup(codes), quantized)
    # Written out: the column of the largest logit.
    token = maps.movedim(1, -1).reshape(-1, CHANNELS)[5]
    code = (quantizer.to_logits.weight @ token).argmax()
    expected = quantizer.codebook.weight[:, code] + quantizer.codebook.bias
    torch.testing.assert_close(quantized.movedim(1, -1).reshape(-1, 3)[5], expected)


def test_the_divergence_is_per_token_whatever_the_temperature_and_the_batch():
    quantizer, found = identity_gumbel(kl_weight=2.0), []
    logits = torch.randn(1, 5, 6)
    probabilities = logits.softmax(1)
    expected = 2 * (probabilities * (probabilities * 5).log()).sum(1).mean()
    for times, temperature in ((1, 1.0), (8, 0.1), (64, 10.0)):
        found.append(quantizer(logits.expand(times, -1, -1), temperature=temperature).losses["kl"])
    torch.testing.assert_close(torch.stack(found), expected.expand(3))
    # planted: summed over the batch, as in a well-known library
    assert not torch.allclose(found[2] * 64, expected)


def test_schedules_of_the_paper_are_pure_functions_of_the_step():
    temperature, weight = Cosine(1, 1 / 16, 150_000), Linear(0, 6.6, 5000)
    assert [temperature(step) for step in (0, 75_000, 150_000, 200_000)] == pytest.approx([1, 17 / 32, 1 / 16, 1 / 16])
    assert [weight(step) for step in (0, 2500, 5000, 9000)] == pytest.approx([0, 3.3, 6.6, 6.6])
    quantizer, found = identity_gumbel(), []
    for step in (100_000, 50_000, 100_000):  # which calls there were before has no say
        torch.manual_seed(0)
        found.append(quantizer(LOGITS[None], temperature=temperature(step)).quantized)
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VectorQuantizer(8, 1), "2 codes at least"),
        (lambda: VectorQuantizer(0), "channels=0"),
        (lambda: GumbelQuantizer(8, 1), "2 codes at least"),
        (lambda: VectorQuantizer(8, codebook="mean"), '"ema" or "gradient"'),
        (lambda: VectorQuantizer(8, beta=-1), "beta must be 0 or more, got -1"),
        (lambda: VectorQuantizer(8, decay=1.0), "decay must be 0 or more and below 1, got 1.0"),
        (lambda: VectorQuantizer(8, eps=math.nan), "eps must be"),
        (lambda: VectorQuantizer(8, code_size=0), "code_size must be at least 1, got 0"),
        (lambda: VectorQuantizer(8, kmeans_iterations=-1), "kmeans_iterations must be 0 or more"),
        (lambda: VectorQuantizer(8, restart_below=2), "restart_below must be 0 or more and below 1"),
        (lambda: FiniteScalarQuantizer(8, ()), "2 codes at least"),
        (lambda: FiniteScalarQuantizer(8, (5, 1)), r"at least 2 each, got \[5, 1\]"),
        (lambda: GumbelQuantizer(8, temperature=0), "temperature must be above 0, got 0"),
        (lambda: GumbelQuantizer(8, kl_weight=-1), "kl_weight 0 or more"),
        (
            lambda: ResidualQuantizer([GumbelQuantizer(8, 4, code_size=3)]),
            r"as long as features: 8; got vectors of \[3\]",
        ),
        (lambda: GumbelQuantizer(8, code_size=0), "code_size must be at least 1"),
        (lambda: ResidualQuantizer([]), "got .. and 1.0"),
        (lambda: ResidualQuantizer([VectorQuantizer(8, 4), VectorQuantizer(8, 5)]), r"\(8, 4\), \(8, 5\)"),
        (lambda: ResidualQuantizer([VectorQuantizer(8, 4)] * 2), "each once"),
        (lambda: ResidualQuantizer([VectorQuantizer(8, 4)], growth=0), "and 0"),
        (
            lambda: VectorQuantizer(8, 4)(torch.zeros(2, 7, 3)),
            r"float features \[N, 8, ...\], got torch.float32 \[2, 7",
        ),
        (lambda: VectorQuantizer(8, 4)(torch.zeros(8)), r"\[N, 8, ...\]"),
        (lambda: VectorQuantizer(8, 4)(torch.zeros(2, 8, dtype=torch.int64)), "torch.int64"),
        (lambda: MAKERS["residual"]()(torch.zeros(2, 7)), "ResidualQuantizer takes"),
        (lambda: GumbelQuantizer(8, 4)(torch.zeros(2, 8), temperature=-1.0), "above 0, got -1.0"),
        (lambda: VectorQuantizer(8, 4).lookup(torch.tensor([4])), "from 0 to 3, got 4"),
        (lambda: VectorQuantizer(8, 4).lookup(torch.tensor([-1])), "from 0 to 3, got -1"),
        (lambda: VectorQuantizer(8, 4).lookup(torch.tensor([1.0])), "int64"),
        (lambda: MAKERS["residual"]().lookup(torch.zeros(2, 4, 3, dtype=torch.int64)), "up to 3 depths"),
        (lambda: MAKERS["residual"]().lookup(torch.zeros(2, dtype=torch.int64)), "up to 3 depths"),
    ],
)
def test_bad_input_is_refused_in_words(make, message):
    with pytest.raises(ValueError, match=message):
        make()
