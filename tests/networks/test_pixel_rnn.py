import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_gen.layers import lstm
from lightning_gen.layers.lstm import diagonal_sweep
from lightning_gen.losses.categorical import bernoulli_log_prob, categorical_log_prob, levels_to_images
from lightning_gen.losses.pixels import pixel_likelihood
from lightning_gen.networks.pixel_rnn import DiagonalBiLSTMNetwork, RowLSTMNetwork
from lightning_gen.networks.stepping import call
from lightning_gen.testing import assert_autoregressive, assert_cached_equals_naive, receptive_field_report

SMALL = {"filters": 5, "layers": 2, "head_filters": 7}
KINDS = [RowLSTMNetwork, DiagonalBiLSTMNetwork]
CPU = torch.device("cpu")


def build(kind, image_shape, num_levels=4, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        outputs = pixel_likelihood(num_levels).num_parameters(image_shape[0])
        return kind(image_shape, outputs, **{**SMALL, **options}).double()


def pictures(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


# Autoregressive, and cached as naive


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image_shape", [(1, 6, 5), (1, 4, 7), (1, 1, 6), (1, 5, 1), (1, 1, 1), (3, 4, 3), (2, 3, 4)])
@pytest.mark.parametrize("num_levels", [2, 4])
def test_autoregressive_and_cached_as_naive(kind, image_shape, num_levels):
    # 5 features and 7 of the head: divisible neither by 3 nor by 2.
    network = build(kind, image_shape, num_levels)
    if image_shape != (1, 1, 1):  # of which nothing depends on anything
        assert_autoregressive(network, image_shape, channels="ordered")
    assert_cached_equals_naive(network, image_shape)


@pytest.mark.parametrize("kernel_size", [1, 5, 7])
def test_kernels_of_the_row_lstm(kernel_size):
    network = build(RowLSTMNetwork, (2, 4, 5), kernel_size=kernel_size)
    assert_autoregressive(network, (2, 4, 5), channels="ordered", num_draws=1)
    assert_cached_equals_naive(network, (2, 4, 5))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_may_be_repeated(kind):
    network, images = build(kind, (1, 4, 3)), pictures(2, 1, 4, 3)
    cache = network.init_cache(2, CPU)
    for position in range(12):
        first = network.step(cache, position)
        assert torch.equal(network.step(cache, position), first)
        cache.position = -1  # with what is computed once a row, too
        assert torch.equal(network.step(cache, position), first)
        assert not first.requires_grad
        cache.images.flatten(2)[:, :, position] = images.flatten(2)[:, :, position]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image_shape", [(1, 4, 3), (3, 3, 2)])
def test_prefilled_as_stepped(kind, image_shape):
    network, images = build(kind, image_shape), pictures(2, *image_shape)
    logits = network(images).flatten(3)
    for known in range(logits.shape[3]):
        cache = network.init_cache(2, CPU)
        cache.images.fill_(1e3).flatten(2)[:, :, :known] = images.flatten(2)[:, :, :known]
        network.prefill(cache, known)
        for position in range(known, logits.shape[3]):
            for channel in range(image_shape[0]):
                result = network.step(cache, position)[:, :, channel]
                torch.testing.assert_close(result, logits[:, :, channel, position], rtol=0, atol=1e-9)
                cache.images.flatten(2)[:, channel, position] = images.flatten(2)[:, channel, position]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_serves_one_picture_after_another(kind):
    network, images = build(kind, (1, 4, 3)), pictures(2, 2, 1, 4, 3)
    cache = network.init_cache(2, CPU)
    for batch in images:
        logits = network(batch).flatten(3)
        for position in range(12):
            torch.testing.assert_close(network.step(cache, position), logits[..., position])
            cache.images.flatten(2)[:, :, position] = batch.flatten(2)[:, :, position]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_what_a_row_needs_is_computed_once(kind, channels):
    begun, network = [], build(kind, (channels, 4, 5))

    def run(piece, cache, place, *flags):
        assert all(isinstance(flag, bool | str) for flag in flags)
        assert place.dtype == torch.int64
        assert place.shape == (1,)
        if piece != network._pixel:
            begun.append((piece == network._row, int(place)))
        return call(piece, cache, place, *flags)

    cache = network.init_cache(2, CPU)
    for position in range(20):
        for _ in range(channels):
            network.step(cache, position, run)
    assert begun == [(False, 0), (True, 5), (True, 10), (True, 15)]


@pytest.mark.parametrize("kind", KINDS)
def test_buffers_stay_where_they_are_and_the_network_has_no_state(kind):
    network = build(kind, (3, 4, 5))
    before = copy.deepcopy(network.state_dict())
    cache = network.init_cache(2, CPU)
    buffers = {name: value for name, value in vars(cache).items() if isinstance(value, Tensor)}
    addresses = {name: buffer.data_ptr() for name, buffer in buffers.items()}
    assert cache.images.flatten(2).data_ptr() == cache.inputs.data_ptr()
    cache.images.fill_(1e3)
    network.prefill(cache, 7)
    for position in range(7, 20):
        network.step(cache, position)
        cache.images.flatten(2)[:, :, position] = 1
    assert {name: getattr(cache, name).data_ptr() for name in buffers} == addresses
    assert not cache.inputs[:, -1].any()
    assert not any(states[-1].any() for states in (cache.features, cache.hidden, cache.cells, cache.right))
    assert cache.hidden[:-1].all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


class Count(TorchDispatchMode):
    """Of operations, and of the numbers that those give which write nothing in place."""

    def __init__(self) -> None:
        super().__init__()
        self.cost = (0, 0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        numbers = 0 if func._schema.is_mutable else sum(tensor.numel() for tensor in tree_leaves(result))
        self.cost = (self.cost[0] + 1, self.cost[1] + numbers)
        return result


def cost(kind, height, width, piece) -> tuple[int, int]:
    network = build(kind, (1, height, width))
    cache = network.init_cache(2, CPU)
    with torch.no_grad(), Count() as count:
        getattr(network, piece)(cache, cache.places[width + 1])
    return count.cost


@pytest.mark.parametrize("kind", KINDS)
def test_a_pixel_costs_the_same_in_every_picture(kind):
    assert len({cost(kind, *size, "_pixel") for size in ((3, 3), (3, 9), (9, 3))}) == 1
    # And what is computed once a row costs as much for each pixel of it.
    rows = {size: torch.tensor(cost(kind, *size, "_row")) for size in ((3, 3), (9, 3), (3, 6), (3, 9))}
    assert torch.equal(rows[3, 3], rows[9, 3])
    assert torch.equal(rows[3, 9] - rows[3, 6], rows[3, 6] - rows[3, 3])


# What each pixel sees


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_the_triangle_of_the_row_lstm(layers, kernel_size):
    # From the first layer 3 to the left in its row, and 3 to either side in the 3 rows above; from each LSTM half a
    # kernel to the left, and half a kernel to either side for each row up.
    half = kernel_size // 2
    height, width, column = 4, 9 + 5 * half + layers * half, 3 + layers * half + 2 * half
    network = build(RowLSTMNetwork, (1, height, width), layers=layers, kernel_size=kernel_size)
    report = receptive_field_report(network, (1, height, width), (height - 1, column))
    for up in range(1, height):
        seen = range(column - 3 - (layers + up) * half, column + 3 + (up - 1) * half + 1)
        assert report.influence[height - 1 - up].nonzero().flatten().tolist() == [c for c in seen if 0 <= c < width]
    assert report.influence[-1].nonzero().flatten().tolist() == list(range(max(0, column - 3 - layers * half), column))


@pytest.mark.parametrize("width", [4, 5, 9])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_diagonal_bilstm_sees_all_but_the_end_of_the_row_above(width, layers):
    network = build(DiagonalBiLSTMNetwork, (1, 5, width), layers=layers)
    for row, column in product((0, 1, 4), range(width)):
        report = receptive_field_report(network, (1, 5, width), (row, column), num_draws=2)
        blind = [[row - 1, width - 1]] if row and column < width - 4 else []
        assert report.blind_spot.nonzero().tolist() == blind
        assert not report.leaks.any()


def test_of_the_end_of_the_row_above_only_the_last_channel_is_not_seen():
    network, images = build(DiagonalBiLSTMNetwork, (3, 3, 8)), pictures(1, 3, 3, 8).requires_grad_()
    (by_images,) = torch.autograd.grad(network(images)[0, :, :, 2, 2].sum(), images)
    assert (by_images[0, :, :2] == 0).nonzero().tolist() == [[2, 1, 7]]


@pytest.mark.parametrize("kind", KINDS)
def test_information_comes_through_a_long_way(kind):
    shape = (1, 28, 28)
    network, images = build(kind, shape, layers=1), pictures(1, *shape).requires_grad_()
    (by_images,) = torch.autograd.grad(network(images)[0, :, 0, -1, 14].sum(), images)
    assert (by_images[0, 0, 0] != 0).all()


# Known mistakes


def test_a_right_map_that_is_not_moved_down_is_caught(monkeypatch):
    monkeypatch.setattr(lstm, "shift_down", lambda features: features)
    with pytest.raises(AssertionError, match=r"Not autoregressive.* generated . steps? later"):
        assert_autoregressive(build(DiagonalBiLSTMNetwork, (1, 4, 5)), (1, 4, 5), num_draws=1)


def test_states_of_the_row_below_are_caught(monkeypatch):
    # As from a convolution of 2 x 1 that is padded below instead of above.
    def below(height, width):
        sweep = diagonal_sweep(height, width)
        return sweep._replace(reads=(0, *(read + 1 for read in sweep.reads[1:])), cell=0)

    monkeypatch.setattr(lstm, "diagonal_sweep", below)
    with pytest.raises(AssertionError, match="Not autoregressive"):
        assert_autoregressive(build(DiagonalBiLSTMNetwork, (1, 4, 5)), (1, 4, 5), num_draws=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_mask_b_is_caught(kind):
    network = build(kind, (1, 4, 5))
    network.input.mask[..., -1, 3] = True
    with pytest.raises(AssertionError, match="same pixel"):
        assert_autoregressive(network, (1, 4, 5), num_draws=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", ["lstm.input_to_state", "output"])
def test_channels_out_of_order_are_caught(kind, layer):
    network = build(kind, (3, 2, 3))
    network.layers[1].get_submodule(layer).mask.fill_(True)
    with pytest.raises(AssertionError, match="no earlier channel of the same pixel"):
        assert_autoregressive(network, (3, 2, 3), channels="ordered", num_draws=1)


def test_a_row_from_the_right_that_is_late_is_caught(monkeypatch):
    # Each row gets what the one above it should have had.
    network, row = build(DiagonalBiLSTMNetwork, (1, 4, 3)), DiagonalBiLSTMNetwork._row

    def late(self, cache, place):
        before = cache.updates.clone()
        row(self, cache, place)
        cache.updates.copy_(before)

    monkeypatch.setattr(DiagonalBiLSTMNetwork, "_row", late)
    with pytest.raises(AssertionError, match=r"differ first at pixel \(row 1, column 0\)"):
        assert_cached_equals_naive(network, (1, 4, 3))


# What they compute


def masked(conv: nn.Conv2d, kind: str, image_channels: int, parts: int = 1) -> Tensor:
    """The whole kernel with zeros for the future, the channels of the picture in turns."""
    out, into, rows, columns = conv.weight.shape
    whole = torch.zeros(out, into, 2 * rows - 1, columns, dtype=torch.float64)
    whole[:, :, :rows] = conv.weight.detach()
    for o, i in product(range(out), range(into)):
        to, source = o % (out // parts) % image_channels, i % image_channels
        whole[o, i, rows - 1, columns // 2 + 1 :] = 0
        if not (source < to or (kind == "B" and source == to)):
            whole[o, i, rows - 1, columns // 2] = 0
    return whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_as_written_in_the_paper(kind, channels):
    # What the LSTMs themselves compute has its test in tests/layers/test_lstm.py.
    network, images = build(kind, (channels, 4, 5)), pictures(2, channels, 4, 5)
    assert network.input.weight.shape == (10, channels, 4, 7)
    features = F.conv2d(images, masked(network.input, "A", channels), network.input.bias, padding=3)
    for layer in network.layers:
        hidden = layer.lstm(features.permute(2, 3, 0, 1)).permute(2, 3, 0, 1)
        assert hidden.shape == (2, 5, 4, 5)
        features = features + F.conv2d(hidden, masked(layer.output, "B", channels), layer.output.bias)
    for conv in (network.head.hidden, network.head.output):
        features = F.conv2d(features.clamp_min(0), masked(conv, "B", channels), conv.bias)
    torch.testing.assert_close(network(images), features.unflatten(1, (4, channels)))


def test_the_papers_sizes():
    h, head, first = 128, 1024, (3 * 28 + 1) * 256
    rest = (2 * h * head + head) + (head * 3 * 256 + 3 * 256)
    row = 4 * h * (2 * 2 * h + 3 * h + 1) + (h + 1) * 2 * h
    diagonal = 2 * 4 * h * (2 * h + 2 * h + 1) + (h + 1) * 2 * h
    with torch.device("meta"):
        for kind, layer in ((RowLSTMNetwork, row), (DiagonalBiLSTMNetwork, diagonal)):
            network = kind((3, 32, 32), outputs=768)
            assert sum(p.numel() for p in network.parameters()) == first + 12 * layer + rest
            assert network(torch.empty(2, 3, 32, 32)).shape == (2, 256, 3, 32, 32)
        mnist = DiagonalBiLSTMNetwork((1, 28, 28), outputs=1, filters=16, layers=7, head_filters=32)
        assert mnist(torch.empty(2, 1, 28, 28)).shape == (2, 1, 1, 28, 28)
        assert sum(p.numel() for p in mnist.parameters()) == 64065


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("image_shape", "num_levels"), [((1, 3, 3), 2), ((3, 1, 3), 2), ((2, 2, 2), 2), ((3, 1, 2), 3)]
)
def test_the_probabilities_of_all_pictures_sum_to_1(kind, image_shape, num_levels):
    network = build(kind, image_shape, num_levels)
    size = image_shape[0] * image_shape[1] * image_shape[2]
    levels = torch.tensor(list(product(range(num_levels), repeat=size))).view(-1, *image_shape)
    log_prob_of = bernoulli_log_prob if num_levels == 2 else categorical_log_prob
    with torch.no_grad():
        logits = network(levels_to_images(levels, num_levels, torch.float64))
        log_prob = log_prob_of(logits.squeeze(1) if num_levels == 2 else logits, levels)
    assert log_prob.logsumexp(0).abs() < 1e-10
    assert log_prob.std() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_fits_a_distribution_of_colours_to_its_entropy(kind):
    # Colours of 2 pixels, of which each determines much of the next: 4^3 pictures with random probabilities.
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor(list(product(range(2), repeat=6))).view(-1, 3, 2, 1)
    probabilities = (3 * torch.randn(64, generator=generator)).softmax(0)
    entropy = -(probabilities * probabilities.log()).sum()
    network = build(kind, (3, 2, 1), 2, filters=24, layers=1, head_filters=48).float()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(300):
        log_prob = bernoulli_log_prob(network(levels_to_images(levels, 2)).squeeze(1), levels)
        loss = -(probabilities * log_prob).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert entropy - 1e-4 < loss < entropy + 0.05


# Tools


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_as_one_graph_and_exports(kind):
    network, images = build(kind, (3, 3, 2)), pictures(2, 3, 3, 2)
    logits = network(images)
    logits.square().sum().backward()
    gradients = [weight.grad.clone() for weight in network.parameters()]
    network.zero_grad()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")(images)
    torch.testing.assert_close(compiled, logits)
    compiled.square().sum().backward()
    for weight, gradient in zip(network.parameters(), gradients, strict=True):
        torch.testing.assert_close(weight.grad, gradient)
    program = torch.export.export(network, (images,)).module()
    torch.testing.assert_close(program(images), logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image_shape", [(1, 4, 3), (3, 3, 2)])
def test_each_compiled_piece_serves_all_positions(kind, image_shape):
    network, images, graphs, compiled = build(kind, image_shape), pictures(2, *image_shape), [], {}

    def run(piece, cache, place, *flags):
        key = (piece.__name__, flags)
        if key not in compiled:
            backend = lambda graph, _: graphs.append(key) or graph  # noqa: E731
            compiled[key] = torch.compile(piece, fullgraph=True, backend=backend)
        return compiled[key](cache, place, *flags)

    cache, logits = network.init_cache(2, CPU), network(images).flatten(3)
    for position in range(logits.shape[3]):
        for channel in range(image_shape[0]):
            result = network.step(cache, position, run)[:, :, channel]
            torch.testing.assert_close(result, logits[:, :, channel, position])
            cache.images.flatten(2)[:, channel, position] = images.flatten(2)[:, channel, position]
    assert sorted(graphs) == sorted(compiled)
    assert [name for name, _ in compiled] == ["_first_row", "_pixel", "_row"]


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_and_its_gradients(kind):
    network, images = build(kind, (3, 4, 5)).float(), pictures(2, 3, 4, 5).float()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), network(images), rtol=0.1, atol=0.05)
    logits.float().square().sum().backward()
    gradients = [weight.grad.clone() for weight in network.parameters()]
    network.zero_grad()
    network(images).square().sum().backward()
    for weight, gradient in zip(network.parameters(), gradients, strict=True):
        # A ReLU of the head that is near zero may be on in one and off in the other.
        assert (gradient - weight.grad).norm() < 0.15 * weight.grad.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_steps_in_bfloat16(kind):
    network, images = build(kind, (1, 3, 4)).bfloat16(), pictures(2, 1, 3, 4).bfloat16()
    cache = network.init_cache(2, CPU)
    assert [map.dtype for map in (cache.images, cache.hidden, cache.cells)] == [torch.bfloat16] * 2 + [torch.float32]
    logits = network(images).flatten(3)
    for position in range(12):
        torch.testing.assert_close(network.step(cache, position), logits[..., position], rtol=0.05, atol=0.02)
        cache.images.flatten(2)[:, :, position] = images.flatten(2)[:, :, position]


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_state_dicts(kind):
    network, images = build(kind, (3, 4, 5)), pictures(2, 3, 4, 5)
    other = build(kind, (3, 4, 5), seed=1)
    assert not torch.allclose(other(images), network(images))
    other.load_state_dict(network.state_dict())
    for twin in (other, copy.deepcopy(network)):
        assert torch.equal(twin(images), network(images))
    cache = network.init_cache(2, CPU)
    cache.images.copy_(images)
    network.prefill(cache, 7)
    twin = copy.deepcopy(cache)
    network.step(cache, 7)
    cache.images.zero_()
    assert torch.equal(network.step(twin, 7), network.step(copy.deepcopy(twin), 7))
    torch.testing.assert_close(network.step(twin, 7), network(images)[..., 1, 2])


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_of_another_size_and_labels_are_refused(kind):
    network = build(kind, [1, 4, 5])
    assert network(pictures(2, 1, 4, 5)).shape == (2, 4, 1, 4, 5)
    with pytest.raises(ValueError, match=r"images must be \[N, 1, 4, 5\], got \[2, 1, 5, 4\]"):
        network(pictures(2, 1, 5, 4))
    labels = torch.tensor([0, 1])
    for given in (lambda: network(pictures(2, 1, 4, 5), labels), lambda: network.init_cache(2, CPU, labels)):
        with pytest.raises(ValueError, match="no classes"):
            given()


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="odd"):
        build(RowLSTMNetwork, (1, 4, 5), kernel_size=4)
