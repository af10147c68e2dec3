import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from lightning_gen.data.images import from_uint8
from lightning_gen.losses.categorical import (
    bernoulli_log_prob,
    bernoulli_pixel_log_prob,
    bernoulli_sample,
    categorical_log_prob,
    categorical_pixel_log_prob,
    categorical_sample,
    check_num_levels,
    images_to_levels,
    keep_likeliest,
    levels_to_images,
    rounding,
)

DRAWS = 200_000


def randn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(*shape, num_levels, seed=0):
    return levels_to_images(torch.randint(num_levels, shape, generator=seeded(seed)), num_levels)


def assert_frequencies(drawn, probabilities):
    """Chi-square: its mean is the degrees of freedom, its variance twice that; five deviations are allowed."""
    expected = probabilities.double() * len(drawn)
    counts = torch.bincount(drawn, minlength=len(expected)).double()
    assert len(counts) == len(expected)
    rare = expected < 10
    assert counts[rare].sum() <= expected[rare].sum() + 5 * expected[rare].sum().sqrt() + 5
    freedom = int((~rare).sum()) - 1
    statistic = ((counts - expected).square() / expected)[~rare].sum().item()
    assert statistic < freedom + 5 * math.sqrt(2 * freedom)


# Levels


@pytest.mark.parametrize("num_levels", [2, 3, 16, 17, 256, 1000, 65536])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_come_back_from_their_pictures(num_levels, dtype):
    levels = torch.arange(num_levels).view(1, 1, 1, -1)
    images = levels_to_images(levels, num_levels, dtype)
    assert images.dtype == dtype
    assert images.min() == -1
    assert images.max() == 1
    assert torch.equal(images_to_levels(images, num_levels), levels)


def test_pictures_are_those_of_the_data():
    pixels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(levels_to_images(pixels, 256), from_uint8(pixels))
    assert levels_to_images(torch.arange(17), 17).tolist() == [k / 8 - 1 for k in range(17)]


def test_other_ways_of_scaling_pictures_pass():
    levels = torch.arange(256).view(1, 1, 16, 16)
    for images in ((levels / 255 - 0.5) / 0.5, levels / 255 * 2 - 1, (levels.float() - 127.5) * (1 / 127.5)):
        assert torch.equal(images_to_levels(images, 256), levels)


def test_half_precision_does_where_it_holds_the_levels():
    levels = torch.arange(17).view(1, 1, 1, 17)
    assert torch.equal(images_to_levels(levels_to_images(levels, 17, torch.bfloat16), 17), levels)
    with pytest.raises(ValueError, match=r"none of the 256 levels.*bfloat16 may be too coarse"):
        images_to_levels(pictures(1, 1, 16, 16, num_levels=256).bfloat16(), 256)


@pytest.mark.parametrize(("half", "most"), [(torch.bfloat16, 512), (torch.float16, 4096)])
def test_levels_of_pictures_known_to_be_rounded(half, most):
    for num_levels in (2, 17, 256, most):
        levels = torch.arange(num_levels).view(1, 1, 1, -1)
        images = levels_to_images(levels, num_levels).to(half)
        assert torch.equal(images_to_levels(images, num_levels, tolerance=rounding(half)), levels)
    with pytest.raises(ValueError, match=r"of 5000 levels in .* do not tell them apart\. Give them in float32"):
        images_to_levels(torch.zeros(1, 1, 1, 1, dtype=half), 5000, tolerance=rounding(half))
    with pytest.raises(ValueError, match="none of the 256 levels"):  # 0 is between two
        images_to_levels(torch.zeros(1, 1, 1, 1, dtype=half), 256, tolerance=rounding(half))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.3, r"Sample 2 of the batch \(1 of 4 are unfit\) holds 0.3 at \(0, 1, 3\), which is none of the 17 levels"),
        (0.12501, r"Sample 2 .* none of the 17 levels"),
        (1.125, r"Sample 2 .* to 1.125, but pictures lie in \[-1, 1\]"),
        (-1.00001, r"Sample 2 .* ranges from -1.00001 to"),
        (math.inf, r"Sample 2 .* to inf"),
        (math.nan, r"Sample 2 .* holds NaN in 1 of its 20 values"),
    ],
)
def test_a_picture_without_levels_is_named(value, words):
    images = pictures(4, 1, 4, 5, num_levels=17)
    images[2, 0, 1, 3] = value
    with pytest.raises(ValueError, match=words):
        images_to_levels(images, 17)


def test_a_picture_of_another_bit_depth_is_refused():
    digits, photographs = pictures(2, 1, 8, 8, num_levels=17), pictures(2, 1, 8, 8, num_levels=256)
    for images, num_levels in ((digits, 256), (digits, 16), (photographs, 128), (photographs, 17)):
        with pytest.raises(ValueError, match=f"none of the {num_levels} levels"):
            images_to_levels(images, num_levels)


def test_a_picture_that_is_not_binarised_is_no_target_for_bernoulli():
    with pytest.raises(ValueError, match="none of the 2 levels"):
        images_to_levels(pictures(2, 1, 8, 8, num_levels=17), 2)


def test_integers_are_no_pictures_and_pictures_no_levels():
    with pytest.raises(ValueError, match="from_uint8"):
        images_to_levels(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), 256)
    with pytest.raises(ValueError, match="images_to_levels"):
        levels_to_images(torch.zeros(1, 1, 2, 2), 256)
    for log_prob, logits in ((categorical_log_prob, randn(1, 3, 1, 2, 2)), (bernoulli_log_prob, randn(1, 1, 2, 2))):
        with pytest.raises(ValueError, match="images_to_levels"):
            log_prob(logits, torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("num_levels", [-1, 0, 1, 65537, 8.0, True, None])
def test_a_number_of_levels_that_cannot_be(num_levels):
    with pytest.raises(ValueError, match="whole number from 2 to 65536"):
        check_num_levels(num_levels)
    with pytest.raises(ValueError, match="whole number from 2 to 65536"):
        images_to_levels(torch.zeros(1, 1, 1, 1), num_levels)


# Log-probabilities


def test_probabilities_of_all_pictures_sum_to_one():
    shape = (2, 1, 2)  # 3^4 pictures
    every = torch.tensor(list(itertools.product(range(3), repeat=4))).view(-1, *shape)
    logits = randn(1, 3, *shape).mul(3).expand(len(every), -1, -1, -1, -1)
    assert categorical_log_prob(logits, every).exp().sum().item() == pytest.approx(1, abs=1e-6)
    every = torch.tensor(list(itertools.product(range(2), repeat=4))).view(-1, *shape)
    logits = randn(1, *shape).mul(3).expand(len(every), -1, -1, -1)
    assert bernoulli_log_prob(logits, every).exp().sum().item() == pytest.approx(1, abs=1e-6)


def test_each_level_reads_its_own_logit():
    logits, levels = randn(2, 5, 3, 4, 6, dtype=torch.float64), torch.randint(5, (2, 3, 4, 6), generator=seeded())
    expected = torch.empty(2, 3, 4, 6, dtype=torch.float64)
    for n, c, h, w in itertools.product(*map(range, levels.shape)):
        expected[n, c, h, w] = logits[n, levels[n, c, h, w], c, h, w] - logits[n, :, c, h, w].exp().sum().log()
    torch.testing.assert_close(categorical_pixel_log_prob(logits, levels), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(categorical_log_prob(logits, levels), expected.sum((1, 2, 3)), rtol=1e-12, atol=0)
    assert torch.equal(categorical_log_prob(logits, levels.to(torch.uint8)), categorical_log_prob(logits, levels))


def test_levels_next_to_each_other_in_memory_count_the_same():
    """As after a linear layer, where another kernel computes them."""
    levels = torch.randint(9, (2, 3, 4, 5), generator=seeded())
    apart = randn(2, 9, 3, 4, 5).requires_grad_()
    together = apart.detach().movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_()
    assert together.stride(1) == 1
    nats = [categorical_pixel_log_prob(logits, levels) for logits in (apart, together)]
    torch.testing.assert_close(*nats)
    for each in nats:
        each.square().sum().backward()
    torch.testing.assert_close(apart.grad, together.grad)


def test_bernoulli_is_a_softmax_of_two():
    logits, levels = randn(3, 2, 4, 5).mul(5), torch.randint(2, (3, 2, 4, 5), generator=seeded())
    two = torch.stack([torch.zeros_like(logits), logits], dim=1)
    torch.testing.assert_close(bernoulli_log_prob(logits, levels), categorical_log_prob(two, levels))
    torch.testing.assert_close(bernoulli_pixel_log_prob(logits, levels), categorical_pixel_log_prob(two, levels))
    assert torch.equal(bernoulli_log_prob(logits, levels.bool()), bernoulli_log_prob(logits, levels))


def test_a_picture_counts_the_same_in_every_company():
    logits, levels = randn(6, 17, 1, 4, 5), torch.randint(17, (6, 1, 4, 5), generator=seeded())
    torch.testing.assert_close(
        categorical_log_prob(logits, levels)[4:5], categorical_log_prob(logits[4:5], levels[4:5])
    )


def test_one_pixel_of_a_step_is_that_of_the_picture():
    logits, levels = randn(2, 5, 3, 4, 6), torch.randint(5, (2, 3, 4, 6), generator=seeded())
    whole = categorical_pixel_log_prob(logits, levels)[..., 2, 3]
    torch.testing.assert_close(categorical_pixel_log_prob(logits[..., 2, 3], levels[..., 2, 3]), whole)


def test_sure_logits_keep_their_digits_and_gradients():
    # At 1e6 a float32 logit minus a log-sum would keep one digit of a difference of 0.5.
    logits = torch.tensor([1e6, 1e6 + 0.5, -1e6, -3e30]).view(1, 4, 1).requires_grad_()
    values = torch.cat([categorical_log_prob(logits, torch.tensor([[k]])) for k in range(4)])
    expected = logits.detach().double().view(-1).log_softmax(0).float()
    torch.testing.assert_close(values.detach(), expected, rtol=1e-6, atol=1e-6)
    values.sum().backward()
    share = math.exp(0.5) / (1 + math.exp(0.5))
    expected = torch.tensor([1 - 4 * (1 - share), 1 - 4 * share, 1.0, 1.0]).view(1, 4, 1)
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-5)

    logits = torch.tensor([[200.0, -200.0, 3e30, -3e30]]).requires_grad_()
    wrong = bernoulli_pixel_log_prob(logits, torch.tensor([[0, 1, 0, 1]]))
    assert torch.equal(wrong, -logits.abs())
    wrong.sum().backward()
    assert logits.grad.tolist() == [[-1, 1, -1, 1]]


def test_gradients_are_those_of_the_formula():
    levels = torch.randint(2, (2, 3, 2, 2), generator=seeded())
    logits = randn(2, 3, 3, 2, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: categorical_log_prob(logits, levels), logits)
    logits = randn(2, 3, 2, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda logits: bernoulli_log_prob(logits, levels), logits)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_precision_is_float32_at_least(half):
    levels = torch.randint(2, (2, 3, 8, 8), generator=seeded())
    for log_prob, logits in ((categorical_log_prob, randn(2, 2, 3, 8, 8)), (bernoulli_log_prob, randn(2, 3, 8, 8))):
        assert log_prob(logits.double(), levels).dtype == torch.float64
        expected = log_prob(logits, levels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(log_prob(logits, levels), expected)
            within = log_prob(logits.to(half), levels)
        assert within.dtype == torch.float32
        assert torch.equal(within, log_prob(logits.to(half).float(), levels))


def test_a_level_that_is_none_is_no_certainty():
    with pytest.raises(RuntimeError, match="out of bounds"):  # -100 is what cross_entropy ignores
        categorical_log_prob(randn(1, 4, 1, 2, 2), torch.full((1, 1, 2, 2), -100))


def test_shapes_that_do_not_agree():
    levels = torch.zeros(2, 3, 4, 5, dtype=torch.int64)
    for shape in ((2, 3 * 7, 4, 5), (2, 3, 7, 4, 5), (2, 7, 3, 5, 4), (1, 7, 3, 4, 5)):
        with pytest.raises(ValueError, match="agree but for L"):
            categorical_log_prob(torch.zeros(shape), levels)
    with pytest.raises(ValueError, match=r"both be \[N, C, ...\]"):
        bernoulli_log_prob(torch.zeros(2, 1, 4, 5), levels)


# Samples


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_samples_come_as_often_as_they_should(temperature):
    logits = torch.cat([randn(17).mul(2), torch.tensor([-math.inf])])
    drawn = categorical_sample(logits.view(1, -1, 1).expand(DRAWS, -1, -1), seeded(1), temperature)
    assert drawn.shape == (DRAWS, 1)
    assert drawn.dtype == torch.int64
    assert_frequencies(drawn.flatten(), (logits / temperature).softmax(0))
    drawn = bernoulli_sample(torch.full((DRAWS, 1), 0.8), seeded(2), temperature)
    assert drawn.dtype == torch.int64
    probability = torch.tensor(0.8 / temperature).sigmoid()
    assert_frequencies(drawn.flatten(), torch.stack([1 - probability, probability]))


def test_temperature_zero_gives_the_likeliest():
    logits = randn(2, 5, 3, 4, 6)
    assert torch.equal(categorical_sample(logits, seeded(), 0), logits.argmax(1))
    assert torch.equal(bernoulli_sample(logits, seeded(), 0), (logits > 0).long())


@pytest.mark.parametrize("sample", [categorical_sample, bernoulli_sample])
def test_noise_drawn_ahead_is_what_the_generator_draws(sample):
    logits = randn(2, 5, 3, 4, 6)
    state = torch.get_rng_state()
    drawn = sample(logits, seeded(3))
    assert torch.equal(torch.get_rng_state(), state)
    noise = torch.rand(logits.shape, generator=seeded(3))
    assert torch.equal(sample(logits, noise), drawn)
    assert torch.equal(sample(logits.double(), seeded(3)), drawn)  # the same noise in every precision
    assert not torch.equal(sample(logits, seeded(4)), drawn)
    # Pixel by pixel, as a cached sampler goes.
    for h, w in itertools.product(range(4), range(6)):
        assert torch.equal(sample(logits[..., h, w], noise[..., h, w]), drawn[..., h, w])


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_noise_at_its_ends_draws_nothing_impossible(noise):
    logits = torch.tensor([[0.0, 40.0, -40.0]]).view(1, 3, 1)
    assert categorical_sample(logits, torch.full_like(logits, noise)).item() == 1
    assert bernoulli_sample(logits, torch.full_like(logits, noise)).flatten().tolist() == [noise, 1, 0]


@pytest.mark.parametrize("sample", [categorical_sample, bernoulli_sample])
def test_samplers_refuse(sample):
    logits = randn(2, 5, 3, 4, 6)
    for temperature in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature must be 0"):
            sample(logits, seeded(), temperature)
    with pytest.raises(ValueError, match=r"shape \[2, 5, 3, 4, 6\], got \[2, 3, 4, 6\]"):
        sample(logits, torch.rand(2, 3, 4, 6, generator=seeded()))


# The likeliest levels


def test_the_likeliest_are_kept_and_the_others_never_drawn():
    p = torch.tensor([0.4, 0.05, 0.3, 0.2, 0.05], dtype=torch.float64)
    logits = (p.log() + 3).view(1, 5, 1).expand(2, -1, 3)

    def kept(**settings):
        return keep_likeliest(logits, **settings)[0, :, 0].isfinite().tolist()

    assert kept(top_k=1) == [True, False, False, False, False]
    assert kept(top_k=3) == [True, False, True, True, False]
    # The fewest that have as much: .4 falls short of .41, so the second is needed too.
    assert kept(top_p=0.39) == kept(top_k=1)
    assert kept(top_p=0.41) == kept(top_p=0.69) == kept(top_k=2)
    assert kept(top_p=0.71) == kept(top_k=3)
    assert kept(top_p=1e-9) == kept(top_k=1)  # one is always left
    # Of what top_k leaves, .4 and .3, the first has .57; and at a temperature probabilities are others.
    assert kept(top_k=2, top_p=0.56) == kept(top_k=1)
    assert kept(top_k=2, top_p=0.58) == kept(top_k=2)
    cold = p**2 / (p**2).sum()  # .55, .31, .14, ...
    assert kept(top_p=float(cold[0]) + 0.01, temperature=0.5) == kept(top_k=2)
    assert kept(top_p=float(cold[0]) - 0.01, temperature=0.5) == kept(top_k=1)
    # What is kept is as it was, and drawn as often as it should be.
    result = keep_likeliest(logits, top_k=2)
    assert torch.equal(result[result.isfinite()], logits[result.isfinite()])
    drawn = categorical_sample(result[:1, :, :1].expand(DRAWS, -1, -1), seeded()).flatten()
    shares = torch.bincount(drawn, minlength=5) / DRAWS
    torch.testing.assert_close(shares, torch.tensor([4 / 7, 0, 3 / 7, 0, 0]), rtol=0, atol=0.005)


def test_levels_that_cannot_be_drawn_do_not_count():
    """Filters that count masked tokens too leave all pictures' tokens where text has as many."""
    logits = randn(1, 100, 1)
    logits[:, :60] = -torch.inf
    for top_k in (1, 10, 40):
        result = keep_likeliest(logits, top_k)
        assert result.isfinite().sum() == top_k
        assert not result[:, :60].isfinite().any()
    assert keep_likeliest(logits, 70).isfinite().sum() == 40
    ties = torch.zeros(1, 9, 2)
    assert (keep_likeliest(ties, 4).isfinite().sum(1) == 4).all()  # exactly


def test_all_levels_are_the_logits_themselves():
    logits = randn(2, 7, 3)
    for settings in ({}, {"top_k": 7}, {"top_k": None, "top_p": 1.0}, {"top_k": 7, "top_p": 1.0, "temperature": 0.5}):
        assert keep_likeliest(logits, **settings) is logits
    assert keep_likeliest(logits, top_p=0.5, temperature=0.0) is logits  # which draws the likeliest anyway
    for settings, words in (
        ({"top_k": 0}, "1 to 7, or None"), ({"top_k": 8}, "1 to 7, or None"), ({"top_p": 0.0}, "above 0 and at most 1"),
        ({"top_p": 1.1}, "above 0 and at most 1"), ({"top_p": math.nan}, "above 0 and at most 1"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            keep_likeliest(logits, **settings)


def test_it_all_compiles_in_one_graph():
    def both(logits, images, noise):
        levels = images_to_levels(images, 5, validate=False)
        return (
            categorical_log_prob(logits, levels),
            bernoulli_log_prob(logits[:, 0], levels.clamp(max=1)),
            levels_to_images(categorical_sample(logits, noise, 0.9), 5),
            bernoulli_sample(logits, noise, 0.9),
        )

    inputs = randn(2, 5, 3, 4, 6), pictures(2, 3, 4, 6, num_levels=5), torch.rand(2, 5, 3, 4, 6, generator=seeded())
    compiled = torch.compile(both, fullgraph=True, backend="eager")
    for got, expected in zip(compiled(*inputs), both(*inputs), strict=True):
        assert torch.equal(got, expected)


def test_the_torch_reference_agrees():
    logits, levels = randn(2, 17, 1, 8, 8), torch.randint(17, (2, 1, 8, 8), generator=seeded())
    expected = -F.cross_entropy(logits, levels, reduction="none").sum((1, 2, 3))
    torch.testing.assert_close(categorical_log_prob(logits, levels), expected)
