import copy

import pytest
import torch

from lightning_gen.layers.activation import concat_elu
from lightning_gen.layers.local_masked import LocallyMaskedConv2d
from lightning_gen.layers.orders import (
    generalized_hilbert_order,
    hole_last,
    random_order,
    raster_order,
    s_curve_order,
    symmetries,
)
from lightning_gen.networks.lmconv import GatedBlock, LMConvNetwork, positional_norm
from lightning_gen.testing import assert_autoregressive, assert_cached_equals_naive, receptive_field_report

ORDERS = {
    "raster": raster_order,
    "s_curve": s_curve_order,
    "hilbert": generalized_hilbert_order,
    "random": random_order,
    "flipped": lambda height, width: symmetries(s_curve_order, height, width)[-1],
}
SHAPES = [(1, 4, 6), (3, 5, 3)]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def small(image_shape=(1, 4, 6), orders=None, **settings):
    return LMConvNetwork(image_shape, outputs=5, orders=orders, **{"filters": 4, "num_blocks": 1, **settings}).double()


def pictures(count=3, shape=(1, 4, 6)):
    return torch.rand(count, *shape, dtype=torch.float64) * 2 - 1


# -- causality --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_parameter_depends_on_its_own_pixel_or_later_ones(order, shape):
    order = ORDERS[order](*shape[1:])
    assert_autoregressive(small(shape, [order]), shape, order)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_give_what_the_whole_gives(order, shape):
    order = ORDERS[order](*shape[1:])
    for settings in ({}, {"num_blocks": 2, "kernel_size": 5, "dilation": 1}, {"num_blocks": 0}):
        assert_cached_equals_naive(small(shape, [order], **settings), shape, order)


@pytest.mark.parametrize("masks", ["first", "plain", "dilated"])
def test_a_wrong_mask_anywhere_is_caught(masks):
    order, shape = random_order(4, 6), (1, 4, 6)
    network = small(shape, [order])
    name = f"{masks}_masks"
    wrong = network.plain_masks if masks == "first" else getattr(network, name) | (torch.rand(9, 24) > 0.5)
    setattr(network, name, wrong)
    with pytest.raises(AssertionError, match="Not autoregressive"):
        assert_autoregressive(network, shape, order)


@pytest.mark.parametrize("order", ["raster", "hilbert"])
def test_every_earlier_pixel_is_seen(order):
    order, shape = ORDERS[order](6, 5), (1, 6, 5)
    row, column = divmod(int(order[-1]), 5)
    report = receptive_field_report(small(shape, [order], num_blocks=2), shape, (row, column), order)
    assert not report.blind_spot.any(), report
    assert not report.leaks.any(), report


# -- several orders ---------------------------------------------------------------------------------------------------


def test_each_picture_may_have_an_order_of_its_own():
    network, images = small(), pictures()
    assert torch.equal(network.orders, torch.stack(symmetries(s_curve_order, 4, 6)))
    together = network(images, torch.tensor([2, 7, 0]))
    for number, order in enumerate((2, 7, 0)):
        torch.testing.assert_close(together[number], network(images, order)[number])
    assert (network(images, 2) - network(images, 7)).abs().max() > 0.01
    torch.testing.assert_close(network(images), network(images, 0))


def test_an_order_of_ones_own_is_the_same_as_one_of_the_networks():
    network, other, images = small(), random_order(4, 6), pictures()
    result = network(images, network.masks_of(other))
    cache = network.init_cache(3, torch.device("cpu"), network.masks_of(other))
    for position in other.tolist():
        torch.testing.assert_close(network.step(cache, position), result.flatten(2)[..., position].detach())
        cache.images.flatten(2)[..., position] = images.flatten(2)[..., position]

    weights = copy.deepcopy(network.state_dict())
    network.set_orders([raster_order(4, 6), other.tolist()])
    assert torch.equal(network(images, 1), result)
    assert list(weights) == list(dict(network.named_parameters()))
    small(orders=[raster_order(4, 6)]).load_state_dict(weights)


def test_a_cache_of_any_of_the_orders():
    network, images = small(), pictures()
    for order in (3, 6):
        cache, expected = network.init_cache(3, torch.device("cpu"), order), network(images, order).flatten(2)
        for position in network.orders[order].tolist():
            torch.testing.assert_close(network.step(cache, position), expected[..., position].detach())
            cache.images.flatten(2)[..., position] = images.flatten(2)[..., position]


# -- completion -------------------------------------------------------------------------------------------------------


def test_prefilled_pixels_need_no_steps():
    network, images = small(), pictures()
    known = torch.rand(4, 6) > 0.4
    order = hole_last(generalized_hilbert_order(4, 6), known)
    masks, count = network.masks_of(order), int(known.sum())
    cache = network.init_cache(3, torch.device("cpu"), masks)
    cache.images[:] = images.where(known, 1e3)
    network.prefill(cache, int(order[count]))
    expected = network(images, masks).flatten(2).detach()
    for position in order[count:].tolist():
        torch.testing.assert_close(network.step(cache, position), expected[..., position])
        cache.images.flatten(2)[..., position] = images.flatten(2)[..., position]
    assert torch.equal(cache.images, images)


def test_buffers_of_a_cache_stay_where_they_are_and_the_network_has_no_state():
    network = small().eval()
    order = network.orders[0].tolist()
    before = {name: value.clone() for name, value in [*network.named_parameters(), *network.named_buffers()]}
    cache = network.init_cache(2, torch.device("cpu"))
    places = [buffer.data_ptr() for buffer in (cache.images, cache.inputs, *cache.known)]
    assert cache.images.flatten(2).data_ptr() == cache.inputs.data_ptr()
    network.prefill(cache, order[0])
    for position in order:
        first = network.step(cache, position)
        assert not first.requires_grad
        assert torch.equal(network.step(cache, position), first)
        cache.images.flatten(2)[..., position] = 1
    assert places == [buffer.data_ptr() for buffer in (cache.images, cache.inputs, *cache.known)]
    assert (cache.images == 1).all()
    assert not any(buffer[:, -1].any() for buffer in (cache.inputs, *cache.known))  # outside the picture stays 0
    after = dict([*network.named_parameters(), *network.named_buffers()])
    assert all(torch.equal(value, after[name]) for name, value in before.items())


# -- layout -----------------------------------------------------------------------------------------------------------


def test_positional_norm_and_concat_elu():
    features = torch.randn(2, 7, 3, 4, dtype=torch.float64) * 3 + 1
    normed = positional_norm(features)
    torch.testing.assert_close(normed.mean(1), torch.zeros(2, 3, 4, dtype=torch.float64))
    torch.testing.assert_close(normed.var(1, correction=0), torch.ones(2, 3, 4, dtype=torch.float64), rtol=0, atol=1e-3)
    torch.testing.assert_close(positional_norm(features[..., 1, 2]), normed[..., 1, 2])
    numbers = torch.tensor([[0.0, 2.0, -1.0]])
    e = torch.exp(torch.tensor(1.0))
    torch.testing.assert_close(concat_elu(numbers), torch.tensor([[0.0, 2.0, 1 / e - 1, 0.0, 1 / e**2 - 1, 1.0]]))


def test_the_papers_network_has_its_parameters():
    with torch.device("meta"):
        count = sum(weights.numel() for weights in LMConvNetwork((3, 32, 32), outputs=100).parameters())
    filters, blocks, shortcuts = 160, 15 + 17, 17
    of_block = 9 * 2 * filters * 3 * filters + 3 * filters
    expected = (9 * 4 + 1) * filters + blocks * of_block + shortcuts * (2 * filters + 1) * filters
    assert count == expected + 4 * (9 * filters + 1) * filters + (filters + 1) * 100


def test_each_block_of_the_second_half_gets_what_its_mirror_image_gave():
    network, given, taken = small(num_blocks=2), [], []
    for layer in (network.first, *network.up):
        is_block = isinstance(layer, GatedBlock)
        layer.register_forward_hook(
            lambda layer, inputs, output, is_block=is_block: given.append(
                output if is_block else positional_norm(output)
            )
        )
    blocks = [layer for layer in network.down if isinstance(layer, GatedBlock)]
    for block in blocks:
        block.register_forward_hook(lambda block, inputs, output: taken.append(inputs[3]))
    network(pictures())
    assert len(taken) == len(given) - 1 == 2 + 3 + 3  # what the last gave goes into the second half itself
    assert all(torch.equal(one, other) for one, other in zip(taken, reversed(given[:-1]), strict=True))


def test_every_weight_learns():
    network = small((3, 5, 3))
    network(pictures(2, (3, 5, 3))).square().sum().backward()
    assert all(weights.grad is not None and weights.grad.abs().max() > 1e-9 for weights in network.parameters())


def test_dropout_in_training_only():
    network, images = small(dropout=0.5), pictures()
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_it_compiles_in_one_graph():
    network, images = small(num_blocks=0), pictures()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images, 3), network(images, 3))
    orders = torch.tensor([5, 0, 1])
    torch.testing.assert_close(compiled(images, orders), network(images, orders))


@pytest.mark.parametrize("order", ["raster", "hilbert"])
def test_the_compiled_piece_serves_all_positions(order):
    order, graphs, compiled = ORDERS[order](4, 6), [], {}
    network, images = small(orders=[order]), pictures()

    def run(piece, cache, place, *flags):
        assert (place.dtype, place.shape) == (torch.int64, (1,))
        assert all(isinstance(flag, bool | str) for flag in flags)
        if (piece, flags) not in compiled:
            backend = lambda graph, _: graphs.append(piece) or graph  # noqa: E731
            compiled[piece, flags] = torch.compile(piece, fullgraph=True, backend=backend)
        return compiled[piece, flags](cache, place, *flags)

    cache, expected = network.init_cache(3, torch.device("cpu")), network(images).flatten(2).detach()
    for position in order.tolist():
        torch.testing.assert_close(network.step(cache, position, run), expected[..., position])
        cache.images.flatten(2)[..., position] = images.flatten(2)[..., position]
    assert len(graphs) == 1


def test_steps_gather_only_taps_that_the_order_uses():
    network = small()
    raster, hilbert = (
        network.init_cache(1, torch.device("cpu"), network.masks_of(ORDERS[order](4, 6)))
        for order in ("raster", "hilbert")
    )
    assert [taps.shape for taps in raster.taps] == [(24, 4), (24, 5), (24, 5)]
    assert [taps.shape for taps in hilbert.taps] == [(24, 8), (24, 9), (24, 9)]
    assert raster.first[0].shape == (4, 4 * 2)  # a picture's channel and its one


def test_a_picture_of_one_pixel_sees_nothing():
    network = small((2, 1, 1))
    cache = network.init_cache(3, torch.device("cpu"))
    expected = network(pictures(3, (2, 1, 1)))[..., 0, 0].detach()
    torch.testing.assert_close(network.step(cache, 0), expected)


def test_autocast_trains_it():
    # With 4 filters, normalisation makes large errors of small ones.
    network, images = small((3, 5, 3), filters=16).float(), pictures(4, (3, 5, 3)).float()

    def gradients(enabled, inside):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = network(images, torch.arange(4)).float().square().mean()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        return torch.cat([weights.grad.flatten() for weights in network.parameters()])

    full = gradients(False, False)
    for inside in (False, True):
        halves = gradients(True, inside)
        assert halves.dtype == torch.float32
        # The same network without functions of its own comes to 0.015.
        assert (halves - full).norm() < 0.05 * full.norm()


def test_nothing_as_large_as_columns_is_kept_for_the_backward_pass(monkeypatch):
    network, images = small(), pictures(16)  # so many that features are larger than weights
    fewest = 9 * 2 * images.numel()  # of the first convolution, that has two channels
    masks = network.masks_of(network.orders[5])

    def largest_saved(order=masks):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda kept: saved.append(kept.numel()) or kept, lambda kept: kept
        ):
            network(images, order).sum().backward()
        return max(saved)

    # What goes into a convolution; with few kinds of masks there are no columns at all.
    assert largest_saved() <= 2 * 4 * images.numel() < fewest
    assert largest_saved(5) <= 2 * 4 * images.numel()

    def plain(layer, features, mask):
        columns = torch.nn.functional.unfold(features, layer.kernel_size, layer.dilation, layer.padding)
        columns = (columns.unflatten(1, (-1, 9)) * mask).flatten(1, 2)
        return (layer.weight.flatten(1) @ columns + layer.bias[:, None]).unflatten(2, features.shape[2:])

    expected = network(images, masks)
    monkeypatch.setattr(LocallyMaskedConv2d, "forward", plain)
    torch.testing.assert_close(network(images, masks), expected)
    assert largest_saved() >= 9 * 2 * 4 * images.numel()


# -- few kinds of masks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", [raster_order, s_curve_order])
@pytest.mark.parametrize("dilation", [1, 2])
def test_few_kinds_of_masks_give_what_the_masks_give(curve, dilation):
    network, images = small(orders=symmetries(curve, 4, 6), dilation=dilation), pictures()
    assert network.plain_kinds.shape == (8, 1 if curve is raster_order else 2, 3, 3)
    for number, order in enumerate(network.orders):
        results, gradients = [], []
        for given in (number, network.masks_of(order)):
            results.append(network(images, given))
            gradients.append(torch.autograd.grad(results[-1].square().sum(), list(network.parameters())))
        torch.testing.assert_close(*results)
        torch.testing.assert_close(*gradients)


def test_orders_with_more_and_fewer_kinds_share_a_network():
    few, images = small(orders=[raster_order(4, 6), s_curve_order(4, 6)]), pictures()
    assert few.plain_kinds.shape[:2] == (2, 2)
    many = small(orders=[raster_order(4, 6), random_order(4, 6)])
    assert many.plain_kinds is None
    for network in (few, many):
        for number, order in enumerate(network.orders):
            torch.testing.assert_close(network(images, number), network(images, network.masks_of(order)))
    few.set_orders([random_order(4, 6)])
    torch.testing.assert_close(few(images), few(images, few.masks_of(random_order(4, 6))))


def test_a_wrong_kind_is_caught():
    network = small((1, 4, 6), [s_curve_order(4, 6)])
    network.plain_places = network.plain_places.flip(1)
    with pytest.raises(AssertionError, match="Not autoregressive"):
        assert_autoregressive(network, (1, 4, 6), s_curve_order(4, 6))


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"orders": []}, "at least one order"),
        ({"orders": [[0, 1, 2]]}, "no permutation"),
        ({"filters": 1}, "filters at least 2"),
        ({"num_blocks": -1}, "num_blocks at least 0"),
        ({"kernel_size": 4}, "sides are odd"),
        ({"dilation": 0}, "dilation must be at least 1"),
        ({"image_shape": (1, 4)}, "image_shape must be"),
    ],
)
def test_sizes_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_pictures_and_orders_that_are_not_the_networks_are_refused():
    network = small()
    with pytest.raises(ValueError, match=r"images must be \[N, 1, 4, 6\], got \[3, 1, 6, 4\]"):
        network(pictures().mT)
    for order in (8, -1):
        with pytest.raises(ValueError, match=f"index from 0 to 7, got {order}"):
            network(pictures(), order)
        with pytest.raises(ValueError, match=f"index from 0 to 7, got {order}"):
            network.init_cache(2, torch.device("cpu"), order)
    masks = network.masks_of(raster_order(4, 6))
    with pytest.raises(ValueError, match="one order for all pictures"):
        network.init_cache(2, torch.device("cpu"), type(masks)(*(mask.expand(2, -1, -1) for mask in masks)))
