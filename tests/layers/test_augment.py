"""Each transform beside a loop over pictures, what is drawn for whom, and what pictures cannot be augmented."""

import functools
import math

import pytest
import torch

from lightning_gen.checkpoints import CheckpointError
from lightning_gen.hyperparameters import CLASS_KEY, Recipe, hyperparameters_of
from lightning_gen.layers import ADA, DiffAugment
from lightning_gen.layers import ada as ada_module
from lightning_gen.layers.ada import LEAKING, AdaptiveProbability
from lightning_gen.schedules import Linear

HOLD = functools.partial(ADA, target=None)
ALL = [DiffAugment(), *[DiffAugment((name,)) for name in DiffAugment().policy]]
ALL += [HOLD(), *[HOLD((name,)) for name in ADA().pipe]]
NAMES = [f"{type(a).__name__}-{'-'.join(a.transforms)}" for a in ALL]


def pictures(number=6, channels=3, size=(8, 12), dtype=torch.float32):
    draw = torch.Generator().manual_seed(1)
    return torch.rand(number, channels, *size, generator=draw, dtype=dtype) * 2 - 1


def at(p):
    return torch.tensor(float(p))


# -- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", ALL, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_at_0_pictures_stay_as_they_are_to_the_bit_and_at_1_none_does(augment, dtype):
    images = pictures(dtype=dtype)
    torch.manual_seed(0)
    assert torch.equal(augment(images, at(0)), images)
    changed = augment(images, at(1))
    assert changed.dtype == dtype
    assert changed.shape == images.shape
    # A mirror image may be none, and a square may lie outside; of several transforms one changes something.
    same = (changed == images).flatten(1).all(1)
    assert same.sum() <= (2 if len(augment.transforms) == 1 else 0)


@pytest.mark.parametrize("augment", ALL, ids=NAMES)
def test_each_picture_is_chosen_for_itself_and_the_others_stay(augment):
    images = pictures(500, size=(4, 4))
    torch.manual_seed(0)
    stayed = (augment(images, at(0.2)) == images).flatten(1).all(1).float().mean().item()
    kinds = {"color": 5, "blit": 3, "geometric": 3}  # geometric: the two turns together are one with probability p
    number = sum(kinds.get(name, 1) for name in augment.transforms) if isinstance(augment, ADA) else None
    expected = 0.8 ** (number or len(augment.transforms))
    if augment.transforms[-1] == "geometric" or (len(augment.transforms) == 3 and number):
        expected *= 0.8  # scale, stretch and move, and turns
    assert stayed > expected - 0.07
    assert stayed < expected + (0.07 if "blit" not in augment.transforms else 0.12)  # no quarter turn, no mirror


@pytest.mark.parametrize("augment", ALL, ids=NAMES)
def test_gradients_of_first_and_second_order(augment):
    images = pictures(2, size=(4, 5), dtype=torch.float64).requires_grad_()

    def run(x):
        torch.manual_seed(3)
        return augment(x, at(0.7))

    assert torch.autograd.gradcheck(run, images)
    assert torch.autograd.gradgradcheck(lambda x: run(x).square(), images)


@pytest.mark.parametrize("augment", ALL, ids=NAMES)
def test_pictures_that_lie_together_are_transformed_alike(augment):
    """Of three in the channels, the first and the last are the same picture."""
    first, other = pictures(4), pictures(4).flip(0)
    torch.manual_seed(0)
    a, _, c = augment(torch.cat([first, other, first], 1), at(1), 3).chunk(3, dim=1)
    assert torch.equal(a, c)
    torch.manual_seed(0)
    torch.testing.assert_close(augment(first, at(1)), a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("augment", [DiffAugment(), HOLD()], ids=["DiffAugment", "ADA"])
def test_two_calls_draw_anew_and_halves_are_computed_in_float32(augment):
    images = pictures()
    torch.manual_seed(0)
    first, second = augment(images, at(1)), augment(images, at(1))
    assert not torch.equal(first, second)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augment(images, at(1)), first)
        halves = augment(images.bfloat16(), at(1))
    assert halves.dtype == torch.bfloat16


@pytest.mark.parametrize("augment", [DiffAugment(), ADA(), HOLD(p=Linear(0, 0.3, 1000, by="images"))])
def test_a_checkpoint_names_each(augment):
    class Owner:
        def __init__(self, augment: DiffAugment | ADA):
            self.augment = augment

    saved = hyperparameters_of({"augment": augment})["augment"]
    recipe = Recipe({CLASS_KEY: saved["class_path"], **saved["init_args"]}, type(augment))
    assert recipe.build() == augment
    with pytest.raises(CheckpointError, match="p"):
        Recipe({CLASS_KEY: saved["class_path"], "p": 2.0}, type(augment)).build()


# -- DiffAugment, in loops ------------------------------------------------------------------------------------------


def test_color_is_that_of_a_loop():
    images = pictures()
    torch.manual_seed(5)
    result = DiffAugment(("color",))(images, at(1))
    torch.manual_seed(5)
    torch.rand(6, 1)
    for image, found, (b, s, c) in zip(images, result, torch.rand(6, 3), strict=True):
        expected = image + (b - 0.5)
        gray = expected.mean(0)
        expected = gray + 2 * s * (expected - gray)
        expected = expected.mean() + (c + 0.5) * (expected - expected.mean())
        torch.testing.assert_close(found, expected)


def test_translation_is_that_of_a_loop():
    images = pictures(size=(16, 24))
    torch.manual_seed(5)
    result = DiffAugment(("translation",))(images, at(1))
    torch.manual_seed(5)
    torch.rand(6, 1)
    down, right = torch.randint(-2, 3, (6,)).tolist(), torch.randint(-3, 4, (6,)).tolist()
    assert len(set(down)) > 1
    for image, found, y, x in zip(images, result, down, right, strict=True):
        expected = torch.zeros_like(image)
        for i in range(16):
            for j in range(24):
                if 0 <= i - y < 16 and 0 <= j - x < 24:
                    expected[:, i, j] = image[:, i - y, j - x]
        assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [(8, 12), (6, 5)])
def test_cutout_is_a_square_of_half_the_size_anywhere(size):
    images = pictures(2000, 1, size).abs() + 0.1
    torch.manual_seed(0)
    holes = DiffAugment(("cutout",))(images, at(1))[:, 0] == 0
    for lines, side in ((holes.any(2), size[0]), (holes.any(1), size[1])):
        half = (side + 1) // 2
        lengths = lines.sum(1)
        assert lengths.max() == half
        assert lengths.min() == half - half // 2  # it reaches over an edge by half of it
        places = {tuple(line.nonzero().flatten().tolist()) for line in lines}
        assert len(places) == side + 1 - half % 2  # each as likely as all others
        assert all(place == tuple(range(place[0], place[-1] + 1)) for place in places)
    assert torch.equal(holes.sum((1, 2)), holes.any(2).sum(1) * holes.any(1).sum(1))


# -- ADA, one transform at a time -----------------------------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch):
    """Draws no transform of a kind but that of one number, and what it draws with is given."""

    def choose(number, **draws):
        def drawn(count, transforms, p):
            chosen = torch.zeros(count, transforms, dtype=torch.bool)
            if number == "turns":
                chosen[:, 0] = transforms == 2
            elif transforms > 2:
                chosen[:, number] = True
            return chosen

        monkeypatch.setattr(ada_module, "drawn", drawn)
        for name, value in draws.items():
            if name == "normal":
                monkeypatch.setattr(torch, "randn", lambda *shape, v=value, **_: torch.full(shape, v))
            else:
                shape = (lambda count, size: (count, size)) if name == "uniform" else (lambda count, *_: (count,))
                monkeypatch.setattr(
                    ada_module, name, lambda count, *rest, v=value, s=shape: torch.full(s(count, *rest[:1]), v)
                )

    return choose


INNER = (..., slice(6, -6), slice(6, -6))


def test_blits_are_mirror_images_quarter_turns_and_moves(alone):
    images = pictures(2, size=(32, 32))
    blit = HOLD(("blit",))
    for number, draws, expected in (
        (0, {"integers": 1}, images.flip(3)),
        (0, {"integers": 0}, images),
        (1, {"integers": 1}, images.rot90(-1, (2, 3))),
        (1, {"integers": 2}, images.rot90(2, (2, 3))),
        (2, {"uniform": 0.4}, images.roll((2, 2), (2, 3))),  # 0.4 / 8 of 32 are 1.6
    ):
        alone(number, **draws)
        # Mirroring and turning meet the filter's other side: it is nearly, but not quite, symmetric. Other pixels of
        # this noise would differ by 0.67 in the mean.
        tolerance = 1e-4 if number == 2 or draws == {"integers": 0} else 1.0
        difference = (blit(images, at(1)) - expected)[INNER].abs()
        assert difference.max() < tolerance, (number, draws)
        assert difference.mean() < tolerance / 5


def test_geometric_transforms_are_those_of_their_numbers(alone):
    """A Gaussian blob: where it lies afterwards, and how wide it is."""
    y, x = torch.meshgrid(torch.arange(64.0) - 31.5, torch.arange(64.0) - 31.5, indexing="ij")
    blob = (-((x - 8) ** 2 + y**2) / (2 * 5.0**2)).exp()[None, None]
    geometric = HOLD(("geometric",))

    def moments(image):
        mass = image[0, 0] / image[0, 0].sum()
        mean = ((mass * x).sum().item(), (mass * y).sum().item())
        return mean, [(mass * (c - m) ** 2).sum().sqrt().item() for c, m in zip((x, y), mean, strict=True)]

    alone(0, normal=1.0)  # 2^0.2 times as large
    mean, widths = moments(geometric(blob, at(1)))
    assert mean == pytest.approx((8 * 2**0.2, 0), abs=0.1)
    assert widths == pytest.approx([5 * 2**0.2] * 2, rel=0.02)
    alone(1, normal=1.0)  # as much wider as lower
    mean, widths = moments(geometric(blob, at(1)))
    assert mean == pytest.approx((8 * 2**0.2, 0), abs=0.1)
    assert widths == pytest.approx([5 * 2**0.2, 5 / 2**0.2], rel=0.02)
    alone("turns", uniform=0.5)  # by 90 degrees
    mean, widths = moments(geometric(blob, at(1)))
    assert mean == pytest.approx((0, 8), abs=0.1) or mean == pytest.approx((0, -8), abs=0.1)
    assert widths == pytest.approx([5, 5], rel=0.02)
    alone(2, normal=0.5)  # by 1/16 of the picture
    mean, _ = moments(geometric(blob, at(1)))
    assert mean == pytest.approx((8 + 4, 4), abs=0.1)


def test_colors_are_transformed_as_by_hand(alone):
    images = pictures(2, dtype=torch.float64)
    color = HOLD(("color",))
    gray = images.mean(1, keepdim=True)
    for number, draws, expected in (
        (0, {"normal": 0.5}, images + 0.1),
        (1, {"normal": -2.0}, images / 2),
        (2, {"integers": 1}, images - 2 * gray),
        (3, {"uniform": 2 / 3}, images.roll(1, 1)),  # a third of the circle: red to green to blue
        (4, {"normal": 1.0}, gray + 2 * (images - gray)),
    ):
        alone(number, **draws)
        found = color(images, at(1))
        if number == 3 and not torch.allclose(found, expected, atol=1e-5):
            expected = images.roll(-1, 1)  # or the other way round
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    alone(0, normal=0.5)
    torch.testing.assert_close(color(images[:, :1], at(1)), images[:, :1] + 0.1, rtol=0, atol=1e-6)
    alone(2, integers=1)
    torch.testing.assert_close(color(images[:, :1], at(1)), -images[:, :1], rtol=0, atol=1e-6)


def test_the_laws_of_the_draws():
    torch.manual_seed(0)
    number = 20_000
    inverses, chosen = ada_module._geometric(number, 64, 32, at(1))
    assert chosen.all()
    area = -torch.linalg.det(inverses[:, :2, :2]).log2() / 2  # log2 of the scale
    assert area.mean().item() == pytest.approx(0, abs=0.01)
    assert area.std().item() == pytest.approx(0.2, rel=0.03)
    middles = torch.linalg.inv(inverses)[:, :2, 2]
    assert middles.std(0).tolist() == pytest.approx([8, 4], rel=0.03)
    _, chosen = ada_module._geometric(number, 64, 64, at(0.3))
    assert chosen.float().mean().item() == pytest.approx(1 - 0.7**4, abs=0.015)
    inverses, chosen = ada_module._blits(number, 64, 32, at(0.3))
    assert chosen.float().mean().item() == pytest.approx(1 - 0.7**3, abs=0.015)
    moves = torch.linalg.inv(inverses)[:, :2, 2]
    torch.testing.assert_close(moves, moves.round(), rtol=0, atol=1e-4)
    assert moves.abs().amax(0).tolist() == pytest.approx([8, 4], abs=1e-3)
    luma, _, shift, _ = ada_module._colors(number, at(1))
    assert (luma < 0).float().mean().item() == pytest.approx(0.5, abs=0.015)
    assert luma.abs().log2().std().item() == pytest.approx(0.5, rel=0.03)
    assert (shift / luma).std().item() == pytest.approx(0.2, rel=0.03)


# -- p --------------------------------------------------------------------------------------------------------------


def test_p_follows_the_signs_by_the_pictures_seen():
    probability = AdaptiveProbability(ADA(kimg=1))
    assert probability.p == 0
    for margins in ([1.0, 2.0, 3.0, -1.0], [0.5, 0.1, 0.1, 1.0]):  # 7 of 8 are above: r = 0.75
        probability.note(torch.tensor(margins))
        probability.advance(100)
    assert probability.r == 0.75
    probability.move()
    assert probability.p.item() == pytest.approx(0.2)
    assert probability.r == 0
    for steps, expected in ((1, 0.15), (9, 0.0)):
        for _ in range(steps):
            probability.note(torch.tensor([1.0, 1.0, 1.0, -1.0]))  # r = 0.5
            probability.advance(50)
            probability.move()
        assert probability.p.item() == pytest.approx(expected)
    probability.advance(50)
    probability.move()  # without a score p stays
    assert probability.p == 0


def test_p_ends_at_1_and_a_type_of_few_bits_does_not_round_it():
    probability = AdaptiveProbability(ADA(p=0.9995, kimg=500)).to(torch.bfloat16)
    for expected in (0.9997, 0.9999, 1.0, 1.0):
        probability.note(torch.ones(4, dtype=torch.bfloat16))
        probability.advance(100)
        probability.move()
        assert probability.p.item() == pytest.approx(expected, abs=1e-7)


def test_p_is_kept_and_stays_itself_under_another_pace():
    probability = AdaptiveProbability(ADA(kimg=500, p=0.3))
    probability.note(torch.ones(3))
    probability.advance(8)
    same, faster = AdaptiveProbability(ADA(kimg=500)), AdaptiveProbability(ADA(kimg=100))
    same.load(probability.state())
    faster.load(probability.state())
    assert torch.equal(same.counts, probability.counts)
    assert faster.p.item() == pytest.approx(0.3)
    with pytest.raises(ValueError, match="no state"):
        same.load({"counts": [600_000, 0, 0, 0], "kimg": 500})


def test_a_warning_where_p_stays_high_and_only_once(recwarn):
    probability = AdaptiveProbability(ADA(kimg=10, p=0.9))
    for seen in (0, 1000, 1999):
        probability.watch(seen)
    assert not recwarn
    with pytest.warns(UserWarning, match=f"above {LEAKING} for 2500 pictures.*data.flip"):
        probability.watch(2500)
    recwarn.clear()
    probability.watch(9000)
    assert not recwarn
    again = AdaptiveProbability(ADA(kimg=10, p=0.9))
    again.watch(0)
    again.counts[0] = 5000
    again.watch(1500)
    again.counts[0] = 9000
    again.watch(3000)  # begins anew
    again.watch(4000)
    assert not recwarn


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ADA(p=1.5), r"ADA needs p in \[0, 1\].*1.5"),
        (lambda: DiffAugment(p=-0.1), r"DiffAugment needs p in \[0, 1\]"),
        (lambda: ADA(p=math.nan), r"p in \[0, 1\]"),
        (lambda: ADA(target=1.0), r"target in \(0, 1\).*null"),
        (lambda: ADA(target=0.0), r"target in \(0, 1\)"),
        (lambda: ADA(p=Linear(0, 1, 10)), "Set target to null"),
        (lambda: ADA(interval=0), "interval of at least 1"),
        (lambda: ADA(kimg=0), "kimg of at least 1"),
        (lambda: ADA(("blit", "noise")), "pipe of one or more of blit, geometric, color.*noise"),
        (lambda: DiffAugment(("color", "color")), "policy of one or more of .*each once"),
        (lambda: DiffAugment(()), "leave augment out"),
    ],
)
def test_numbers_and_names_out_of_range(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("augment", "shape", "words"),
    [
        (
            ADA(),
            (2, 8, 8),
            r"Model: 'color' of ADA knows .* 1 or 3 channels.*\(2, 8, 8\).*blit, geometric would",
        ),
        (DiffAugment(("color",)), (5, 8, 8), "Leave augment out"),
        (ADA(("blit",)), (2, 1, 1), r"'blit' of ADA moves the pixels.*\(2, 1, 1\)"),
        (DiffAugment(), (3, 8, 1), "'translation' of DiffAugment moves"),
    ],
)
def test_pictures_that_bear_no_such_transform(augment, shape, words):
    with pytest.raises(ValueError, match=words):
        augment.check("Model", shape)
    augment.check("Model", (1, 8, 8))


# -- what a generator learns ----------------------------------------------------------------------------------------


def mixtures(p, seed):
    """Shares of slopes in four directions among augmented pictures, a column for each direction that they had."""
    ramp = torch.linspace(-1, 1, 16).expand(16, 16)
    slopes = torch.stack([ramp, ramp.mT, -ramp, -ramp.mT])
    torch.manual_seed(seed)
    shown = HOLD(("blit",))(slopes.repeat_interleave(5000, 0).unsqueeze(1), at(p)).flatten(1)
    directions = (shown @ slopes.flatten(1).mT).argmax(1)
    return torch.stack([torch.bincount(part, minlength=4) / 5000 for part in directions.split(5000)], dim=1)


def fitted(real, mixed):
    """The law of directions that a generator learns which sees augmented pictures only, if it learns all there is.

    It minimises the Jensen-Shannon divergence of the laws of augmented pictures, as the minimax game does (1406.2661).
    """
    logits = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(1000):
        fake = mixed @ logits.softmax(0)
        middle = (real + fake) / 2
        divergence = (real * (real / middle).log() + fake * (fake / middle).log()).sum()
        optimizer.zero_grad()
        divergence.backward()
        optimizer.step()
    return logits.softmax(0).detach()


def test_what_can_be_undone_in_distribution_does_not_leak_and_what_cannot_does():
    """At 1 all directions become all others alike, so that no two laws can be told apart."""
    law = torch.tensor([0.6, 0.25, 0.1, 0.05])
    real = mixtures(0.5, seed=0) @ law
    assert (real - law).abs().max() > 0.1  # of augmented pictures it is another
    torch.testing.assert_close(fitted(real, mixtures(0.5, seed=1)), law, rtol=0, atol=0.05)
    torch.testing.assert_close(mixtures(1.0, seed=0), torch.full((4, 4), 0.25), rtol=0, atol=0.03)  # 5 deviations
