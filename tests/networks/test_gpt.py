import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_gen.losses import Categorical
from lightning_gen.networks import GPTNetwork
from lightning_gen.networks.gpt import rotated, rotations
from lightning_gen.networks.pixel_sampler import draw_pixels
from lightning_gen.testing import assert_autoregressive, assert_cached_equals_naive, receptive_field_report

SIZES = {"width": 16, "layers": 2, "heads": 2}
SHAPES = [(1, 3, 4), (2, 2, 3)]


def moved(image_shape, num_levels=5, **settings):
    """A small network in evaluation mode, its weights away from where training starts them."""
    torch.manual_seed(0)
    network = GPTNetwork(image_shape, num_levels * image_shape[0], **{**SIZES, **settings}).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


class OfNumbers(nn.Module):
    """The network with a vector for each number, which the checks need to take derivatives, and labels and conditions.

    A vector is the number times one that is fixed, so each channel stays apart.
    """

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.direction = nn.Parameter(torch.randn(16, generator=torch.Generator().manual_seed(1)))

    def given(self, batch):
        network, given = self.network, {}
        if network.num_classes is not None:
            given["labels"] = torch.arange(batch) % network.num_classes
        if network.condition_channels is not None:
            generator = torch.Generator().manual_seed(2)
            shape = (network.condition_channels, *network.image_shape[1:])
            given["condition"] = torch.randn(1, *shape, generator=generator).double().expand(batch, -1, -1, -1)
        return given

    def vectors(self, images):
        return (self.direction[:, None, None, None] * images.unsqueeze(1)).flatten(1, 2)

    def forward(self, images):
        return self.network(self.vectors(images), **self.given(len(images)))

    def init_cache(self, batch, device):
        inner = self.network.init_cache(batch, device, **self.given(batch))
        return SimpleNamespace(images=torch.zeros(batch, *self.network.image_shape).to(inner.inputs), inner=inner)

    def prefill(self, cache, position):
        cache.inner.images.copy_(self.vectors(cache.images))
        self.network.prefill(cache.inner, position)

    def step(self, cache, position):
        cache.inner.images.copy_(self.vectors(cache.images))
        return self.network.step(cache.inner, position)


@pytest.mark.parametrize("settings", [{}, {"num_classes": 3}, {"condition_channels": 2, "num_classes": 2}])
@pytest.mark.parametrize("image_shape", SHAPES)
def test_the_order_of_generation_is_kept(image_shape, settings):
    network = OfNumbers(moved(image_shape, **settings))
    assert_autoregressive(network, image_shape, channels="ordered", num_draws=1)
    assert_cached_equals_naive(network, image_shape)


def test_nothing_before_is_out_of_sight():
    report = receptive_field_report(OfNumbers(moved((1, 5, 6))), (1, 5, 6), num_draws=1)
    assert not report.blind_spot.any()


@pytest.mark.parametrize("image_shape", [(1, 2, 2), (2, 1, 2)])
def test_the_probabilities_of_all_maps_sum_to_one_and_are_those_of_samples(image_shape):
    """Maps of four codes of three kinds, 81 in all."""
    network, likelihood, number = moved(image_shape, 3), Categorical(3), 20_000
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, *image_shape)
    with torch.no_grad():
        p = likelihood.log_prob(network(network.embed(every)), every).flatten(1).sum(1).exp().double()
    assert p.std() > 1e-3  # so this says something
    assert p.sum().item() == pytest.approx(1, abs=1e-5)
    drawn = draw_pixels(
        network, likelihood, torch.zeros(number, *image_shape, dtype=torch.int64),
        torch.ones(number, *image_shape[1:], dtype=torch.bool), torch.arange(math.prod(image_shape[1:])),
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    places = (drawn.flatten(1) * 3 ** torch.arange(4).flip(0)).sum(1)
    shares = torch.bincount(places, minlength=81).double() / number
    assert ((shares - p).abs() < 5 * (p * (1 - p) / number).sqrt() + 1e-3 / number).all()


def test_scores_depend_on_the_offset_alone():
    """Of queries and keys at two places, wherever they lie, as long as rows and columns between them are the same."""
    torch.manual_seed(0)
    height, width, size = 6, 7, 16
    # The token that goes in after a position has its rotation.
    table = rotations((1, height, width + 1), size)[:, 1:].double()
    place = {divmod(i, width + 1): table[:, i : i + 1] for i in range(table.shape[1])}
    query, key = torch.randn(2, 1, size, dtype=torch.float64)
    scores = {}
    for (r, c), (s, d) in itertools.product(itertools.product(range(4), range(5)), repeat=2):
        score = (rotated(query, place[r, c]) * rotated(key, place[s, d])).sum()
        scores.setdefault((r - s, c - d), []).append(score)
    stacked = [torch.stack(each) for each in scores.values()]
    assert max(float(each.max() - each.min()) for each in stacked) < 1e-5  # the table is float32
    assert torch.stack([each[0] for each in stacked]).std() > 0.1
    # The first token and the code at the first position are not rotated at all.
    assert torch.equal(rotations((2, 2, 2), size)[:, :3].sum(0), torch.ones(3, size // 2))
    # Half of the head knows the row alone, the other the column.
    rows, columns = place[2, 3][0, 0].chunk(2)
    assert torch.equal(rows, place[2, 5][0, 0].chunk(2)[0])
    assert torch.equal(columns, place[4, 3][0, 0].chunk(2)[1])
    torch.testing.assert_close(rows[0].acos(), torch.tensor(2.0).double())  # the first pair turns by one a row


PUBLISHED = [
    ({}, 111e6),
    ({"width": 1024, "layers": 24, "heads": 16}, 343e6),
    ({"width": 1280, "layers": 36, "heads": 20}, 775e6),
]


@pytest.mark.parametrize(("sizes", "published"), PUBLISHED, ids=["B", "L", "XL"])
def test_as_many_parameters_as_published(sizes, published):
    with torch.device("meta"):
        network = GPTNetwork((1, 16, 16), 16_384, num_classes=1000, **sizes)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(published, rel=5e-3)
    if not sizes:
        block = 4 * 768**2 + 3 * 768 * 2048 + 2 * 768
        assert sum(p.numel() for p in network.parameters()) == 12 * block + 768 * (2 * 16_384 + 1001 + 1)


def test_training_starts_where_all_codes_are_as_likely():
    network = GPTNetwork((1, 3, 3), 7, **SIZES)
    assert not network(network.embed(torch.randint(7, (2, 1, 3, 3)))).any()
    assert network.embed.weight.std().item() == pytest.approx(0.02, rel=0.3)


def test_labels_are_dropped_in_training_alone():
    network = moved((1, 2, 2), num_classes=3, label_dropout=0.25, dropout=0.0)
    assert network.null_label == 3
    codes = torch.randint(5, (1, 1, 2, 2)).expand(4000, -1, -1, -1)
    labels = torch.full((4000,), 1)
    with torch.no_grad():
        seen = network.embed(codes)
        null, one = (network(seen[:1], torch.tensor([label])) for label in (3, 1))
        assert not torch.allclose(null, one)
        torch.testing.assert_close(network(seen, labels), one.expand(4000, -1, -1, -1, -1))
        parameters = network.train()(seen, labels)
        dropped = (parameters - null).flatten(1).abs().max(1).values < 1e-5
        kept = (parameters - one).flatten(1).abs().max(1).values < 1e-5
    assert (dropped ^ kept).all()
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=5 * math.sqrt(0.25 * 0.75 / 4000))
    assert torch.equal(labels, torch.full((4000,), 1))  # the caller's own stay
    # A network that drops none has no null.
    without = moved((1, 2, 2), num_classes=3, label_dropout=0.0)
    assert without.null_label is None
    assert without.start.num_embeddings == 3


def test_dropout_is_of_training_alone():
    network = moved((1, 2, 2), dropout=0.5)
    seen = network.embed(torch.randint(5, (3, 1, 2, 2)))
    assert torch.equal(network(seen), network(seen))
    network.train()
    assert not torch.equal(network(seen), network(seen))


@pytest.mark.parametrize("num_classes", [None, 3])
def test_compiles_as_one_graph_and_exports(num_classes):
    network = moved((2, 3, 4), num_classes=num_classes)
    seen = network.embed(torch.randint(5, (2, 2, 3, 4))).detach()
    given = (seen,) if num_classes is None else (seen, torch.tensor([0, 2]))
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*given), network(*given))
    torch.testing.assert_close(torch.export.export(network, given).module()(*given), network(*given))


def test_steps_are_few_graphs_that_compile_and_look_at_what_has_begun():
    """In one for each quarter of the sequence, keys and values beyond it are not read."""
    network = moved((1, 4, 4))
    seen = network.embed(torch.randint(5, (2, 1, 4, 4))).detach()
    cache, kinds = network.init_cache(2, torch.device("cpu")), {}
    cache.images.copy_(seen)

    def run(piece, cache, place, *flags):
        if flags not in kinds:
            kinds[flags] = torch.compile(piece, fullgraph=True, dynamic=False, backend="eager")
        return kinds[flags](cache, place, *flags)

    expected = network(seen).flatten(3)
    for position in range(16):
        beyond = [kept[:, :, 4 * (position // 4 + 1) :] for kept in (*cache.keys, *cache.values)]
        for kept in beyond:
            kept.fill_(math.nan)
        torch.testing.assert_close(network.step(cache, position, run), expected[..., position], atol=1e-4, rtol=1e-4)
        for kept in beyond:
            kept.zero_()
    assert [*kinds] == [(1,), (2,), (3,), (4,)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 12}, "multiple of 4 heads"),
        ({"outputs": 7}, "outputs of the 2 channels"),
        ({"label_dropout": 1.0}, "label_dropout must be"),
        ({"dropout": -0.1}, "dropout must be"),
        ({"layers": 0}, "at least 1"),
        ({"condition_channels": 0}, "condition_channels"),
    ],
)
def test_arguments_that_make_no_sense(settings, words):
    with pytest.raises(ValueError, match=words):
        GPTNetwork((2, 3, 3), **{"outputs": 10, **SIZES, **settings})


def test_input_that_does_not_fit():
    network = moved((1, 2, 2), num_classes=3)
    seen = network.embed(torch.randint(5, (2, 1, 2, 2)))
    for call, words in (
        (lambda: network(seen), "needs labels"),
        (lambda: network(torch.zeros(2, 1, 2, 2), torch.zeros(2)), r"must be \[N, 16, 2, 2\]"),
        (lambda: network(seen, torch.tensor([0, 1]), torch.zeros(2, 1, 2, 2)), "takes no map of conditions"),
        (lambda: network.init_cache(2, torch.device("cpu")), "needs labels"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.gpu
def test_recorded_graphs_draw_the_same():
    network, hole = moved((2, 4, 4)).cuda(), torch.ones(5, 4, 4, dtype=torch.bool)
    cached, naive = (
        draw_pixels(
            network, Categorical(5), torch.zeros(5, 2, 4, 4, dtype=torch.int64), hole, torch.arange(16),
            torch.Generator().manual_seed(0), top_k=3, top_p=0.9, method=method,
        )
        for method in ("cached", "naive")
    )  # fmt: skip
    assert torch.equal(cached, naive)
