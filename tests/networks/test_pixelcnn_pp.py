import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.layers.dropout import Dropout
from lightning_gen.layers.shifted import (
    DownRightShiftedConv2d,
    DownRightShiftedConvTranspose2d,
    DownShiftedConv2d,
    DownShiftedConvTranspose2d,
)
from lightning_gen.layers.weight_norm import WeightNormalized
from lightning_gen.losses.logistic_mixture import logistic_mixture_channels
from lightning_gen.networks import pixelcnn_pp
from lightning_gen.networks.pixelcnn_pp import Block, GatedResnet, PixelCNNPPNetwork
from lightning_gen.testing import assert_autoregressive, assert_cached_equals_naive, receptive_field_report
from tests.shared import OfClasses, tensors_of

SHAPES = [(1, 8, 8), (3, 4, 8), (3, 8, 4), (2, 4, 4)]
CPU = torch.device("cpu")


def small(image_shape=(1, 8, 8), seed=0, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = {"outputs": 5, "filters": 4, "num_blocks": 1, **settings}
        return PixelCNNPPNetwork(image_shape, **settings).double().eval()


def pictures(*shape):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


# Autoregressive


@pytest.mark.parametrize("image_shape", SHAPES)
def test_no_parameter_depends_on_its_own_pixel_or_later_ones(image_shape):
    assert_autoregressive(small(image_shape), image_shape, num_draws=2)


@pytest.mark.parametrize(
    ("num_scales", "image_shape"), [(1, (1, 3, 5)), (1, (2, 1, 4)), (2, (1, 6, 4)), (4, (1, 8, 8))]
)
def test_any_number_of_scales(num_scales, image_shape):
    network = small(image_shape, num_scales=num_scales)
    assert_autoregressive(network, image_shape, num_draws=1)
    assert_cached_equals_naive(network, image_shape)


@pytest.mark.parametrize("position", [(7, 3), (6, 0), (5, 7), (4, 4)])
def test_every_earlier_pixel_is_seen(position):
    report = receptive_field_report(small(num_blocks=2), (1, 8, 8), position, num_draws=4)
    assert not report.blind_spot.any(), report
    assert not report.leaks.any(), report


def test_rows_above_have_no_blind_spot_however_wide_the_picture():
    # One 2 x 3 convolution sees one pixel to each side of every row that it adds, and one more at each block.
    network = small((1, 4, 32), num_scales=1, num_blocks=3)
    report = receptive_field_report(network, (1, 4, 32), (3, 8), num_draws=4)
    seen_to_the_right = [int(row.nonzero().max()) - 8 for row in report.influence[:3]]
    # The first convolution, then two in each of three blocks up and three down, all of which the row above passes.
    assert seen_to_the_right == [13, 13, 13]


def identity(features):
    return features


def one_row_up(self, features, weight, bias):
    rows = -(-features.shape[2] // self.stride)
    height = self.kernel_size[0]
    result = F.conv2d(F.pad(features, (*[self.kernel_size[1] // 2] * 2, 0, height)), weight, bias, self.stride)
    return result[:, :, :rows]


def one_pixel_up(kind):
    transform = kind.transform
    return lambda self, features, weight, bias: transform(self, features, weight, bias).roll(-1, dims=3)


BUGS = {
    "ul not shifted": (pixelcnn_pp, "shift_right", identity),
    "u not shifted": (pixelcnn_pp, "shift_down", identity),
    "kernels of ul to the right": (
        DownRightShiftedConv2d,
        "transform",
        lambda self, features, weight, bias: F.conv2d(
            F.pad(features, (0, self.kernel_size[1] - 1, self.kernel_size[0] - 1, 0)), weight, bias, self.stride
        ),
    ),
    "kernels of u below": (DownShiftedConv2d, "transform", one_row_up),
    "finer scale of ul a pixel early": (
        DownRightShiftedConvTranspose2d,
        "transform",
        one_pixel_up(DownRightShiftedConvTranspose2d),
    ),
    "finer scale of u a row early": (
        DownShiftedConvTranspose2d,
        "transform",
        lambda self, features, weight, bias: F.conv_transpose2d(
            features, weight, bias, self.stride, self.padding, self.output_padding
        ).roll(-1, dims=2),
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_caught(monkeypatch, bug):
    monkeypatch.setattr(*BUGS[bug])
    with pytest.raises(AssertionError, match="Not autoregressive"):
        assert_autoregressive(small((1, 4, 8)), (1, 4, 8))


# The paper's network, written out


class Reference:
    """PixelCNN++ as the paper describes it, for one network's weights."""

    def __init__(self, network, labels=None):
        self.weights, self.labels = dict(network.named_parameters()), labels
        self.num_scales = len(network.up)

    def layer(self, name, transposed=False):
        v, g, b = (self.weights[f"{name}.{letter}"] for letter in "vgb")
        by_output = v.transpose(0, 1) if transposed else v
        weight = by_output * (g / by_output.flatten(1).norm(dim=1)).view(-1, *[1] * (v.ndim - 1))
        return weight.transpose(0, 1) if transposed else weight, b

    def down_shifted(self, name, x, stride=1):
        weight, bias = self.layer(name)
        height, width = weight.shape[2:]
        return F.conv2d(F.pad(x, (width // 2, width // 2, height - 1, 0)), weight, bias, stride)

    def down_right_shifted(self, name, x, stride=1):
        weight, bias = self.layer(name)
        height, width = weight.shape[2:]
        return F.conv2d(F.pad(x, (width - 1, 0, height - 1, 0)), weight, bias, stride)

    def nin(self, name, x):
        weight, bias = self.layer(name)
        return F.conv2d(x, weight[:, :, None, None], bias)

    def gated_resnet(self, name, x, shortcut, convolution):
        concat_elu = lambda x: F.elu(torch.cat([x, -x], 1))  # noqa: E731
        hidden = convolution(f"{name}.conv1", concat_elu(x))
        if shortcut is not None:
            # Of two, the one as [elu(x), elu(-x)] beside the other as that.
            hidden = hidden + self.nin(f"{name}.shortcut", torch.cat([concat_elu(x) for x in shortcut], 1))
        a, b = convolution(f"{name}.conv2", concat_elu(hidden)).chunk(2, 1)
        if self.labels is not None:
            of_class = self.weights[f"{name}.classes.weight"][self.labels][:, :, None, None]
            class_a, class_b = of_class.chunk(2, 1)
            a, b = a + class_a, b + class_b
        return x + a * torch.sigmoid(b)

    def block(self, name, u, ul, shortcut):
        u = self.gated_resnet(f"{name}.u", u, None if shortcut is None else shortcut[:1], self.down_shifted)
        beside = (u,) if shortcut is None else (u, shortcut[1])
        return u, self.gated_resnet(f"{name}.ul", ul, beside, self.down_right_shifted)

    def __call__(self, images, num_blocks):
        x = torch.cat([images, torch.ones_like(images[:, :1])], 1)
        down_shift = lambda x: F.pad(x, (0, 0, 1, 0))[:, :, :-1]  # noqa: E731
        right_shift = lambda x: F.pad(x, (1, 0))[:, :, :, :-1]  # noqa: E731
        u = down_shift(self.down_shifted("first_u", x))
        ul = down_shift(self.down_shifted("first_above", x)) + right_shift(self.down_right_shifted("first_left", x))

        outputs = [(u, ul)]
        for scale in range(self.num_scales):
            if scale:
                u = self.down_shifted(f"up.{scale}.resampling.u", u, stride=2)
                ul = self.down_right_shifted(f"up.{scale}.resampling.ul", ul, stride=2)
                outputs.append((u, ul))
            for number in range(num_blocks):
                u, ul = self.block(f"up.{scale}.blocks.{number}", u, ul, None)
                outputs.append((u, ul))

        u, ul = outputs.pop()
        for scale in reversed(range(self.num_scales)):
            if scale < self.num_scales - 1:
                height, width = 2 * u.shape[2], 2 * u.shape[3]
                weight, bias = self.layer(f"down.{scale}.resampling.u", transposed=True)
                u = F.pad(F.conv_transpose2d(u, weight, bias, 2), (0, 1))[:, :, :height, 1 : 1 + width]
                weight, bias = self.layer(f"down.{scale}.resampling.ul", transposed=True)
                ul = F.conv_transpose2d(ul, weight, bias, 2)[:, :, :height, :width]
            for number in range(num_blocks + (scale < self.num_scales - 1)):
                u, ul = self.block(f"down.{scale}.blocks.{number}", u, ul, outputs.pop())
        assert not outputs
        return self.nin("last", F.elu(ul))


@pytest.mark.parametrize(("image_shape", "num_blocks", "num_scales"), [((3, 8, 4), 2, 3), ((1, 4, 6), 1, 2)])
@pytest.mark.parametrize("num_classes", [None, 3])
def test_the_same_as_the_paper_written_out(image_shape, num_blocks, num_scales, num_classes):
    settings = {"num_blocks": num_blocks, "num_scales": num_scales, "num_classes": num_classes}
    network = small(image_shape, **settings)
    for weights in network.parameters():
        nn.init.normal_(weights, std=0.5)
    labels = None if num_classes is None else torch.tensor([2, 0])
    images = pictures(2, *image_shape)
    result = network(images, labels)
    assert result.shape == (2, 5, *image_shape[1:])
    torch.testing.assert_close(result, Reference(network, labels)(images, num_blocks))


@pytest.mark.parametrize(
    ("channels", "filters", "num_blocks", "num_scales", "num_classes"),
    [(3, 160, 5, 3, None), (3, 40, 5, 3, None), (3, 40, 1, 3, None), (1, 6, 2, 1, 10), (2, 7, 3, 4, 4)],
)
def test_how_many_parameters_there_are(channels, filters, num_blocks, num_scales, num_classes):
    outputs = logistic_mixture_channels(10, channels)
    with torch.device("meta"):
        network = PixelCNNPPNetwork(
            (channels, 32, 32),
            outputs=outputs,
            filters=filters,
            num_blocks=num_blocks,
            num_scales=num_scales,
            num_classes=num_classes,
        )

    def layer(inputs, outputs, taps=1):
        return (inputs * taps + 2) * outputs  # v, g and b

    def resnet(taps, shortcut):
        of_shortcut = layer(shortcut * filters, filters) if shortcut else 0
        of_classes = (num_classes or 0) * 2 * filters
        return layer(2 * filters, filters, taps) + of_shortcut + layer(2 * filters, 2 * filters, taps) + of_classes

    expected = sum(layer(channels + 1, filters, taps) for taps in (2 * 3, 1 * 3, 2 * 1))
    expected += num_scales * num_blocks * (resnet(6, 0) + resnet(4, 2))
    expected += (num_scales * (num_blocks + 1) - 1) * (resnet(6, 2) + resnet(4, 4))
    expected += 2 * (num_scales - 1) * (layer(filters, filters, 6) + layer(filters, filters, 4))
    expected += layer(filters, outputs)
    assert sum(weights.numel() for weights in network.parameters()) == expected
    if filters == 40:  # as in the PyTorch port of pclucas14: 3.37 million, with one block 0.90
        assert round(expected / 1e6, 2) == {5: 3.37, 1: 0.9}[num_blocks]


def test_all_weights_learn_and_a_class_reaches_every_block():
    network = small((3, 8, 8), num_blocks=2, num_classes=3)
    labels = torch.tensor([2, 0, 2])
    network(pictures(3, 3, 8, 8), labels).square().sum().backward()
    assert all(weights.grad is not None and weights.grad.abs().max() > 1e-9 for weights in network.parameters())
    gated = [module for module in network.modules() if isinstance(module, GatedResnet)]
    assert len(gated) == 2 * (3 * 2 + 2 + 3 + 3)
    for module in gated:
        of_class = module.classes.weight.grad.abs().amax(1)
        assert (of_class > 1e-9).tolist() == [True, False, True]


def test_a_block_of_the_way_down_gets_what_its_mirror_image_gave():
    network, given, taken = small(num_blocks=2), [], []
    for stage in network.up:
        stage.blocks[0].register_forward_pre_hook(lambda block, inputs: given.append(inputs[0]))
        for block in stage.blocks:
            block.register_forward_hook(lambda block, inputs, output: given.append(output[0]))
    for stage in network.down:
        for block in stage.blocks:
            block.register_forward_hook(lambda block, inputs, output: taken.append(inputs[1]))
    network(pictures(1, 1, 8, 8))
    *given, _ = given  # the last goes into the way down itself
    assert len(taken) == 2 + 3 + 3
    for one, other in zip(taken, reversed(given), strict=True):
        assert torch.equal(one.u_elu, other.u_elu)
        assert torch.equal(one.ul_elu, other.ul_elu)


# Initialisation from data


def deviations_from_initialised(network, *inputs):
    """Of the pre-activations of each layer: the largest mean, and the largest relative error of the deviation."""
    errors = []

    def measure(layer, _, output):
        by_channel = output.movedim(layer.feature_axis, 0).flatten(1)
        deviation = by_channel.std(1, correction=0) / layer.init_scale - 1
        errors.append((float(by_channel.mean(1).abs().max()), float(deviation.abs().max())))

    layers = [layer for layer in network.modules() if isinstance(layer, WeightNormalized)]
    hooks = [layer.register_forward_hook(measure) for layer in layers]
    with torch.no_grad():
        network(*inputs)
    for hook in hooks:
        hook.remove()
    assert len(errors) == len(layers)
    return torch.tensor(errors)


@pytest.mark.parametrize("training", [False, True])
def test_initialised_all_pre_activations_have_mean_0_and_the_wanted_deviation(training):
    network, images = small((3, 8, 8), num_blocks=2, num_classes=3).train(training), pictures(16, 3, 8, 8)
    labels = torch.arange(16) % 3

    def seeded(function):  # the same dropout, if any
        torch.manual_seed(4)
        return function(images, labels)

    assert deviations_from_initialised(network, images, labels).max() > 0.5
    seeded(network.initialize)
    torch.manual_seed(4)
    assert deviations_from_initialised(network, images, labels).max() < 1e-4
    assert network.training is training

    before = copy.deepcopy(network.state_dict())
    seeded(network.initialize)
    for name, weights in network.state_dict().items():
        torch.testing.assert_close(weights, before[name], rtol=1e-6, atol=1e-9)
    scales = {layer.init_scale for layer in network.modules() if isinstance(layer, WeightNormalized)}
    assert scales == {1.0, 0.1}


# Steps


@pytest.mark.parametrize("image_shape", SHAPES)
@pytest.mark.parametrize("num_blocks", [1, 2])
def test_steps_give_what_the_whole_gives(image_shape, num_blocks):
    assert_cached_equals_naive(small(image_shape, num_blocks=num_blocks), image_shape)


@pytest.mark.parametrize("num_scales", [1, 2, 3])
def test_steps_with_classes(num_scales):
    network = OfClasses(small((1, 4, 8), num_scales=num_scales, num_classes=3))
    assert_autoregressive(network, (1, 4, 8), num_draws=1)
    assert_cached_equals_naive(network, (1, 4, 8))


@pytest.mark.parametrize(("image_shape", "num_scales"), [((1, 8, 4), 3), ((2, 4, 6), 2), ((1, 3, 3), 1)])
def test_prefilled_as_stepped_from_any_pixel(image_shape, num_scales):
    network = small(image_shape, num_scales=num_scales, num_classes=2)
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
    network, images = small((1, 4, 8)), pictures(2, 1, 4, 8)
    cache, expected = network.init_cache(2, CPU), network(images).flatten(2).detach()
    for _ in range(2):
        for position in range(32):
            first = network.step(cache, position)
            assert torch.equal(network.step(cache, position), first)
            assert not first.requires_grad
            torch.testing.assert_close(first, expected[..., position], rtol=0, atol=1e-9)
            cache.images.flatten(2)[..., position] = images.flatten(2)[..., position]
        cache.images.fill_(1e3)


def test_buffers_of_a_cache_stay_where_they_are_and_the_network_has_no_state():
    network = small((1, 4, 8))
    before = copy.deepcopy(network.state_dict())
    cache = network.init_cache(2, CPU)
    assert not any(tensor.requires_grad for tensor in tensors_of(cache))
    places = [tensor.data_ptr() for tensor in tensors_of(cache)]
    for position in range(32):
        network.step(cache, position)
        cache.images.flatten(2)[..., position] = 1
    assert places == [tensor.data_ptr() for tensor in tensors_of(cache)]
    assert (cache.images == 1).all()
    assert not list(network.buffers())
    assert all(torch.equal(weights, before[name]) for name, weights in network.state_dict().items())


@pytest.mark.parametrize("num_scales", [1, 3])
def test_each_scale_has_its_turn_and_each_compiled_piece_serves_all_positions(num_scales):
    network = small((3, 8, 8), num_scales=num_scales, num_classes=2)
    images, labels, graphs, compiled, turns = pictures(2, 3, 8, 8), torch.tensor([1, 0]), [], {}, []

    def run(piece, cache, place, *flags):
        assert (place.dtype, place.shape) == (torch.int64, (1,))
        assert all(isinstance(flag, bool | str) for flag in flags)
        turns.append((piece.__name__, *flags))
        if turns[-1] not in compiled:
            backend = lambda graph, _, key=turns[-1]: graphs.append(key) or graph  # noqa: E731
            compiled[turns[-1]] = torch.compile(piece, fullgraph=True, backend=backend)
        return compiled[turns[-1]](cache, place, *flags)

    cache, expected = network.init_cache(2, CPU, labels), network(images, labels).flatten(2).detach()
    for position in range(64):
        result = network.step(cache, position, run)
        torch.testing.assert_close(result, expected[..., position], rtol=0, atol=1e-9)
        cache.images.flatten(2)[..., position] = images.flatten(2)[..., position]
    assert sorted(graphs) == sorted(compiled)
    assert len(graphs) == 2 * num_scales
    if num_scales == 3:
        rows = [turns.count(("_row", *flags)) for flags in ((False, False), (True, False), (True, True))]
        pixels = [turns.count(("_pixel", *flags)) for flags in ((False, False), (True, False), (True, True))]
        assert rows == [4, 2, 2]
        assert pixels == [48, 12, 4]


def test_the_cost_of_a_step_does_not_depend_on_the_picture():
    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            calls.append(function)
            return function(*args, **(kwargs or {}))

    counts = []
    for side in (4, 16):
        network, calls = small((1, side, side)), []
        cache = network.init_cache(2, CPU)
        for position in (0, side):  # all scales have their turn, then one
            network.step(cache, position)
        with Count():
            network.step(cache, side + 1)
        counts.append(len(calls))
    assert len(set(counts)) == 1


# What it is made of


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_dropout_of_single_features(share):
    torch.manual_seed(0)
    dropout = Dropout(share)
    features = torch.ones(10, 4, 101, 25).contiguous(memory_format=torch.channels_last).requires_grad_()
    result = dropout(features)
    assert result.is_contiguous(memory_format=torch.channels_last)
    dropped = result == 0
    torch.testing.assert_close(result[~dropped], torch.full_like(result[~dropped], 1 / (1 - share)), rtol=1e-4, atol=0)
    assert abs(float(dropped.float().mean()) - share) < 5 * (share * (1 - share) / features.numel()) ** 0.5
    for one, other in pairwise(dropped.unbind(1)):  # no two channels alike
        both = float((one & other).float().mean())
        assert abs(both - share**2) < 5 * (share**2 / one.numel()) ** 0.5
    (gradient,) = torch.autograd.grad(result.sum(), features)
    assert torch.equal(gradient, result.detach())

    torch.manual_seed(0)
    assert torch.equal(dropout(features), result)
    assert dropout.eval()(features) is features


def test_dropout_in_training_only():
    network, images = small(), pictures(2, 1, 8, 8)
    assert torch.equal(network(images), network(images))
    network.train()
    assert not torch.equal(network(images), network(images))
    undropped = small(dropout=0).train()
    assert torch.equal(undropped(images), small()(images))


# The usual


def test_autocast_and_its_gradients():
    network, images = small((3, 8, 8), num_classes=2).float(), pictures(8, 3, 8, 8).float()
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
        assert (mine - other).norm() < 0.1 * other.norm() + 1e-3


@pytest.mark.parametrize("num_classes", [None, 2])
def test_compiles_as_one_graph_and_exports(num_classes):
    network, images = small((3, 4, 2), num_classes=num_classes, num_scales=2), pictures(2, 3, 4, 2)
    given = (images,) if num_classes is None else (images, torch.tensor([1, 0]))
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*given), network(*given))
    torch.testing.assert_close(torch.export.export(network, given).module()(*given), network(*given))
    network.train()
    compiled(*given).sum().backward()


def test_copies_and_state_dicts():
    network, other = (small((3, 4, 8), seed=seed, num_classes=2) for seed in (0, 1))
    images, labels = pictures(2, 3, 4, 8), torch.tensor([1, 0])
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
        ({"image_shape": (1, 6, 8)}, r"multiples of 4, got 6 x 8. Resize or pad"),
        ({"image_shape": (1, 8, 2)}, r"multiples of 4, got 8 x 2"),
        ({"image_shape": (1, 8)}, "image_shape must be"),
        ({"num_blocks": 0}, "must be at least 1, got 5, 4, 0 and 3"),
        ({"num_scales": 0}, "must be at least 1"),
        ({"filters": 0}, "must be at least 1"),
        ({"outputs": 0}, "must be at least 1"),
        ({"dropout": 1.0}, "below 1, got 1.0"),
        ({"num_classes": 0}, "num_classes must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_pictures_and_labels_that_are_not_the_networks_are_refused():
    network = small((3, 4, 8))
    with pytest.raises(ValueError, match=r"images must be \[N, 3, 4, 8\], got \[2, 3, 8, 4\]"):
        network(pictures(2, 3, 8, 4))
    with pytest.raises(ValueError, match="no classes"):
        network(pictures(2, 3, 4, 8), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="no classes"):
        network.init_cache(2, CPU, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="needs labels"):
        small((3, 4, 8), num_classes=2)(pictures(2, 3, 4, 8))
    with pytest.raises(ValueError, match="needs labels"):
        small((3, 4, 8), num_classes=2).init_cache(2, CPU)


def test_blocks_of_both_ways():
    with torch.device("meta"):
        network = PixelCNNPPNetwork((3, 32, 32), outputs=100)
    assert [len(stage.blocks) for stage in network.up] == [5, 5, 5]
    assert [len(stage.blocks) for stage in network.down] == [6, 6, 5]  # the finest first
    assert all(isinstance(block, Block) for stage in network.up for block in stage.blocks)
