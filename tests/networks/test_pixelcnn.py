import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.masked import MaskedConv2d, VerticalConv2d
from lightning_gen.losses.categorical import bernoulli_log_prob, categorical_log_prob, levels_to_images
from lightning_gen.losses.pixels import pixel_likelihood
from lightning_gen.networks import gated_pixelcnn
from lightning_gen.networks.gated_pixelcnn import GatedPixelCNNNetwork
from lightning_gen.networks.pixelcnn import PixelCNNNetwork
from lightning_gen.networks.stepping import call
from lightning_gen.testing import assert_autoregressive, assert_cached_equals_naive, receptive_field_report

SMALL = {"filters": 8, "layers": 2, "head_filters": 9}
KINDS = [PixelCNNNetwork, GatedPixelCNNNetwork]


def build(kind, image_shape, num_levels=4, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        outputs = pixel_likelihood(num_levels).num_parameters(image_shape[0])
        return kind(image_shape, outputs, **{**SMALL, **options}).double()


def pictures(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 2 - 1


class Given(nn.Module):
    """A network of classes, conditions, or both, with these filled in."""

    def __init__(self, network: GatedPixelCNNNetwork) -> None:
        super().__init__()
        self.network = network

    def given(self, batch: int) -> tuple[Tensor | None, Tensor | None]:
        classes, channels = self.network.num_classes, self.network.condition_channels
        _, height, width = self.network.image_shape
        return (
            None if classes is None else torch.arange(batch) % classes,
            None if channels is None else pictures(batch, channels, height, width),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images, *self.given(len(images)))

    def init_cache(self, batch, device):
        return self.network.init_cache(batch, device, *self.given(batch))

    def prefill(self, cache, position):
        self.network.prefill(cache, position)

    def step(self, cache, position):
        return self.network.step(cache, position)


class Unrolled(nn.Module):
    """A network of C channels as one of a single channel in a picture C times as wide: R, G, B, R, G, B, ...

    So the order of the channels within a pixel becomes part of the order of the pixels, which the checks know.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.channels = network.image_shape[0]

    def forward(self, images: Tensor) -> Tensor:
        logits = self.network(images.squeeze(1).unflatten(-1, (-1, self.channels)).movedim(-1, 1))
        return logits.movedim(2, -1).flatten(-2).unsqueeze(2)

    def init_cache(self, batch, device):
        cache = self.network.init_cache(batch, device)
        width = cache.images.shape[-1] * self.channels
        images = cache.images.new_zeros(batch, 1, cache.images.shape[-2], width)
        return type("UnrolledCache", (), {"images": images, "inner": cache})

    def step(self, cache, position):
        pixel, channel = divmod(position, self.channels)
        cache.inner.images.copy_(cache.images.squeeze(1).unflatten(-1, (-1, self.channels)).movedim(-1, 1))
        logits = self.network.step(cache.inner, pixel)
        return logits[:, :, channel, None]


# Autoregressive, and cached as naive


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image_shape", [(1, 6, 5), (1, 4, 7), (1, 1, 6), (1, 5, 1)])
@pytest.mark.parametrize("num_levels", [2, 4])
def test_autoregressive_and_cached_as_naive(kind, image_shape, num_levels):
    network = build(kind, image_shape, num_levels)
    assert_autoregressive(network, image_shape)
    assert_cached_equals_naive(network, image_shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("image_shape", "num_levels"), [((3, 4, 3), 4), ((3, 2, 5), 2), ((2, 3, 4), 3)])
def test_channels_in_order_autoregressive_and_cached_as_naive(kind, image_shape, num_levels):
    channels, height, width = image_shape
    network = build(kind, image_shape, num_levels)  # 8 features and 9 of the head: not divisible by 3, nor by 2
    assert_autoregressive(network, image_shape, channels="ordered")
    assert_cached_equals_naive(network, image_shape)
    unrolled = Unrolled(network)
    assert_autoregressive(unrolled, (1, height, width * channels))
    assert_cached_equals_naive(unrolled, (1, height, width * channels))
    # All of the past in reach has a say, the channels before too.
    report = receptive_field_report(unrolled, (1, height, width * channels), (height - 1, (width // 2) * channels + 1))
    assert not report.blind_spot[-1].any()
    assert not report.leaks.any()


@pytest.mark.parametrize("image_shape", [(1, 5, 4), (3, 3, 4)])
@pytest.mark.parametrize(
    "options", [{"num_classes": 3}, {"condition_channels": 2}, {"num_classes": 2, "condition_channels": 1}]
)
def test_with_classes_and_conditions_autoregressive_and_cached_as_naive(image_shape, options):
    network = build(GatedPixelCNNNetwork, image_shape, **options)
    assert_autoregressive(Given(network), image_shape, channels="ordered", num_draws=2)
    assert_cached_equals_naive(Given(network), image_shape)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
def test_kernels_of_the_gated_layers(kernel_size):
    network = build(GatedPixelCNNNetwork, (1, 5, 6), kernel_size=kernel_size)
    assert_autoregressive(network, (1, 5, 6), num_draws=1)
    assert_cached_equals_naive(network, (1, 5, 6))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_levels", [2, 4])
def test_a_step_may_be_repeated(kind, num_levels):
    network, images = build(kind, (1, 3, 4), num_levels), pictures(2, 1, 3, 4)
    cache = network.init_cache(2, torch.device("cpu"))
    for position in range(12):
        first = network.step(cache, position)
        assert torch.equal(network.step(cache, position), first)
        assert not first.requires_grad
        cache.images.flatten(2)[:, :, position] = images.flatten(2)[:, :, position]


@pytest.mark.parametrize(
    "network", [build(PixelCNNNetwork, (1, 4, 3)), build(GatedPixelCNNNetwork, (1, 4, 3), num_classes=2)]
)
def test_prefilled_as_stepped(network):
    images, labels = pictures(2, 1, 4, 3), torch.tensor([1, 0]) if isinstance(network, GatedPixelCNNNetwork) else None
    torch.manual_seed(0)
    if labels is not None:
        nn.init.normal_(network.layers[1].classes.weight)
    logits = network(images, labels).flatten(3)
    for known in range(12):
        cache = network.init_cache(2, torch.device("cpu"), labels)
        cache.images.fill_(1e3).flatten(2)[:, :, :known] = images.flatten(2)[:, :, :known]
        network.prefill(cache, known)
        for position in range(known, 12):
            torch.testing.assert_close(network.step(cache, position), logits[..., position], rtol=0, atol=1e-9)
            cache.images.flatten(2)[:, :, position] = images.flatten(2)[:, :, position]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_vertical_stack_is_computed_once_a_row(channels):
    begun, network = [], build(GatedPixelCNNNetwork, (channels, 5, 6))

    def run(piece, cache, place, *flags):
        if piece == network._row:
            begun.append(int(place))
        return call(piece, cache, place, *flags)

    cache = network.init_cache(2, torch.device("cpu"))
    for position in range(30):
        for _ in range(channels):
            network.step(cache, position, run)
    assert begun == [0, 6, 12, 18, 24]


@pytest.mark.parametrize("kind", KINDS)
def test_buffers_stay_where_they_are_zeros_stay_zero_and_the_network_has_no_state(kind):
    network = build(kind, (3, 4, 5))
    before = copy.deepcopy(network.state_dict())
    cache = network.init_cache(2, torch.device("cpu"))
    buffers = [cache.images, cache.inputs]
    buffers += cache.known if kind is PixelCNNNetwork else [*cache.vertical, *cache.horizontal, cache.above]
    places = [buffer.data_ptr() for buffer in buffers]
    assert cache.images.flatten(2).data_ptr() == cache.inputs.data_ptr()
    cache.images.fill_(1e3)
    network.prefill(cache, 7)
    for position in range(7, 20):
        network.step(cache, position)
        cache.images.flatten(2)[:, :, position] = 1
    assert [buffer.data_ptr() for buffer in buffers] == places
    assert all(buffer[:, -1].any() == (buffer is cache.images) for buffer in buffers if buffer.ndim == 3)
    if kind is GatedPixelCNNNetwork:
        assert not any(buffer[:, -1].any() for buffer in cache.vertical)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_cache_serves_one_picture_after_another():
    network, images = build(GatedPixelCNNNetwork, (1, 3, 4)), pictures(2, 2, 1, 3, 4)
    cache = network.init_cache(2, torch.device("cpu"))
    for batch in images:
        logits = network(batch).flatten(3)
        for position in range(12):
            torch.testing.assert_close(network.step(cache, position), logits[..., position])
            cache.images.flatten(2)[:, :, position] = batch.flatten(2)[:, :, position]


# What each pixel sees


@pytest.mark.parametrize("layers", [1, 3])
def test_the_blind_spot_of_pixelcnn(layers):
    # The first layer goes up at least one row and 3 columns to the right, each block one row for each column.
    reach = 3 + layers
    row, column, width = reach + 1, reach + 1, 2 * reach + 3
    network = build(PixelCNNNetwork, (1, row + 1, width), layers=layers, filters=16)
    report = receptive_field_report(network, (1, row + 1, width), (row, column))
    for up, column_seen in product(range(1, row + 1), range(width)):
        right = min(3 + up - 1, reach) if up <= reach else -width
        assert report.influence[row - up, column_seen] == (up <= reach and -reach <= column_seen - column <= right)
    assert report.influence[row].nonzero().flatten().tolist() == list(range(column - reach, column))


@pytest.mark.parametrize(("layers", "kernel_size"), [(1, 3), (3, 3), (1, 5)])
def test_the_gated_network_has_no_blind_spot(layers, kernel_size):
    # Every row above in reach is seen equally far to the right: as far as the vertical stack sees.
    reach = 3 + layers * (kernel_size // 2)
    row, column, width = reach + 2, 2, reach + 5
    network = build(GatedPixelCNNNetwork, (1, row + 1, width), layers=layers, kernel_size=kernel_size)
    report = receptive_field_report(network, (1, row + 1, width), (row, column))
    for up in range(1, row + 1):
        seen = report.influence[row - up].nonzero().flatten().tolist()
        assert seen == (list(range(column + reach + 1)) if up <= reach + 1 else [])
    assert report.influence[row].nonzero().flatten().tolist() == [0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_information_flows_along_the_first_row(kind):
    report = receptive_field_report(build(kind, (1, 2, 6)), (1, 2, 6), (0, 5))
    assert report.blind_per_row == [0, 0]
    assert report.seen_per_row == [5, 0]


def test_a_vertical_stack_that_is_shifted_in_each_layer_is_seen_to_have_a_blind_spot(monkeypatch):
    shape, position = (1, 6, 9), (5, 2)
    network = build(GatedPixelCNNNetwork, shape, layers=3, kernel_size=3)
    assert receptive_field_report(network, shape, position).blind_per_row == [0] * 6

    class Shifted(VerticalConv2d):
        def forward(self, input):
            return super().forward(shift_down(input))

    shift_down = gated_pixelcnn.shift_down
    monkeypatch.setattr(gated_pixelcnn, "VerticalConv2d", Shifted)
    monkeypatch.setattr(gated_pixelcnn, "shift_down", lambda features: features)
    network = build(GatedPixelCNNNetwork, shape, layers=3, kernel_size=3)
    assert_autoregressive(network, shape, num_draws=1)  # so this check alone would not find it
    report = receptive_field_report(network, shape, position)
    # 3 columns to the right in the row above, and one more for each row, as PixelCNN.
    assert report.blind_spot[4].nonzero().flatten().tolist() == [6, 7, 8]
    assert report.blind_spot[3].nonzero().flatten().tolist() == [7, 8]


def test_a_vertical_stack_that_is_not_shifted_is_caught(monkeypatch):
    monkeypatch.setattr(gated_pixelcnn, "shift_down", lambda features: features)
    with pytest.raises(AssertionError, match="Not autoregressive"):
        assert_autoregressive(build(GatedPixelCNNNetwork, (1, 4, 5)), (1, 4, 5), num_draws=1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_mask_a_or_a_first_mask_b_is_caught(kind):
    network = build(kind, (1, 4, 5))
    assert [m.mask_type for m in network.modules() if isinstance(m, MaskedConv2d)].count("A") == 1
    first = network.input if kind is PixelCNNNetwork else network.layers[0].horizontal
    first.mask[..., -1, 3] = True
    with pytest.raises(AssertionError, match="same pixel"):
        assert_autoregressive(network, (1, 4, 5), num_draws=1)


# What they compute


def cut(images: Tensor, weight: Tensor, bias: Tensor | None, mask_type: str) -> Tensor:
    """Convolution of one channel with the past, the kernel written out whole."""
    rows, columns = weight.shape[2:]
    half = columns // 2 if rows > 1 else columns - 1
    whole = torch.zeros(*weight.shape[:2], 2 * rows - 1, 2 * half + 1, dtype=weight.dtype)
    whole[:, :, :rows, :columns] = weight
    whole[:, :, rows - 1, half + (mask_type == "B") :] = 0
    return F.conv2d(images, whole, bias, padding=(rows - 1, half))


def test_pixelcnn_as_written_in_the_paper():
    network, images = build(PixelCNNNetwork, (1, 5, 6)), pictures(2, 1, 5, 6)
    weights = dict(network.named_parameters())

    def layer(features, name, mask_type="B"):
        return cut(features, weights[f"{name}.weight"], weights[f"{name}.bias"], mask_type)

    features = layer(images, "input", "A")
    for i in range(2):  # h wide within, 2h between; one sum a block, not two
        inner = layer(features.clamp_min(0), f"blocks.{i}.inner")
        assert inner.shape[1] == 8
        assert features.shape[1] == 16
        middle = layer(inner.clamp_min(0), f"blocks.{i}.middle")
        features = features + layer(middle.clamp_min(0), f"blocks.{i}.outer")
    logits = layer(layer(features.clamp_min(0), "head.hidden").clamp_min(0), "head.output")
    torch.testing.assert_close(network(images), logits[:, :, None])


def test_gated_pixelcnn_as_written_in_the_paper():
    network = build(GatedPixelCNNNetwork, (1, 5, 6), kernel_size=3, num_classes=3, condition_channels=2)
    images, condition = pictures(2, 1, 5, 6), pictures(2, 2, 5, 6)
    torch.manual_seed(0)
    labels = torch.tensor([2, 0])
    weights = {name: torch.randn_like(weight) / 3 for name, weight in network.named_parameters()}
    network.load_state_dict(weights)

    vertical, horizontal, total = images, images, 0
    for i in range(3):
        of_layer = {name.removeprefix(f"layers.{i}."): weight for name, weight in weights.items()}
        kernel = of_layer["vertical.weight"]
        seen = F.conv2d(F.pad(vertical, (kernel.shape[3] // 2,) * 2 + (kernel.shape[2] - 1, 0)), kernel)
        seen = seen + of_layer["vertical.bias"][:, None, None]
        above = torch.cat([torch.zeros_like(seen[:, :, :1]), seen[:, :, :-1]], dim=2)  # row r gets row r - 1
        across = cut(horizontal, of_layer["horizontal.weight"], of_layer["horizontal.bias"], "A" if i == 0 else "B")
        across = across + torch.einsum("oi,nihw->nohw", of_layer["link.weight"][..., 0, 0], above)  # before the gate
        bias = of_layer["classes.weight"][labels][:, :, None, None]
        bias = bias + torch.einsum("oi,nihw->nohw", of_layer["conditions.weight"][..., 0, 0], condition)
        seen, across = seen + bias[:, :16], across + bias[:, 16:]
        vertical = seen[:, :8].tanh() * seen[:, 8:].sigmoid()
        hidden = across[:, :8].tanh() * across[:, 8:].sigmoid()
        out = cut(hidden, of_layer["outer.weight"], of_layer["outer.bias"], "B")
        horizontal = out[:, :8] + (horizontal if i else 0)
        total = total + out[:, 8:]
    for name in ("hidden", "output"):
        total = cut(total.clamp_min(0), weights[f"head.{name}.weight"], weights[f"head.{name}.bias"], "B")
    torch.testing.assert_close(network(images, labels, condition), total[:, :, None])


def test_the_papers_sizes():
    channels, h, head = 3, 128, 1024
    blocks = (2 * h * h + h) + (h * h * 2 * 3 + h) + (h * 2 * h + 2 * h)  # stored: two of three rows
    heads = (2 * h * head + head) + (head * 3 * 256 + 3 * 256)
    with torch.device("meta"):
        network = PixelCNNNetwork((3, 32, 32), outputs=768)
        assert sum(p.numel() for p in network.parameters()) == (channels * 28 + 1) * 2 * h + 15 * blocks + heads
        assert network(torch.empty(2, 3, 32, 32)).shape == (2, 256, 3, 32, 32)
        assert PixelCNNNetwork((1, 28, 28), outputs=1).head.output.out_channels == 1
        gated = GatedPixelCNNNetwork((3, 32, 32), outputs=768)
        assert (len(gated.layers), gated.layers[1].vertical.weight.shape) == (21, (768, 384, 3, 5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("image_shape", [(1, 3, 3), (3, 1, 3), (2, 2, 2)])
def test_the_probabilities_of_all_binary_pictures_sum_to_1(kind, image_shape):
    network = build(kind, image_shape, num_levels=2)
    size = image_shape[0] * image_shape[1] * image_shape[2]
    levels = torch.tensor(list(product(range(2), repeat=size))).view(-1, *image_shape)
    with torch.no_grad():
        log_prob = bernoulli_log_prob(network(levels_to_images(levels, 2, torch.float64)).squeeze(1), levels)
    assert log_prob.logsumexp(0).abs() < 1e-10
    assert log_prob.std() > 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("image_shape", "num_levels"), [((3, 1, 2), 4), ((1, 2, 3), 4), ((2, 2, 2), 3)])
def test_the_probabilities_of_all_pictures_sum_to_1(kind, image_shape, num_levels):
    network = build(kind, image_shape, num_levels)
    size = image_shape[0] * image_shape[1] * image_shape[2]
    levels = torch.tensor(list(product(range(num_levels), repeat=size))).view(-1, *image_shape)
    with torch.no_grad():
        log_prob = categorical_log_prob(network(levels_to_images(levels, num_levels, torch.float64)), levels)
    assert log_prob.logsumexp(0).abs() < 1e-10
    assert log_prob.std() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_fits_a_distribution_of_colours_to_its_entropy(kind):
    # Colours of 2 pixels, of which each determines much of the next: 4^3 pictures with random probabilities.
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor(list(product(range(2), repeat=6))).view(-1, 3, 1, 2)
    probabilities = (3 * torch.randn(64, generator=generator)).softmax(0)
    entropy = -(probabilities * probabilities.log()).sum()
    network = build(kind, (3, 1, 2), 2, filters=24, layers=1, head_filters=48).float()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(300):
        logits = network(levels_to_images(levels, 2)).squeeze(1)
        loss = -(probabilities * bernoulli_log_prob(logits, levels)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert entropy - 1e-4 < loss < entropy + 0.05


# Classes


def test_classes_start_alike_and_reach_every_layer():
    network, images = (
        build(GatedPixelCNNNetwork, (1, 5, 6), num_classes=3),
        pictures(3, 1, 1, 5, 6)[:1, 0].expand(3, 1, 5, 6),
    )
    labels = torch.tensor([0, 1, 1])
    logits = network(images, labels)
    torch.testing.assert_close(logits[0], logits[1])
    logits[:, 0].sum().backward()
    for layer in network.layers[:-1]:
        assert (layer.classes.weight.grad[:2] != 0).all()
        assert (layer.classes.weight.grad[2] == 0).all()
    # Of the last layer's vertical stack nothing more is seen.
    assert (network.layers[-1].classes.weight.grad[:2, 16:] != 0).all()
    torch.manual_seed(0)
    for layer in network.layers:
        nn.init.normal_(layer.classes.weight)
    logits = network(images, labels)
    assert not torch.allclose(logits[0], logits[1])
    assert torch.equal(logits[1], logits[2])


# Conditions, another for each pixel


def test_a_map_that_is_constant_is_a_class():
    classes, maps = (
        build(GatedPixelCNNNetwork, (1, 5, 6), **{option: 3}) for option in ("num_classes", "condition_channels")
    )
    torch.manual_seed(0)
    weights = {name: torch.randn_like(weight) / 3 for name, weight in classes.state_dict().items()}
    classes.load_state_dict(weights)
    renamed = {
        name.replace("classes", "conditions"): weight.T[..., None, None] if "classes" in name else weight
        for name, weight in weights.items()
    }
    maps.load_state_dict(renamed)
    images, labels = pictures(2, 1, 5, 6), torch.tensor([2, 0])
    constant = F.one_hot(labels, 3).double()[:, :, None, None].expand(2, 3, 5, 6)
    logits = classes(images, labels)
    assert torch.equal(maps(images, condition=constant), logits)
    assert not torch.allclose(maps(images, condition=constant.roll(1, 1)), logits)
    caches = (
        classes.init_cache(2, torch.device("cpu"), labels),
        maps.init_cache(2, torch.device("cpu"), condition=constant),
    )
    for position in range(30):
        steps = [net.step(cache, position) for net, cache in zip((classes, maps), caches, strict=True)]
        torch.testing.assert_close(steps[1], steps[0])
        for cache in caches:
            cache.images.flatten(2)[:, :, position] = images.flatten(2)[:, :, position]


def test_the_entry_of_a_map_has_a_say_at_its_pixel_and_where_the_pixel_is_seen():
    network, images = build(GatedPixelCNNNetwork, (1, 5, 6), condition_channels=2), pictures(1, 1, 5, 6)
    torch.manual_seed(0)
    for layer in network.layers:
        nn.init.normal_(layer.conditions.weight)

    def logits(condition):
        return network(images, condition=condition)[0, 0, 0]

    depends = torch.autograd.functional.jacobian(logits, pictures(1, 2, 5, 6))[:, :, 0].abs().sum(2) != 0
    for (y, x), (v, u) in product(product(range(5), range(6)), repeat=2):
        # After the first gates come 2 layers with kernels of 5; 4 rows and 4 columns, on to the left in the row itself.
        expected = (v == y and x - 4 <= u <= x) or (v < y and abs(u - x) <= 4)
        assert depends[y, x, v, u] == expected, (y, x, v, u)


def test_starts_as_if_there_were_no_map_and_reaches_every_layer():
    network, images = build(GatedPixelCNNNetwork, (1, 5, 6), condition_channels=2), pictures(2, 1, 5, 6)
    condition = pictures(2, 2, 5, 6)
    logits = network(images, condition=condition)
    torch.testing.assert_close(logits, network(images, condition=torch.zeros_like(condition)))
    logits.square().sum().backward()
    for layer in network.layers[:-1]:
        assert (layer.conditions.weight.grad != 0).all()
    # Of the last layer's vertical stack nothing more is seen.
    assert (network.layers[-1].conditions.weight.grad[16:] != 0).all()


def test_maps_where_they_belong():
    images, condition, device = pictures(2, 1, 5, 6), pictures(2, 3, 5, 6), torch.device("cpu")
    plain, maps = build(GatedPixelCNNNetwork, (1, 5, 6)), build(GatedPixelCNNNetwork, (1, 5, 6), condition_channels=3)
    for given, network, message in [
        (condition, plain, "takes no map of conditions"),
        (None, maps, r"needs a map of conditions, \[N, 3, H, W\]"),
        (condition[:1], maps, r"must be \[2, 3, 5, 6\], got \[1, 3, 5, 6\]"),
        (condition[:, :2], maps, r"got \[2, 2, 5, 6\]"),
        (condition.mT, maps, r"got \[2, 3, 6, 5\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            network(images, condition=given)
        with pytest.raises(ValueError, match=message):
            network.init_cache(2, device, condition=given)


def test_labels_where_they_belong():
    images = pictures(2, 1, 5, 6)
    labels, device = torch.tensor([0, 1]), torch.device("cpu")
    plain, classes = build(GatedPixelCNNNetwork, (1, 5, 6)), build(GatedPixelCNNNetwork, (1, 5, 6), num_classes=3)
    for network in (plain, build(PixelCNNNetwork, (1, 5, 6))):
        for use in (lambda net: net(images, labels), lambda net: net.init_cache(2, device, labels)):
            with pytest.raises(ValueError, match="no classes"):
                use(network)
    for use in (lambda net: net(images), lambda net: net.init_cache(2, device)):
        with pytest.raises(ValueError, match="needs labels"):
            use(classes)


# Tools


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_as_one_graph_and_exports(kind):
    network, images = build(kind, (3, 4, 5)), pictures(2, 3, 4, 5)
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), network(images))
    program = torch.export.export(network, (images,)).module()
    torch.testing.assert_close(program(images), network(images))


PIECES = [
    *((kind, shape, {}) for kind in KINDS for shape in [(1, 4, 5), (3, 3, 4)]),
    (GatedPixelCNNNetwork, (1, 4, 5), {"num_classes": 3, "condition_channels": 2}),
]


@pytest.mark.parametrize(("kind", "image_shape", "options"), PIECES)
def test_each_compiled_piece_serves_all_positions(kind, image_shape, options):
    network = build(kind, image_shape, **options)
    given = Given(network).given(2) if options else ()
    images, graphs, compiled = pictures(2, *image_shape), [], {}

    def run(piece, cache, place, *flags):
        assert (place.dtype, place.shape) == (torch.int64, (1,))
        assert all(isinstance(flag, bool | str) for flag in flags)
        key = piece.__name__, flags
        if key not in compiled:
            backend = lambda graph, _: graphs.append(key) or graph  # noqa: E731
            compiled[key] = torch.compile(piece, fullgraph=True, backend=backend)
        return compiled[key](cache, place, *flags)

    cache, logits = network.init_cache(2, torch.device("cpu"), *given), network(images, *given).flatten(3)
    for position in range(logits.shape[3]):
        for channel in range(image_shape[0]):
            parameters = network.step(cache, position, run)
            torch.testing.assert_close(parameters[:, :, channel], logits[:, :, channel, position])
            cache.images.flatten(2)[:, channel, position] = images.flatten(2)[:, channel, position]
    assert sorted(graphs) == sorted(compiled)
    assert len(graphs) == (1 if kind is PixelCNNNetwork else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_state_dicts(kind):
    options = {} if kind is PixelCNNNetwork else {"num_classes": 3, "condition_channels": 2}
    network, other = (build(kind, (3, 4, 5), seed=seed, **options) for seed in (0, 1))
    assert list(network.state_dict()) == [name for name, _ in network.named_parameters()]
    given = Given(network).given(2) if options else ()
    expected = network(pictures(2, 3, 4, 5), *given)
    assert not torch.allclose(other(pictures(2, 3, 4, 5), *given), expected)
    other.load_state_dict(network.state_dict())
    for copied in (copy.deepcopy(network), other):
        assert torch.equal(copied(pictures(2, 3, 4, 5), *given), expected)
        cache = copied.init_cache(2, torch.device("cpu"), *given)
        torch.testing.assert_close(copied.step(cache, 0)[:, :, 0], expected[:, :, 0, 0, 0])


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_and_its_gradients(kind):
    network, images = build(kind, (3, 4, 5)).float(), pictures(2, 3, 4, 5).float()
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images)
    torch.testing.assert_close(logits.float(), network(images), rtol=0.1, atol=0.05)
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_arguments_of_the_gated_network_that_make_no_sense():
    with pytest.raises(ValueError, match="4 x 4"):
        build(GatedPixelCNNNetwork, (1, 5, 5), kernel_size=4)
    for option in ("num_classes", "condition_channels"):
        with pytest.raises(ValueError, match=f"{option} must be at least 1"):
            build(GatedPixelCNNNetwork, (1, 5, 5), **{option: 0})
