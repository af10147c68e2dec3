import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.layers.shifted import DownRightShiftedConv2d
from lightning_gen.layers.weight_norm import WeightNormalized
from lightning_gen.networks import pixelsnail
from lightning_gen.networks.pixelsnail import Block, PixelSNAILNetwork, causal_attention, coordinates
from lightning_gen.networks.weight_normalized import GatedResidual
from lightning_gen.testing import assert_autoregressive, assert_cached_equals_naive, receptive_field_report
from tests.shared import OfClasses, tensors_of

SHAPES = [(1, 4, 6), (3, 5, 3), (1, 1, 5), (2, 5, 1)]
CPU = torch.device("cpu")


def small(image_shape=(1, 4, 6), seed=0, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"outputs": 5, "filters": 4, "num_blocks": 2, "num_resnets": 2}
        sizes |= {"attention_keys": 2, "attention_values": 3, **settings}
        return PixelSNAILNetwork(image_shape, **sizes).double().eval()


def pictures(*shape):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


# Autoregressive


@pytest.mark.parametrize("image_shape", SHAPES)
def test_no_parameter_depends_on_its_own_pixel_or_later_ones(image_shape):
    assert_autoregressive(small(image_shape), image_shape, num_draws=2)


def no_attention(queries, keys, values):
    return torch.zeros_like(values)


def test_one_block_sees_every_earlier_pixel_where_its_convolutions_see_but_a_few(monkeypatch):
    network = small((1, 6, 8), num_blocks=1, num_resnets=1)
    for position in ((5, 4), (5, 7), (3, 0), (0, 6)):
        report = receptive_field_report(network, (1, 6, 8), position, num_draws=4)
        assert not report.blind_spot.any(), report
        assert not report.leaks.any(), report
    monkeypatch.setattr(pixelsnail, "causal_attention", no_attention)
    report = receptive_field_report(network, (1, 6, 8), (5, 4), num_draws=4)
    # The first layer sees a pixel to the left and three above, each of two convolutions one more row and column.
    assert report.seen_per_row == [0, 0, 5, 5, 5, 3]


def not_strict(queries, keys, values):
    queries, keys, values = (x.unsqueeze(1) for x in (queries, keys, values))
    return F.scaled_dot_product_attention(queries, keys, values, is_causal=True).squeeze(1)


def to_all(queries, keys, values):
    queries, keys, values = (x.unsqueeze(1) for x in (queries, keys, values))
    return F.scaled_dot_product_attention(queries, keys, values).squeeze(1)


BUGS = {
    "attention to the pixel itself": (pixelsnail, "causal_attention", not_strict),
    "attention to all pixels": (pixelsnail, "causal_attention", to_all),
    "first layer not shifted right": (pixelsnail, "shift_right", lambda features: features),
    "first layer not shifted down": (pixelsnail, "shift_down", lambda features: features),
    "kernels to the right": (
        DownRightShiftedConv2d,
        "transform",
        lambda self, features, weight, bias: F.conv2d(
            F.pad(features, (0, self.kernel_size[1] - 1, self.kernel_size[0] - 1, 0)), weight, bias
        ),
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(monkeypatch, bug):
    monkeypatch.setattr(*BUGS[bug])
    with pytest.raises(AssertionError, match="Not autoregressive"):
        assert_autoregressive(small(), (1, 4, 6))


# The paper's network, written out


def attention_written_out(queries, keys, values):
    """Pixel by pixel, as the paper says it."""
    result = torch.zeros_like(values)
    for number in range(len(values)):
        for pixel in range(1, values.shape[1]):
            scores = torch.stack([queries[number, pixel] @ keys[number, before] for before in range(pixel)])
            shares = (scores / keys.shape[2] ** 0.5).exp()
            shares = shares / shares.sum()
            for before in range(pixel):
                result[number, pixel] += shares[before] * values[number, before]
    return result


@pytest.mark.parametrize("pixels", [1, 2, 7])
def test_attention_is_the_weighted_mean_of_what_came_before(pixels):
    queries, keys, values = pictures(2, pixels, 4), pictures(2, pixels, 4) * 3, pictures(2, pixels, 5)
    result = causal_attention(queries, keys, values)
    torch.testing.assert_close(result, attention_written_out(queries, keys, values))
    assert (result[:, 0] == 0).all()
    if pixels > 1:
        assert torch.equal(result[:, 1], values[:, 0])
    alike = causal_attention(torch.zeros_like(queries), keys, values)
    means = values.cumsum(1)[:, :-1] / torch.arange(1, pixels)[:, None]
    torch.testing.assert_close(alike[:, 1:], means)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_and_its_gradients_are_finite_at_the_first_pixel_too(dtype):
    given = [pictures(2, 6, 3).to(dtype).mul_(scale).requires_grad_() for scale in (30, 30, 1)]
    result = causal_attention(*given)
    assert result.dtype == dtype
    assert result.isfinite().all()
    gradients = torch.autograd.grad(result.float().square().sum(), given)
    assert all(gradient.isfinite().all() for gradient in gradients)
    queries, keys, values = gradients
    assert (queries[:, 0] == 0).all()  # it has no choice
    assert (keys[:, -1] == 0).all()  # none comes after
    assert (values[:, -1] == 0).all()
    assert (values[:, 0] != 0).any(1).all()  # the second pixel has no other


class Reference:
    """PixelSNAIL as the paper describes it, for one network's weights."""

    def __init__(self, network, labels=None):
        self.weights, self.labels = dict(network.named_parameters()), labels

    def conv(self, name, x):
        v, g, b = (self.weights[f"{name}.{letter}"] for letter in "vgb")
        weight = v * (g / v.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
        height, width = weight.shape[2:]
        return F.conv2d(F.pad(x, (width - 1, 0, height - 1, 0)), weight, b)

    def residual(self, name, x, beside=None):
        hidden = self.conv(f"{name}.conv1", F.elu(x))
        if beside is not None:
            hidden = hidden + self.conv(f"{name}.shortcut", F.elu(beside))
        a, b = self.conv(f"{name}.conv2", F.elu(hidden)).chunk(2, 1)
        if self.labels is not None:
            class_a, class_b = self.weights[f"{name}.classes.weight"][self.labels][:, :, None, None].chunk(2, 1)
            a, b = a + class_a, b + class_b
        return x + a * torch.sigmoid(b)

    def block(self, name, x, images, num_resnets, num_keys):
        height, width = images.shape[2:]
        for number in range(num_resnets):
            x = self.residual(f"{name}.resnets.{number}", x)
        rows = ((torch.arange(height) - height / 2) / height).view(1, 1, -1, 1).expand(len(x), 1, height, width)
        columns = ((torch.arange(width) - width / 2) / width).expand(len(x), 1, height, width)
        told = self.residual(f"{name}.content", torch.cat([images, x, rows, columns], 1))
        asked = self.residual(f"{name}.query", torch.cat([x, rows, columns], 1))
        told, queries = self.conv(f"{name}.tell", told), self.conv(f"{name}.ask", asked)
        keys, values = told[:, :num_keys], told[:, num_keys:]
        mixed = attention_written_out(*(part.flatten(2).mT for part in (queries, keys, values)))
        return self.residual(f"{name}.join", x, mixed.mT.unflatten(2, (height, width)))

    def __call__(self, images, num_blocks, num_resnets, num_keys):
        x = torch.cat([images, torch.ones_like(images[:, :1])], 1)
        above = self.conv("first_above", F.pad(x, (0, 1)))[..., 1:]  # the pixel in the middle of three
        x = F.pad(above, (0, 0, 1, 0))[:, :, :-1] + F.pad(self.conv("first_left", x), (1, 0))[..., :-1]
        for number in range(num_blocks):
            x = self.block(f"blocks.{number}", x, images, num_resnets, num_keys)
        return self.conv("last", F.elu(x))


@pytest.mark.parametrize("image_shape", [(3, 3, 4), (1, 1, 1)])
@pytest.mark.parametrize("num_classes", [None, 3])
def test_the_same_as_the_paper_written_out(image_shape, num_classes):
    network = small(image_shape, num_classes=num_classes)
    for weights in network.parameters():
        nn.init.normal_(weights, std=0.5)
    labels = None if num_classes is None else torch.tensor([2, 0])
    images = pictures(2, *image_shape)
    with torch.no_grad():
        result = network(images, labels)
        assert result.shape == (2, 5, *image_shape[1:])
        torch.testing.assert_close(result, Reference(network, labels)(images, 2, 2, 2))


def test_coordinates_are_shares_of_the_sides():
    rows, columns = coordinates(4, 5)
    assert rows[:, 2].tolist() == [-0.5, -0.25, 0, 0.25]
    assert columns[1].tolist() == pytest.approx([-0.5, -0.3, -0.1, 0.1, 0.3])


@pytest.mark.parametrize(
    ("channels", "filters", "num_blocks", "num_resnets", "keys", "values", "num_classes"),
    [(3, 256, 12, 4, 16, 128, None), (1, 6, 2, 3, 4, 5, 10)],
)
def test_how_many_parameters_there_are(channels, filters, num_blocks, num_resnets, keys, values, num_classes):
    with torch.device("meta"):
        network = PixelSNAILNetwork(
            (channels, 32, 32),
            outputs=100,
            filters=filters,
            num_blocks=num_blocks,
            num_resnets=num_resnets,
            attention_keys=keys,
            attention_values=values,
            num_classes=num_classes,
        )

    def layer(inputs, outputs, taps=1):
        return (inputs * taps + 2) * outputs  # v, g and b

    def residual(size, taps, shortcut=0):
        of_shortcut = layer(shortcut, size) if shortcut else 0
        return layer(size, size, taps) + of_shortcut + layer(size, 2 * size, taps) + (num_classes or 0) * 2 * size

    told, asked = channels + filters + 2, filters + 2
    block = num_resnets * residual(filters, 4) + residual(told, 1) + layer(told, keys + values)
    block += residual(asked, 1) + layer(asked, keys) + residual(filters, 1, values)
    first = layer(channels + 1, filters, 3) + layer(channels + 1, filters, 2)
    count = sum(weights.numel() for weights in network.parameters())
    assert count == first + num_blocks * block + layer(filters, 100)
    if filters == 256:
        assert round(count / 1e6) == 46


def test_all_weights_learn_and_a_class_reaches_every_residual_block():
    network = small((3, 4, 5), num_classes=3)
    network.initialize(pictures(9, 3, 4, 5), torch.arange(9) % 3)
    labels = torch.tensor([2, 0, 2])
    network(pictures(3, 3, 4, 5), labels).square().sum().backward()
    assert all(weights.grad is not None and weights.grad.abs().max() > 1e-9 for weights in network.parameters())
    gated = [module for module in network.modules() if isinstance(module, GatedResidual)]
    assert len(gated) == 2 * (2 + 3)
    for module in gated:
        of_class = module.classes.weight.grad.abs().amax(1)
        assert (of_class > 1e-9).tolist() == [True, False, True]


@pytest.mark.parametrize("training", [False, True])
def test_initialised_all_pre_activations_have_mean_0_and_the_wanted_deviation(training):
    network, images = small((3, 6, 5), num_classes=3).train(training), pictures(16, 3, 6, 5)
    labels, found = torch.arange(16) % 3, []
    torch.manual_seed(4)  # the same dropout, if any
    network.initialize(images, labels)
    assert network.training is training

    def measure(layer, _, output):
        by_channel = output.detach().transpose(0, 1).flatten(1)
        found.append((float(by_channel.mean(1).abs().max()), by_channel.std(1, correction=0) / layer.init_scale - 1))

    layers = [layer for layer in network.modules() if isinstance(layer, WeightNormalized)]
    for layer in layers:
        layer.register_forward_hook(measure)
    torch.manual_seed(4)
    network(images, labels)
    assert len(found) == len(layers) == 2 + 2 * (2 * 2 + 3 * 2 + 1 + 2) + 1
    assert all(mean < 1e-4 and deviation.abs().max() < 1e-4 for mean, deviation in found)


# Steps


@pytest.mark.parametrize("image_shape", [*SHAPES, (1, 1, 1)])
@pytest.mark.parametrize("num_resnets", [1, 2])
def test_steps_give_what_the_whole_gives(image_shape, num_resnets):
    assert_cached_equals_naive(small(image_shape, num_resnets=num_resnets), image_shape)


def test_steps_with_classes():
    network = OfClasses(small(num_classes=3))
    assert_autoregressive(network, (1, 4, 6), num_draws=1)
    assert_cached_equals_naive(network, (1, 4, 6))


@pytest.mark.parametrize("image_shape", [(1, 4, 3), (2, 3, 4)])
def test_prefilled_as_stepped_from_any_pixel(image_shape):
    network = small(image_shape, num_classes=2)
    images, labels = pictures(2, *image_shape), torch.tensor([1, 0])
    expected, pixels = network(images, labels).flatten(2).detach(), images.flatten(2)
    count = pixels.shape[2]
    for known in range(count):
        cache = network.init_cache(2, CPU, labels)
        cache.images.fill_(1e3).flatten(2)[..., :known] = pixels[..., :known]
        network.prefill(cache, known)
        for position in range(known, count):
            result = network.step(cache, position)
            torch.testing.assert_close(result, expected[..., position], rtol=0, atol=1e-9)
            cache.images.flatten(2)[..., position] = pixels[..., position]


def test_steps_may_be_repeated_and_a_cache_used_again():
    network, images = small(), pictures(2, 1, 4, 6)
    cache, expected = network.init_cache(2, CPU), network(images).flatten(2).detach()
    for _ in range(2):
        for position in range(24):
            first = network.step(cache, position)
            assert torch.equal(network.step(cache, position), first)
            assert not first.requires_grad
            torch.testing.assert_close(first, expected[..., position], rtol=0, atol=1e-9)
            cache.images.flatten(2)[..., position] = images.flatten(2)[..., position]
        cache.images.fill_(1e3)


def test_buffers_of_a_cache_stay_where_they_are_and_the_network_has_no_state():
    network = small()
    before = copy.deepcopy(network.state_dict())
    cache = network.init_cache(2, CPU)
    assert not any(tensor.requires_grad for tensor in tensors_of(cache))
    places = [tensor.data_ptr() for tensor in tensors_of(cache)]
    for position in range(24):
        network.step(cache, position)
        cache.images.flatten(2)[..., position] = 1
    assert places == [tensor.data_ptr() for tensor in tensors_of(cache)]
    assert (cache.images == 1).all()
    assert torch.equal(network.background, small().background)
    assert all(torch.equal(weights, before[name]) for name, weights in network.state_dict().items())
    for zeros in (cache.inputs[:, -1], cache.known[-1], cache.ends[-1], cache.keys[:, :, -1], cache.values[:, :, -1]):
        assert not zeros.any()


def test_one_compiled_piece_serves_all_positions():
    network = small((3, 4, 3), num_classes=2)
    images, labels, graphs, compiled = pictures(2, 3, 4, 3), torch.tensor([1, 0]), [], {}

    def run(piece, cache, place, *flags):
        assert (place.dtype, place.shape) == (torch.int64, (1,))
        assert not flags
        if piece.__name__ not in compiled:
            backend = lambda graph, _: graphs.append(piece.__name__) or graph  # noqa: E731
            compiled[piece.__name__] = torch.compile(piece, fullgraph=True, backend=backend)
        return compiled[piece.__name__](cache, place)

    cache, expected = network.init_cache(2, CPU, labels), network(images, labels).flatten(2).detach()
    for position in range(12):
        result = network.step(cache, position, run)
        torch.testing.assert_close(result, expected[..., position], rtol=0, atol=1e-9)
        cache.images.flatten(2)[..., position] = images.flatten(2)[..., position]
    assert graphs == ["_pixel"]


def test_a_step_takes_as_many_calls_in_any_picture_and_keeps_features_of_two_rows_only():
    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(function)
            return function(*args, **(kwargs or {}))

    counts = []
    for height in (3, 9):
        network, calls = small((1, height, 4)), []
        cache = network.init_cache(2, CPU)
        assert cache.known.shape == (2 * 4 + 1, 2 * 4, 2, 4)
        with Count():
            network.step(cache, 5)
        counts.append(len(calls))
    assert len(set(counts)) == 1


# The usual


def test_dropout_in_training_only():
    network, images = small(), pictures(2, 1, 4, 6)
    assert torch.equal(network(images), network(images))
    network.train()
    assert not torch.equal(network(images), network(images))
    undropped = small(dropout=0).train()
    assert torch.equal(undropped(images), small()(images))


def test_autocast_and_its_gradients():
    network, images = small((3, 5, 6), num_classes=2, filters=8).float(), pictures(8, 3, 5, 6).float()
    labels = torch.arange(8) % 2
    network.initialize(images, labels)
    exact = network(images, labels)
    with torch.autocast("cpu", torch.bfloat16):
        result = network(images, labels)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), exact, rtol=0, atol=0.1)  # they have a deviation of 1
    weights, direction = list(network.parameters()), pictures(*exact.shape).float()
    for mine, other in zip(
        torch.autograd.grad((result.float() * direction).sum(), weights),
        torch.autograd.grad((exact * direction).sum(), weights),
        strict=True,
    ):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() < 0.1 * other.norm() + 0.1


@pytest.mark.parametrize("num_classes", [None, 2])
def test_compiles_as_one_graph_and_exports(num_classes):
    network = small((3, 3, 4), num_classes=num_classes, num_blocks=1, num_resnets=1)
    images = pictures(2, 3, 3, 4)
    given = (images,) if num_classes is None else (images, torch.tensor([1, 0]))
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*given), network(*given))
    torch.testing.assert_close(torch.export.export(network, given).module()(*given), network(*given))
    network.train()
    compiled(*given).sum().backward()


def test_copies_and_state_dicts():
    network, other = (small((3, 3, 4), seed=seed, num_classes=2) for seed in (0, 1))
    images, labels = pictures(2, 3, 3, 4), torch.tensor([1, 0])
    assert list(network.state_dict()) == [name for name, _ in network.named_parameters()]
    assert {name.split(".")[-1] for name in network.state_dict()} == {"v", "g", "b", "weight"}
    expected = network(images, labels)
    assert not torch.allclose(other(images, labels), expected)
    other.load_state_dict(network.state_dict())
    for copied in (copy.deepcopy(network), other):
        assert torch.equal(copied(images, labels), expected)
        cache = copied.init_cache(2, CPU, labels)
        torch.testing.assert_close(copied.step(cache, 0), expected[..., 0, 0].detach())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_shape": (1, 8)}, "image_shape must be"),
        ({"outputs": 0}, "must be at least 1, got 0, 4, 2, 2, 2 and 3"),
        ({"filters": 0}, "must be at least 1"),
        ({"num_blocks": 0}, "must be at least 1"),
        ({"num_resnets": 0}, "must be at least 1"),
        ({"attention_keys": 0}, "must be at least 1"),
        ({"attention_values": 0}, "must be at least 1"),
        ({"dropout": 1.0}, "below 1, got 1.0"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_pictures_and_labels_that_are_not_the_networks_are_refused():
    network = small((3, 4, 5))
    with pytest.raises(ValueError, match=r"images must be \[N, 3, 4, 5\], got \[2, 3, 5, 4\]"):
        network(pictures(2, 3, 5, 4))
    for wrong in (lambda: network(pictures(2, 3, 4, 5), torch.tensor([0, 1])),
                  lambda: network.init_cache(2, CPU, torch.tensor([0, 1]))):  # fmt: skip
        with pytest.raises(ValueError, match="no classes"):
            wrong()
    network = small((3, 4, 5), num_classes=2)
    for wrong in (lambda: network(pictures(2, 3, 4, 5)), lambda: network.init_cache(2, CPU)):
        with pytest.raises(ValueError, match="needs labels"):
            wrong()


def test_blocks_are_as_many_as_wanted():
    with torch.device("meta"):
        network = PixelSNAILNetwork((3, 32, 32), outputs=100)
    assert len(network.blocks) == 12
    assert all(isinstance(block, Block) and len(block.resnets) == 4 for block in network.blocks)
