from itertools import product

import pytest
import torch
import torch.nn.functional as F

from lightning_gen.layers.orders import (
    as_order,
    generalized_hilbert_order,
    hilbert_order,
    hole_last,
    local_masks,
    random_order,
    raster_order,
    s_curve_order,
    symmetries,
    transformed,
)

RECTANGLES = list(product(range(1, 13), repeat=2))
POWERS = [1, 2, 4, 8, 16, 32]


def steps(order, width):
    """Rows and columns that each step goes, [H * W - 1, 2]."""
    return torch.stack([order // width, order % width], dim=1).diff(dim=0)


def all_to_neighbours(order, width):
    return bool((steps(order, width).abs().sum(1) == 1).all())


@pytest.mark.parametrize("curve", [raster_order, s_curve_order, generalized_hilbert_order, random_order])
def test_every_curve_takes_every_pixel_once_in_every_rectangle(curve):
    for height, width in RECTANGLES:
        order = curve(height, width)
        assert order.dtype == torch.int64
        assert order.device.type == "cpu"
        assert sorted(order.tolist()) == list(range(height * width))


@pytest.mark.parametrize("curve", [s_curve_order, generalized_hilbert_order])
def test_every_step_is_to_a_neighbour_in_every_rectangle(curve):
    assert all(all_to_neighbours(curve(height, width), width) for height, width in [*RECTANGLES, (31, 28), (40, 21)])


def test_raster_and_s_curve_written_out():
    assert raster_order(2, 3).tolist() == [0, 1, 2, 3, 4, 5]
    assert s_curve_order(3, 3).tolist() == [0, 1, 2, 5, 4, 3, 6, 7, 8]


def hilbert_point(distance, side):
    """Row and column at a distance along the curve, from the bits of the distance."""
    column = row = 0
    scale = 1
    while scale < side:
        right, down = (distance // 2) % 2, (distance ^ (distance // 2)) % 2
        if not down:
            if right:
                column, row = scale - 1 - column, scale - 1 - row
            column, row = row, column
        column, row = column + scale * right, row + scale * down
        distance, scale = distance // 4, 2 * scale
    return row, column


@pytest.mark.parametrize("side", POWERS)
def test_the_hilbert_curve_is_that_of_the_bits(side):
    order = hilbert_order(side, side)
    points = [hilbert_point(distance, side) for distance in range(side * side)]
    ways = {tuple(r * side + c for r, c in points), tuple(c * side + r for r, c in points)}
    assert tuple(order.tolist()) in ways
    assert order[0] == 0
    assert order[-1] == side - 1
    assert all_to_neighbours(order, side)


@pytest.mark.parametrize("side", POWERS)
def test_the_hilbert_curve_completes_each_quarter_before_the_next(side):
    order, block = hilbert_order(side, side), side
    while block > 1:
        block //= 2
        blocks = torch.stack([order // side // block, order % side // block], dim=1).view(-1, block**2, 2)
        assert torch.equal(blocks, blocks[:, :1].expand_as(blocks))


def test_the_generalised_curve_ends_in_a_corner_of_the_longer_side_where_the_colours_allow_it():
    for height, width in RECTANGLES:
        longer = max(height, width)
        corner = width - 1 if width >= height else (height - 1) * width
        reaches = generalized_hilbert_order(height, width)[-1] == corner
        # Neighbours differ in colour, so the ends of a path of n pixels have the same colour if and only if n is odd.
        same_colour, odd = (longer - 1) % 2 == 0, height * width % 2 == 1
        assert reaches == (same_colour == odd)
        if not reaches:
            row, column = divmod(int(generalized_hilbert_order(height, width)[-1]), width)
            assert (row == height - 1) if width > height else (column == width - 1)


@pytest.mark.parametrize("size", [(16, 16), (27, 27), (28, 31), (31, 28), (16, 64), (15, 64), (63, 16)])
def test_what_is_near_on_the_generalised_curve_is_near_in_the_picture(size):
    # A Hilbert curve goes no further than sqrt(6 n) in n steps; the bands of a raster or S-curve go n.
    order = generalized_hilbert_order(*size)
    points = torch.stack([order // size[1], order % size[1]], dim=1).double()
    for lag in (4, 16, 64):
        assert (points[lag:] - points[:-lag]).norm(dim=1).square().mean() < 2 * lag


def test_a_random_order_depends_on_its_seed_alone():
    state = torch.get_rng_state()
    first, again, other = random_order(5, 7, seed=3), random_order(5, 7, seed=3), random_order(5, 7, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_default_device_changes_nothing():
    with torch.device("meta"):
        orders = [raster_order(3, 4), s_curve_order(3, 4), generalized_hilbert_order(3, 4), random_order(3, 4)]
        own = as_order([2, 0, 1], 1, 3)
    assert {order.device.type for order in [*orders, own]} == {"cpu"}


# -- symmetries -------------------------------------------------------------------------------------------------------


def test_the_eight_symmetries_form_the_group_of_the_square():
    flags = [
        dict(zip(("transpose", "flip_rows", "flip_columns"), values, strict=True))
        for values in product((False, True), repeat=3)
    ]
    start = random_order(5, 5)
    # Whatever order they act on, the symmetries move pixels; acting on the raster they show where each goes.
    moves = [tuple(transformed(raster_order(5, 5), 5, 5, **chosen).tolist()) for chosen in flags]
    assert len(set(moves)) == 8
    elements_of_order_two = 0
    for first, second in product(flags, repeat=2):
        product_of_both = transformed(transformed(raster_order(5, 5), 5, 5, **first), 5, 5, **second)
        assert tuple(product_of_both.tolist()) in moves  # closed; finite, so inverses follow
        elements_of_order_two += first == second and torch.equal(product_of_both, raster_order(5, 5))
    assert elements_of_order_two == 1 + 5  # the identity, the half turn, four reflections: no other group has six
    for chosen, move in zip(flags, moves, strict=True):
        assert torch.equal(transformed(start, 5, 5, **chosen), torch.tensor(move)[start])


def test_symmetries_are_those_of_the_picture():
    picture = torch.arange(12).view(3, 4)
    order = random_order(3, 4)
    for transpose, rows, columns in product((False, True), repeat=3):
        result = transformed(order, 3, 4, transpose=transpose, flip_rows=rows, flip_columns=columns)
        moved = picture.T if transpose else picture
        moved = moved.flip([axis for axis, flip in enumerate((rows, columns)) if flip])
        # The i-th pixel taken of the moved picture is the one that was the i-th before.
        assert torch.equal(moved.flatten()[result], picture.flatten()[order])


def test_symmetries_of_a_curve_are_orders_of_one_rectangle():
    for height, width in RECTANGLES:
        orders = symmetries(s_curve_order, height, width)
        assert len(orders) == 8
        assert torch.equal(orders[0], s_curve_order(height, width))
        assert all(sorted(order.tolist()) == list(range(height * width)) for order in orders)
        assert all(all_to_neighbours(order, width) for order in orders)
        if min(height, width) > 1:
            assert len({tuple(order.tolist()) for order in orders}) == 8
    ends = {(int(order[0]), int(order[-1])) for order in symmetries(raster_order, 3, 5)}
    assert ends == {(0, 14), (14, 0), (4, 10), (10, 4)}


# -- orders of one's own and holes ------------------------------------------------------------------------------------


def test_an_order_of_ones_own_comes_back_as_int64():
    for given in ([2, 0, 3, 1], torch.tensor([2, 0, 3, 1], dtype=torch.uint8)):
        order = as_order(given, 2, 2)
        assert order.dtype == torch.int64
        assert order.tolist() == [2, 0, 3, 1]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([0, 1, 2, 3, 4, 4], r"pixel \(row 1, column 2\) is missing; pixel \(row 1, column 1\) comes more than once"),
        ([0, 1, 1, 4, 4, 4], r"pixel \(row 0, column 2\) \(and 2 more\) is missing; pixel \(row 0, column 1\) \(and 1"),
        ([0, 1, 2, 3, 4], r"no permutation of the 6 pixels of a 2 x 3 picture: pixel \(row 1, column 2\) is missing\."),
        ([0, 1, 2, 3, 4, 5, 0], r"pixel \(row 0, column 0\) comes more than once\."),
        ([0, 1, 2, 3, 4, 6], "index 6; those of a 2 x 3 picture are 0 to 5"),
        ([0, 1, 2, 3, 4, -1], "index -1"),
        (torch.arange(6.0), r"integers \[6\], got torch.float32 \[6\]"),
        (torch.arange(6).view(2, 3), r"got torch.int64 \[2, 3\]"),
        (torch.ones(6, dtype=torch.bool), "got torch.bool"),
    ],
)
def test_what_is_no_permutation_is_named(order, message):
    with pytest.raises(ValueError, match=message):
        as_order(order, 2, 3)


@pytest.mark.parametrize("curve", [raster_order, s_curve_order, hilbert_order, generalized_hilbert_order, random_order])
def test_sides_must_be_positive(curve):
    with pytest.raises(ValueError, match="at least 1, got 0 x 4"):
        curve(0, 4)


@pytest.mark.parametrize("size", [(4, 8), (6, 6), (12, 12)])
def test_hilbert_names_the_curve_for_other_sizes(size):
    with pytest.raises(ValueError, match="generalized_hilbert_order"):
        hilbert_order(*size)


def test_the_hole_comes_last_and_each_part_keeps_its_order():
    for seed in range(20):
        order = random_order(4, 6, seed)
        known = torch.rand(4, 6, generator=torch.Generator().manual_seed(seed)) < 0.4
        known[seed % 4, seed % 6] = True
        result = hole_last(order, known)
        inside = [pixel for pixel in order.tolist() if known.flatten()[pixel]]
        outside = [pixel for pixel in order.tolist() if not known.flatten()[pixel]]
        assert result.tolist() == inside + outside
    assert torch.equal(hole_last(order, torch.ones(4, 6, dtype=torch.bool)), order)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (torch.ones(3, 4, dtype=torch.bool), "of 24 pixels, but the mask of known pixels is 3 x 4"),
        (torch.zeros(4, 6, dtype=torch.bool), "No pixel is known"),
        (torch.ones(4, 6), r"must be bool \[H, W\], got torch.float32 \[4, 6\]"),
        (torch.ones(1, 4, 6, dtype=torch.bool), r"got torch.bool \[1, 4, 6\]"),
    ],
)
def test_masks_that_fit_no_completion_are_refused(known, message):
    with pytest.raises(ValueError, match=message):
        hole_last(raster_order(4, 6), known)


# -- local masks ------------------------------------------------------------------------------------------------------


def masks_by_definition(order, height, width, kernel, dilation, mask_type):
    when = {pixel: time for time, pixel in enumerate(order.tolist())}
    masks = torch.zeros(kernel[0], kernel[1], height, width, dtype=torch.bool)
    for i, j, row, column in product(*map(range, masks.shape)):
        down, right = (i - kernel[0] // 2) * dilation[0], (j - kernel[1] // 2) * dilation[1]
        if 0 <= row + down < height and 0 <= column + right < width:
            neighbour, centre = (row + down) * width + column + right, row * width + column
            is_centre = down == right == 0
            masks[i, j, row, column] = when[neighbour] < when[centre] or (is_centre and mask_type == "B")
    return masks.flatten(2).flatten(0, 1)


@pytest.mark.parametrize("mask_type", ["A", "B"])
@pytest.mark.parametrize(
    ("kernel", "dilation"), [((3, 3), (1, 1)), ((5, 3), (1, 1)), ((3, 3), (2, 2)), ((1, 5), (1, 2)), ((1, 1), (1, 1))]
)
def test_masks_are_those_of_the_definition(kernel, dilation, mask_type):
    for height, width in [(1, 1), (1, 6), (5, 4), (4, 7), (2, 2)]:
        for curve in (raster_order, s_curve_order, generalized_hilbert_order, random_order):
            for order in symmetries(curve, height, width):
                result = local_masks(order, height, width, kernel, dilation, mask_type=mask_type)
                assert torch.equal(result, masks_by_definition(order, height, width, kernel, dilation, mask_type))


def test_one_number_stands_for_both_sides():
    order = random_order(5, 6)
    assert torch.equal(
        local_masks(order, 5, 6, 3, 2, mask_type="A"), local_masks(order, 5, 6, (3, 3), (2, 2), mask_type="A")
    )


def test_with_the_raster_it_is_the_masked_convolution():
    generator = torch.Generator().manual_seed(0)
    images, weight = (torch.randn(shape, generator=generator).double() for shape in [(2, 3, 5, 6), (4, 3, 3, 3)])
    masks = local_masks(raster_order(5, 6), 5, 6, 3, mask_type="A")
    columns = F.unfold(images, 3, padding=1).unflatten(1, (3, 9)) * masks
    result = torch.einsum("ock,nckp->nop", weight.flatten(2), columns).unflatten(-1, (5, 6))
    raster_mask = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 0, 0]])
    torch.testing.assert_close(result, F.conv2d(images, weight * raster_mask, padding=1))


def test_of_each_pair_of_neighbours_exactly_one_sees_the_other():
    masks = local_masks(random_order(6, 7), 6, 7, 3, mask_type="A").view(3, 3, 6, 7)
    assert torch.all(masks[1, 2, :, :-1] ^ masks[1, 0, :, 1:])
    assert torch.all(masks[2, 2, :-1, :-1] ^ masks[0, 0, 1:, 1:])
    assert masks.sum() == 6 * 6 + 5 * 7 + 2 * 5 * 6


def test_with_the_hole_last_its_border_sees_all_that_is_known():
    known = torch.ones(6, 6, dtype=torch.bool)
    known[2:4, 2:4] = False
    masks = local_masks(hole_last(raster_order(6, 6), known), 6, 6, 3, mask_type="A").view(9, 6, 6)
    # The first pixel of the hole has five known neighbours and three of the hole, the last one all eight.
    assert masks[:, 2, 2].sum() == 5
    assert masks[:, 3, 3].sum() == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 1, "A"), "odd, got 4"),
        (((3, 2), 1, "A"), r"odd, got \(3, 2\)"),
        ((3, 0, "A"), "dilation must be at least 1, got 0"),
        ((3, 1, "C"), "mask_type must be .* got 'C'"),
    ],
)
def test_kernels_without_a_centre_are_refused(arguments, message):
    kernel, dilation, mask_type = arguments
    with pytest.raises(ValueError, match=message):
        local_masks(raster_order(4, 4), 4, 4, kernel, dilation, mask_type=mask_type)
