import copy
import functools
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.layers.orders import (
    generalized_hilbert_order,
    local_masks,
    random_order,
    raster_order,
    s_curve_order,
    symmetries,
)
from lightning_gen.testing import POISON, assert_autoregressive, assert_cached_equals_naive, receptive_field_report

ORDERS = {
    "raster": raster_order,
    "s_curve": s_curve_order,
    "hilbert": generalized_hilbert_order,
    "random": random_order,
    "transposed": lambda height, width: symmetries(raster_order, height, width)[-1],
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def leak_of(network, *args, **kwargs):
    """What the message says: output, input, reason."""
    with pytest.raises(AssertionError, match="Not autoregressive") as error:
        assert_autoregressive(network, *args, **kwargs)
    return str(error.value)


# -- networks ---------------------------------------------------------------------------------------------------------


class MaskedConv(nn.Conv2d):
    """Raster order, one group of channels."""

    def __init__(self, in_channels, out_channels, size=3, centre=False):
        super().__init__(in_channels, out_channels, size, padding=size // 2)
        mask = torch.ones(size * size)
        mask[size * size // 2 + centre :] = 0
        self.register_buffer("mask", mask.view(size, size))

    def forward(self, features):
        return F.conv2d(features, self.weight * self.mask, self.bias, padding=self.padding)


def masked_stack(depth=3, channels=1, width=4, parameters=2, first_centre=False, activation=nn.ELU):
    layers = [MaskedConv(channels, width, centre=first_centre)]
    for _ in range(depth - 1):
        layers += [activation(), MaskedConv(width, width, centre=True)]
    return nn.Sequential(*layers, activation(), nn.Conv2d(width, parameters, 1))


class OrderedConv(nn.Conv2d):
    """Raster order, and three colours: the centre tap is block-triangular, strictly in the first layer."""

    def __init__(self, in_channels, out_channels, strict, flaw=None):
        super().__init__(in_channels, out_channels, 3, padding=1)
        mask = torch.ones(out_channels, in_channels, 3, 3)
        mask[:, :, 1, 1:] = mask[:, :, 2] = 0
        out_color = torch.arange(out_channels) * 3 // out_channels
        in_color = torch.arange(in_channels) * 3 // in_channels
        below = in_color[None] < out_color[:, None] if strict else in_color[None] <= out_color[:, None]
        mask[:, :, 1, 1] = (below if flaw is None else flaw(below, out_color[:, None], in_color[None])).float()
        self.register_buffer("mask", mask)

    def forward(self, features):
        return F.conv2d(features, self.weight * self.mask, self.bias, padding=1)


class ColorNetwork(nn.Module):
    def __init__(self, flaw=None):
        super().__init__()
        self.layers = nn.Sequential(OrderedConv(3, 12, True, flaw), nn.ELU(), OrderedConv(12, 15, False))

    def forward(self, images):
        return self.layers(images).unflatten(1, (3, 5)).transpose(1, 2)  # [N, 5, 3, H, W]


class LocallyMasked(nn.Module):
    """Two locally masked convolutions in any order, with the step of a cached sampler."""

    def __init__(self, order, channels, height, width, color=False):
        super().__init__()
        self.channels, self.size, self.color = channels, (height, width), color
        self.first, self.second = nn.Conv2d(channels, 5, 3), nn.Conv2d(5, 6, 3)
        self.register_buffer("mask_a", local_masks(order, height, width, 3, mask_type="A"))
        self.register_buffer("mask_b", local_masks(order, height, width, 3, mask_type="B"))

    def convolve(self, layer, columns):
        return torch.einsum("ok,nkp->nop", layer.weight.flatten(1), columns) + layer.bias[:, None]

    def masked(self, layer, features, mask):
        columns = (F.unfold(features, 3, padding=1).unflatten(1, (-1, 9)) * mask).flatten(1, 2)
        return self.convolve(layer, columns).unflatten(-1, self.size)

    def head(self, result):
        return result.unflatten(1, (-1, self.channels)) if self.color else result

    def forward(self, images):
        hidden = self.masked(self.first, images, self.mask_a).tanh()
        return self.head(self.masked(self.second, hidden, self.mask_b))

    def init_cache(self, batch, device):
        zeros = functools.partial(torch.zeros, device=device, dtype=self.first.weight.dtype)
        return ToyCache(zeros(batch, self.channels, *self.size), zeros(batch, 5, *self.size))

    def at(self, layer, features, mask, position):
        row, column = divmod(position, self.size[1])
        patch = F.pad(features, (1, 1, 1, 1))[:, :, row : row + 3, column : column + 3].flatten(2)
        return self.convolve(layer, (patch * mask[:, position]).flatten(1).unsqueeze(-1)).squeeze(-1)

    def step(self, cache, position):
        row, column = divmod(position, self.size[1])
        cache.hidden[:, :, row, column] = self.at(self.first, cache.images, self.mask_a, position).tanh()
        return self.head(self.at(self.second, cache.hidden, self.mask_b, position))


class ToyCache:
    def __init__(self, images, hidden):
        self.images, self.hidden = images, hidden


# -- assert_autoregressive --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_a_masked_stack_is_autoregressive(channels):
    assert_autoregressive(masked_stack(channels=channels), (channels, 4, 6))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_locally_masked_convolutions_are_so_in_their_order_and_in_no_other(order, channels):
    own = ORDERS[order](4, 5)
    network = LocallyMasked(own, channels, 4, 5)
    assert_autoregressive(network, (channels, 4, 5), own)
    assert_autoregressive(network, (channels, 4, 5), own.tolist())
    for other in ORDERS.values():
        if not torch.equal(other(4, 5), own):
            assert "later" in leak_of(network, (channels, 4, 5), other(4, 5))


def test_the_centre_in_the_first_layer_is_the_same_pixel():
    message = leak_of(masked_stack(first_centre=True), (1, 4, 6))
    output, source = re.findall(r"pixel (\(row \d, column \d\))", message)
    assert output == source
    assert "which is the same pixel" in message
    assert message.endswith("the first of 24 that should be 0.")  # one for each pixel


def only(weights):
    """One 3 x 3 convolution with these weights and no mask."""
    network = nn.Conv2d(1, 1, 3, padding=1)
    network.weight.data = torch.tensor(weights).view(1, 1, 3, 3)
    return network


def test_the_message_names_pixels_steps_and_the_derivative():
    network = only([0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    order = torch.tensor([1, 0, 2])  # the network's own would be 0, 1, 2
    with pytest.raises(AssertionError) as error:
        assert_autoregressive(network, (1, 1, 3), order, perturb=False, num_draws=1)
    # Pixel 1 comes first but takes pixel 0; the weight of the sum over the single parameter is random.
    said = re.fullmatch(
        r"Not autoregressive: the parameters of pixel \(row 0, column 1\) depend on channel 0 of pixel "
        r"\(row 0, column 0\), which is generated 1 step later; the derivative is (\S+)\.",
        str(error.value),
    )
    assert float(said[1]) != 0


@pytest.mark.parametrize(
    ("shift", "source"),
    [
        (lambda x: torch.roll(x, 1, dims=-1), (0, 4)),  # the first column gets the last
        (lambda x: torch.roll(x, 1, dims=-2), (3, 0)),  # the first row gets the last
        (lambda x: torch.cat([x[:, :, 1:], torch.zeros_like(x[:, :, :1])], dim=2), (1, 0)),  # up, not down
    ],
)
def test_a_wrong_shift_is_caught(shift, source):
    class Shifted(nn.Module):
        def forward(self, images):
            return shift(images)

    message = leak_of(Shifted(), (1, 4, 5))
    output, reported = (tuple(map(int, found)) for found in re.findall(r"pixel \(row (\d), column (\d)\)", message))
    offset = tuple(there - here for there, here in zip(reported, output, strict=True))
    assert offset == source
    assert "later" in message


@pytest.mark.parametrize("depth", [1, 3])
def test_a_map_of_the_other_direction_that_is_not_shifted_down_leaks(depth):
    # The mistake of diagonal BiLSTMs: the right-to-left map sees the row above and what lies to the right.
    class TwoDirections(nn.Module):
        def __init__(self, shifted):
            super().__init__()
            self.left, self.right, self.shifted = masked_stack(depth), masked_stack(depth), shifted

        def forward(self, images):
            other = self.right(images.flip(-1)).flip(-1)
            if self.shifted:
                other = F.pad(other, (0, 0, 1, 0))[:, :, :-1]
            return self.left(images) + other

    assert_autoregressive(TwoDirections(shifted=True), (1, 4, 5))
    assert "later" in leak_of(TwoDirections(shifted=False), (1, 4, 5))


def test_ordered_channels_may_see_those_before_and_joint_ones_may_not():
    assert_autoregressive(ColorNetwork(), (3, 3, 4), channels="ordered")
    message = leak_of(ColorNetwork(), (3, 3, 4), channels="joint")
    assert "the same pixel" in message
    assert message.endswith("the first of 36 that should be 0.")  # G of R, B of R, B of G at 12 pixels


@pytest.mark.parametrize(
    ("flaw", "output", "source"),
    [
        (lambda below, out, source: below | ((out == 1) & (source == 2)), 1, 2),  # G sees B
        (lambda below, out, source: below | ((out == 0) & (source == 0)), 0, 0),  # R sees itself
    ],
)
def test_a_leak_between_channels_is_named(flaw, output, source):
    message = leak_of(ColorNetwork(flaw), (3, 3, 4), channels="ordered")
    assert "which is no earlier channel of the same pixel" in message
    # Channels after it pass on what it has seen, so B then depends on itself; the message names where that begins.
    assert f"the parameters of channel {output} of pixel" in message
    assert f"depend on channel {source} of pixel" in message


def test_weights_of_zero_hide_no_leak():
    network = masked_stack(first_centre=True)
    nn.init.zeros_(network[-1].weight)
    assert "the same pixel" in leak_of(network, (1, 3, 4))
    with pytest.raises(AssertionError, match="depends on any pixel"):
        assert_autoregressive(network, (1, 3, 4), perturb=False)


def test_masks_kept_as_zeros_of_the_weights_need_the_weights_as_they_are():
    network = only([0.5, 0.3, 0.2, -0.4, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert_autoregressive(network, (1, 4, 4), perturb=False)
    leak_of(network, (1, 4, 4))


def test_a_leak_behind_a_relu_that_is_mostly_off_is_found_by_enough_draws():
    class Rare(nn.Module):
        def forward(self, images):
            return F.pad(images, (1, 0))[..., :-1] + F.relu(images - 0.96)  # on at one pixel in fifty

    def found_by(num_draws, seed):
        try:
            assert_autoregressive(Rare(), (1, 4, 5), num_draws=num_draws, seed=seed)
        except AssertionError:
            return True
        return False

    # A third of the seeds find it with one draw, and what the first draw finds, more draws find too.
    found = {num_draws: {seed for seed in range(20) if found_by(num_draws, seed)} for num_draws in (1, 2, 20)}
    assert 0 < len(found[1]) < 20
    assert found[1] < found[2] < found[20]
    assert len(found[20]) == 20


def test_what_has_no_derivative_is_no_proof():
    class Rounds(nn.Module):
        def forward(self, images):
            return images.round()

    class Detaches(nn.Module):
        def forward(self, images):
            return images.detach()

    for network in (Rounds(), Detaches()):
        with pytest.raises(AssertionError, match="depends on any pixel"):
            assert_autoregressive(network, (1, 3, 3))
    assert_autoregressive(Rounds(), (1, 1, 1))  # a single pixel can depend on nothing


def test_not_a_number_counts_as_a_leak():
    class Undefined(nn.Module):
        def forward(self, images):
            return F.pad(images, (1, 0))[..., :-1] + 0 * (images - 2).sqrt()

    assert "derivative is nan" in leak_of(Undefined(), (1, 3, 3))


def test_the_network_and_the_global_random_state_stay_as_they_were():
    network = masked_stack().train()
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    with torch.no_grad():  # as in a validation loop
        assert_autoregressive(network, (1, 3, 4))
    receptive_field_report(network, (1, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    assert network.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])


def test_dropout_and_batch_statistics_are_off():
    network = nn.Sequential(masked_stack(), nn.BatchNorm2d(2), nn.Dropout(0.5))
    assert_autoregressive(network, (1, 3, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (3, 4)}, r"image_shape must be \(channels, height, width\)"),
        ({"image_shape": (1, 0, 4)}, "each at least 1"),
        ({"order": [0, 1, 2, 3, 3, 5]}, r"pixel \(row 1, column 1\) is missing"),
        ({"order": [0, 1]}, "no permutation"),
        ({"channels": "rgb"}, "joint"),
        ({"image_shape": (3, 2, 3), "network": masked_stack(channels=3), "channels": "ordered"}, r"\[N, P, 3, H, W\]"),
        ({"network": nn.MaxPool2d(2)}, r"must give parameters .* got \[1, 1, 1, 1\]"),
        ({"network": nn.Flatten()}, r"got \[1, 6\]"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    arguments = {"network": masked_stack(), "image_shape": (1, 2, 3), **arguments}
    with pytest.raises(ValueError, match=message):
        assert_autoregressive(arguments.pop("network"), arguments.pop("image_shape"), **arguments)


# -- receptive_field_report -------------------------------------------------------------------------------------------


def seen_by_a_stack(depth, height, width, position):
    """Closed form: d rows above, as far as d columns to the right and `depth` to the left; d up to `depth`."""
    row, column = position
    seen = torch.zeros(height, width, dtype=torch.bool)
    for up in range(min(depth, row) + 1):
        right = min(column + up, width - 1) if up else column - 1
        seen[row - up, max(column - depth, 0) : right + 1] = True
    return seen


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("position", [None, (3, 2), (5, 8), (4, 0), (0, 0), (0, 5)])
@pytest.mark.parametrize("activation", [nn.ELU, nn.ReLU])
def test_the_blind_spot_of_masked_convolutions_has_its_closed_form(depth, position, activation):
    network = masked_stack(depth, activation=activation)
    report = receptive_field_report(network, (1, 6, 9), position)
    row, column = position or (5, 4)
    assert report.position == (row, column)
    before = torch.arange(54).view(6, 9) < row * 9 + column
    seen = seen_by_a_stack(depth, 6, 9, (row, column))
    assert torch.equal(report.before, before)
    assert torch.equal(report.influence, seen)
    assert torch.equal(report.blind_spot, before & ~seen)
    assert not report.leaks.any()
    assert report.seen_per_row == seen.sum(1).tolist()
    assert report.blind_per_row == (before & ~seen).sum(1).tolist()


def test_what_one_draw_sees_more_draws_see_too():
    class Rare(nn.Module):
        def forward(self, images):
            return F.relu(F.pad(images, (1, 0))[..., :-1] - 0.95)  # on for one picture in forty

    def seen_by(num_draws, seed):
        return receptive_field_report(Rare(), (1, 1, 2), num_draws=num_draws, seed=seed).seen_per_row == [1]

    seen = {num_draws: {seed for seed in range(20) if seen_by(num_draws, seed)} for num_draws in (1, 2, 20)}
    assert 0 < len(seen[1]) < 20
    assert seen[1] < seen[2] <= seen[20]
    assert len(seen[20]) == 20


def test_two_stacks_have_no_blind_spot_unless_the_vertical_one_is_shifted_again_in_each_layer():
    class TwoStacks(nn.Module):
        """The vertical stack sees all rows above; its map is shifted down once, where the horizontal one takes it."""

        def __init__(self, depth, shifted_again):
            super().__init__()
            self.vertical = nn.ModuleList(nn.Conv2d(1 if i == 0 else 4, 4, (2, 3)) for i in range(depth))
            self.horizontal = nn.ModuleList(nn.Conv2d(1 if i == 0 else 4, 4, (1, 2)) for i in range(depth))
            self.shifted_again = shifted_again

        def forward(self, images):
            above = left = images
            for number, (vertical, horizontal) in enumerate(zip(self.vertical, self.horizontal, strict=True)):
                again = int(self.shifted_again)
                above = F.elu(vertical(F.pad(above, (1, 1, 1 + again, 0))[:, :, : above.shape[2] + 1]))
                context = above if again else F.pad(above, (0, 0, 1, 0))[:, :, :-1]
                padded = F.pad(left, (2, 0, 0, 0))[..., :-1] if number == 0 else F.pad(left, (1, 0, 0, 0))
                left = F.elu(horizontal(padded) + context)
            return left

    for shifted_again in (False, True):
        network = TwoStacks(6, shifted_again)
        assert_autoregressive(network, (1, 4, 5))
        report = receptive_field_report(network, (1, 5, 6), (4, 2))
        assert bool(report.blind_spot.any()) == shifted_again


def test_the_drawing():
    text = str(receptive_field_report(masked_stack(2), (1, 4, 7), (3, 3)))
    assert text.splitlines() == [
        "Pixel (row 3, column 3) sees 11 of 24 earlier pixels  [@ the pixel, # seen, o blind spot, . later, ! leak]",
        "   0  ooooooo     0 seen    7 blind",
        "   1  o#####o     5 seen    2 blind",
        "   2  o####oo     4 seen    3 blind",
        "   3  o##@...     2 seen    1 blind",
    ]
    text = str(receptive_field_report(nn.Conv2d(1, 1, 3, padding=1), (1, 3, 3), (1, 1)))
    assert text.splitlines() == [
        "Pixel (row 1, column 1) sees 4 of 4 earlier pixels and 5 that are not earlier  "
        "[@ the pixel, # seen, o blind spot, . later, ! leak]",
        "   0  ###     3 seen    0 blind",
        "   1  #!!     1 seen    0 blind",
        "   2  !!!     0 seen    0 blind",
    ]


def test_the_blind_spot_of_another_order_is_seen_in_that_order():
    order = s_curve_order(4, 5)
    report = receptive_field_report(LocallyMasked(order, 3, 4, 5, color=True), (3, 4, 5), (1, 1), order)
    assert report.before[1].tolist() == [False, False, True, True, True]  # from right to left in this row
    assert not report.leaks.any()
    assert report.influence[1].tolist() == [False, False, True, True, False]


@pytest.mark.parametrize("position", [(4, 0), (0, 5), (-1, 0)])
def test_a_position_outside_is_refused(position):
    with pytest.raises(ValueError, match="must lie in the 4 x 5 picture"):
        receptive_field_report(masked_stack(), (1, 4, 5), position)


# -- assert_cached_equals_naive ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("channels", "color"), [(1, False), (3, False), (3, True)])
def test_a_right_step_equals_the_forward_pass(order, channels, color):
    own = ORDERS[order](4, 5)
    network = LocallyMasked(own, channels, 4, 5, color)
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    assert_cached_equals_naive(network, (channels, 4, 5), own)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


class NoHidden(LocallyMasked):
    """Forgets what it computed at each pixel."""

    def step(self, cache, position):
        result = super().step(cache, position)
        cache.hidden.zero_()
        return result


class LooksAtThePresent(LocallyMasked):
    """Takes the mask with the centre for the first layer."""

    def step(self, cache, position):
        row, column = divmod(position, self.size[1])
        cache.hidden[:, :, row, column] = self.at(self.first, cache.images, self.mask_b, position).tanh()
        return self.head(self.at(self.second, cache.hidden, self.mask_b, position))


class LooksTooEarly(LocallyMasked):
    """Writes the hidden vector of this pixel only after its parameters."""

    def step(self, cache, position):
        result = self.head(self.at(self.second, cache.hidden, self.mask_b, position))
        super().step(cache, position)
        return result


class StateInTheModule(LocallyMasked):
    """Right for one sampling at a time."""

    def init_cache(self, batch, device):
        cache = super().init_cache(batch, device)
        self.hidden = cache.hidden
        return cache

    def step(self, cache, position):
        return super().step(ToyCache(cache.images, self.hidden[: len(cache.images)]), position)


class RowsAndColumnsSwapped(LocallyMasked):
    def step(self, cache, position):
        column, row = divmod(position, self.size[0])
        return super().step(cache, row * self.size[1] + column)


class SlightlyOff(LocallyMasked):
    def step(self, cache, position):
        return super().step(cache, position) + (1e-7 if position == 13 else 0)


class NotANumber(LocallyMasked):
    def step(self, cache, position):
        return super().step(cache, position) * (torch.nan if position == 13 else 1)


@pytest.mark.parametrize(
    ("wrong", "pixel"),
    [
        (NoHidden, "(row 0, column 1), number 1"),
        (LooksAtThePresent, "(row 0, column 0), number 0"),
        (LooksTooEarly, "(row 0, column 0), number 0"),
        (StateInTheModule, "(row 0, column 2), number 2"),
        (RowsAndColumnsSwapped, "(row 0, column 1), number 1"),
        (SlightlyOff, "(row 2, column 3), number 13"),
        (NotANumber, "(row 2, column 3), number 13"),
    ],
)
def test_a_wrong_step_is_caught_at_its_first_pixel(wrong, pixel):
    network = wrong(raster_order(4, 5), 2, 4, 5)
    with pytest.raises(AssertionError, match=re.escape(f"differ first at pixel {pixel} of the order")) as error:
        assert_cached_equals_naive(network, (2, 4, 5))
    assert re.search(r"entry \[\d, \d\] of its parameters is \S+ from step, but \S+ from the whole", str(error.value))


def test_a_step_in_another_order_is_caught():
    network = LocallyMasked(raster_order(4, 5), 1, 4, 5)
    with pytest.raises(AssertionError, match="differ first at pixel"):
        assert_cached_equals_naive(network, (1, 4, 5), s_curve_order(4, 5))


class OrderedSteps(ColorNetwork):
    """Steps by forward passes over what is there: slow, and right."""

    def init_cache(self, batch, device):
        return ToyCache(torch.zeros(batch, 3, 4, 5, dtype=torch.float64, device=device), None)

    def step(self, cache, position):
        return self(cache.images).flatten(3)[..., position]


@pytest.mark.parametrize("network", [OrderedSteps(), LocallyMasked(raster_order(4, 5), 3, 4, 5, color=True)])
def test_with_parameters_for_each_channel_there_is_a_step_for_each(network, monkeypatch):
    known, step = [], type(network).step

    def counted(self, cache, position):
        known.append((position, (cache.images.flatten(2) != POISON).all(0)))
        return step(self, cache, position)

    monkeypatch.setattr(type(network), "step", counted)
    assert_cached_equals_naive(network, (3, 4, 5))
    assert len(known) == 2 * 3 * 20  # of two batches in turns
    for number, (position, drawn) in enumerate(known):
        pixel, channel = divmod(number // 2, 3)
        assert position == pixel
        assert torch.equal(drawn.T.flatten(), torch.arange(60) < 3 * pixel + channel)


def test_with_parameters_of_the_pixel_there_is_one_step(monkeypatch):
    steps, step = [], LocallyMasked.step
    monkeypatch.setattr(LocallyMasked, "step", lambda *arguments: steps.append(arguments[2]) or step(*arguments))
    assert_cached_equals_naive(LocallyMasked(raster_order(4, 5), 3, 4, 5), (3, 4, 5))
    assert steps == [position for position in range(20) for _ in range(2)]


class ThePresentChannel(OrderedSteps):
    """B also sees itself."""

    def step(self, cache, position):
        return super().step(cache, position) + cache.images.flatten(2)[:, 2, position, None, None] * torch.eye(3)[2]


class OneStepAPixel(OrderedSteps):
    """Keeps what it gave for the first channel, when the others were not drawn yet."""

    def step(self, cache, position):
        if cache.hidden is None or cache.hidden[0] != position:
            cache.hidden = position, super().step(cache, position)
        return cache.hidden[1]


class ChannelsReversed(OrderedSteps):
    def step(self, cache, position):
        return super().step(cache, position).flip(2)


@pytest.mark.parametrize(
    ("wrong", "place"),
    [
        (ThePresentChannel, "channel 2 of pixel (row 0, column 0), number 0"),
        (OneStepAPixel, "channel 1 of pixel (row 0, column 0), number 0"),
        (ChannelsReversed, "channel 0 of pixel (row 0, column 0), number 0"),
    ],
)
def test_a_wrong_step_of_a_channel_is_caught_there(wrong, place):
    with pytest.raises(AssertionError, match=re.escape(f"differ first at {place} of the order:")):
        assert_cached_equals_naive(wrong(), (3, 4, 5))


class Prefilled(LocallyMasked):
    def prefill(self, cache, position):
        cache.hidden.copy_(self.masked(self.first, cache.images, self.mask_a).tanh())


class FillsNothing(Prefilled):
    def prefill(self, cache, position):
        pass


class FillsTheRaster(Prefilled):
    """All before the pixel, but in the raster, whatever the order."""

    def prefill(self, cache, position):
        super().prefill(cache, position)
        cache.hidden.flatten(2)[:, :, position:] = 0


class FillsWholeRows(Prefilled):
    def prefill(self, cache, position):
        super().prefill(cache, position)
        cache.hidden[:, :, position // 5 :] = 0


class FillsAllButTheLast(Prefilled):
    """Forgets the pixel just before, in the raster."""

    def prefill(self, cache, position):
        super().prefill(cache, position)
        cache.hidden.flatten(2)[:, :, position - 1 :] = 0


class FillsTheImagesToo(Prefilled):
    """Clears the pixels that it takes note of."""

    def prefill(self, cache, position):
        super().prefill(cache, position)
        cache.images.zero_()


@pytest.mark.parametrize("order", ORDERS)
def test_a_right_prefill_is_that_of_the_order(order):
    own = ORDERS[order](4, 5)
    assert_cached_equals_naive(Prefilled(own, 3, 4, 5, color=True), (3, 4, 5), own)
    if order != "raster":
        with pytest.raises(AssertionError, match=r"of the order \(prefilled up to number \d+\)"):
            assert_cached_equals_naive(FillsTheRaster(own, 1, 4, 5), (1, 4, 5), own)


@pytest.mark.parametrize("wrong", [FillsNothing, FillsWholeRows, FillsAllButTheLast, FillsTheImagesToo])
def test_a_wrong_prefill_is_caught(wrong):
    place = "pixel (row 0, column 1), number 1 of the order (prefilled up to number 1)"
    with pytest.raises(AssertionError, match=re.escape(f"differ first at {place}")):
        assert_cached_equals_naive(wrong(raster_order(4, 5), 1, 4, 5), (1, 4, 5))


def test_a_cache_or_a_step_of_another_shape_is_refused():
    class Transposed(LocallyMasked):
        def init_cache(self, batch, device):
            return ToyCache(torch.zeros(batch, 1, 5, 4).double(), torch.zeros(batch, 5, 4, 5).double())

    class Single(LocallyMasked):
        def init_cache(self, batch, device):
            return ToyCache(torch.zeros(batch, 1, 4, 5), torch.zeros(batch, 5, 4, 5).double())

    class Wide(LocallyMasked):
        def step(self, cache, position):
            return super().step(cache, position)[..., None, None]

    for wrong, message in [
        (Transposed, r"cache.images must be \[2, 1, 4, 5\] .* got \[2, 1, 5, 4\], torch.float64"),
        (Single, r"torch.float64, got \[2, 1, 4, 5\], torch.float32"),
        (Wide, r"step gives \[2, 6, 1, 1\], but the parameters of one pixel of these pictures are \[2, 6\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            assert_cached_equals_naive(wrong(raster_order(4, 5), 1, 4, 5), (1, 4, 5))


def test_a_network_without_a_cache_is_refused():
    with pytest.raises(TypeError, match="Sequential has no method init_cache"):
        assert_cached_equals_naive(masked_stack(), (1, 4, 5))
