"""Networks that grow: published sizes, fades, scales of what comes out, and pictures of any size."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.layers import EqualizedLinear, PixelNorm
from lightning_gen.networks import ProGANDiscriminator, ProGANGenerator, StyleGANDiscriminator, StyleGANGenerator
from lightning_gen.networks.progan import sizes_from
from tests.shared import assert_mean, mean_squares, parameters

SMALL = {"filters": 32, "max_filters": 8}
GENERATORS = {
    "ProGAN": partial(ProGANGenerator, **SMALL),
    "StyleGAN": partial(StyleGANGenerator, **StyleGANGenerator.small),
}
DISCRIMINATORS = {
    "ProGAN": partial(ProGANDiscriminator, **SMALL),
    "StyleGAN": partial(StyleGANDiscriminator, **SMALL),
}
LABELS = torch.tensor([0, 2, 1, 2])


@pytest.mark.parametrize(
    ("size", "generator", "discriminator"),
    [(32, 20_719_628, 20_726_785), (256, 23_044_309, 23_052_353), (1024, 23_079_115, 23_087_249)],
)
def test_they_have_the_published_number_of_parameters(size, generator, discriminator):
    with torch.device("meta"):
        assert parameters(ProGANGenerator((3, size, size), 512)) == generator
        assert parameters(ProGANDiscriminator((3, size, size))) == discriminator
        assert parameters(StyleGANDiscriminator((3, size, size))) == discriminator


def test_widths_are_those_of_the_paper():
    with torch.device("meta"):
        network = ProGANGenerator((3, 1024, 1024), 512)
    widths = [512, 512, 512, 512, 256, 128, 64, 32, 16]
    assert dict(zip(network.heights, network.widths, strict=True)) == {
        4 * 2**i: width for i, width in enumerate(widths)
    }


@pytest.mark.parametrize(
    ("size", "base", "sizes"),
    [
        ((32, 32), None, [(4, 4), (8, 8), (16, 16), (32, 32)]),
        ((28, 28), None, [(7, 7), (14, 14), (28, 28)]),
        ((16, 32), None, [(4, 8), (8, 16), (16, 32)]),
        ((20, 28), None, [(5, 7), (10, 14), (20, 28)]),
        ((33, 64), None, [(33, 64)]),
        ((8, 8), (2, 2), [(2, 2), (4, 4), (8, 8)]),
        ((16, 16), (8, 8), [(8, 8), (16, 16)]),
    ],
)
def test_the_base_and_what_is_reached_from_it(size, base, sizes):
    assert sizes_from(base, (1, *size)) == tuple(sizes)


@pytest.mark.parametrize("kind", GENERATORS)
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 28, 28), (2, 16, 32), (5, 10, 14)])
@pytest.mark.parametrize("num_classes", [None, 3])
def test_any_size_number_of_channels_and_height(kind, shape, num_classes):
    torch.manual_seed(0)
    labels = None if num_classes is None else LABELS
    generator = GENERATORS[kind](shape, 6, num_classes=num_classes)
    discriminator = DISCRIMINATORS[kind](shape, num_classes=num_classes)
    for height, width in generator.sizes:
        images = generator(torch.randn(4, 6), labels, height=height)
        assert images.shape == (4, shape[0], height, width)
        scores = discriminator(images, labels)
        assert scores.shape == ((4, 2) if num_classes and kind == "ProGAN" else (4,))
    assert generator(torch.randn(4, 6), labels).shape == (4, *shape)
    assert generator.heights == discriminator.heights


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_fade_begins_with_the_stage_before_and_ends_with_its_own(kind):
    torch.manual_seed(0)
    shape, latents = (3, 16, 16), torch.randn(4, 6)
    generator, discriminator = GENERATORS[kind](shape, 6).eval(), DISCRIMINATORS[kind](shape)
    for low, high in ((4, 8), (8, 16)):
        before = F.interpolate(generator(latents, height=low), scale_factor=2)
        after = generator(latents, height=high)
        assert torch.equal(generator(latents, height=high, fade=0.0), before)
        assert torch.equal(generator(latents, height=high, fade=1.0), after)
        share = torch.tensor(0.3)
        assert torch.equal(generator(latents, height=high, fade=share), generator(latents, height=high, fade=0.3))
        assert torch.equal(discriminator(after, fade=share), discriminator(after, fade=0.3))
        torch.testing.assert_close(generator(latents, height=high, fade=0.3), 0.7 * before + 0.3 * after)
        assert not torch.equal(before, after)
        # What stays of a picture at the end of one stage is what the next one begins with, also for the other player.
        below = discriminator(F.avg_pool2d(after, 2))
        assert torch.equal(discriminator(after, fade=0.0), below)
        near = discriminator(after, fade=1e-4) - below, discriminator(after, fade=1 - 1e-4) - discriminator(after)
        assert all(difference.abs().max() < 1e-3 for difference in near)
        assert not torch.allclose(discriminator(after), below)


@pytest.mark.parametrize("kind", GENERATORS)
def test_only_levels_that_are_used_learn(kind):
    torch.manual_seed(0)
    shape = (3, 16, 16)
    generator, discriminator = GENERATORS[kind](shape, 6), DISCRIMINATORS[kind](shape)
    discriminator(generator(torch.randn(4, 6), height=8, fade=0.5), fade=0.5).sum().backward()
    used = [layer.weight.grad is not None for layer in generator.to_image]
    assert used == [True, True, False]
    assert [layer[0].weight.grad is not None for layer in discriminator.from_image] == [True, True, False]
    assert [block[0].weight.grad is not None for block in discriminator.blocks] == [True, False]


# The mean square after leaky ReLU, in units of that before it, with the gain that makes up for a ReLU.
ACTIVATED = 2 * (1 + 0.2**2) / 2
WIDTHS = [32, 64]


def inside(side):
    """The share of a 3 x 3 kernel's places that lie in a square, on average; the others are zeros of the padding."""
    return ((3 * side - 2) / (3 * side)) ** 2


@pytest.mark.parametrize("width", WIDTHS)
def test_scales_of_the_generator_at_the_start_are_1_at_every_width(width):
    def make():
        return ProGANGenerator((3, 32, 32), width, filters=1024 * width, max_filters=width)

    def draw():
        return torch.randn(8, width)

    after = mean_squares(make, PixelNorm, draw, seeds=2)
    torch.testing.assert_close(after, torch.ones_like(after), rtol=1e-3, atol=0)
    # Weights are normal and what comes in has mean square 1 at each pixel, so before norm the mean over weights is
    # known. The first layer reckons with the 16 places of a 4 x 4 convolution, of which it has one.
    before = mean_squares(make, nn.LeakyReLU, draw)
    expected = torch.tensor([1 / 16, *(inside(side) for side in (4, 8, 8, 16, 16, 32, 32))]) * ACTIVATED
    assert before.shape == (16, 8)
    assert_mean(before, expected)
    scale = (before / expected).mean().sqrt().item()
    assert scale == pytest.approx(1.0, rel=0.05)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("network", [ProGANDiscriminator, StyleGANDiscriminator])
def test_scales_of_a_discriminator_at_the_start_fall_from_1_at_every_width(network, width):
    """A mean of pixels that are not alike is smaller than they are; nothing makes up for that."""

    def make():
        return network((3, 32, 32), filters=1024 * width, max_filters=width)

    found = mean_squares(make, nn.LeakyReLU, lambda: torch.randn(8, 3, 32, 32))
    # Pictures of mean square 1, by a 1 x 1 convolution, and by one of 3 x 3.
    assert_mean(found[:, :2], [ACTIVATED, ACTIVATED**2 * inside(32)])
    levels = found[:, :7:2].mean(0).sqrt()  # 32 to 4 pixels, where the deviation over the minibatch joins in
    assert (levels.diff() < 0).all()
    assert levels[-1] >= 0.3


def test_a_first_layer_adds_labels_before_it_norms():
    torch.manual_seed(0)
    generator = ProGANGenerator((1, 8, 8), 6, num_classes=3, **SMALL).double()
    latents = torch.randn(4, 6).double()
    joined = torch.cat([latents, F.one_hot(LABELS, 3)], dim=1)
    normed = joined / (joined.square().mean(1, keepdim=True) + 1e-8).sqrt()
    torch.testing.assert_close(generator(latents, LABELS), generator.draw(None, 1.0, in_turn(generator.blocks, normed)))


def in_turn(blocks, first):
    return lambda level, features: blocks[level](first if features is None else features)


def test_the_score_knows_nothing_of_labels_and_the_rest_is_their_log_probability():
    torch.manual_seed(0)
    critic = ProGANDiscriminator((1, 8, 8), num_classes=3, **SMALL)
    images = torch.randn(4, 1, 8, 8)
    scores = torch.stack([critic(images, torch.full((4,), label)) for label in range(3)])
    assert torch.equal(scores[0, :, 0], scores[2, :, 0])
    torch.testing.assert_close(scores[:, :, 1].exp().sum(0), torch.ones(4))


def test_a_fade_is_exact_in_bfloat16_and_channels_last():
    torch.manual_seed(0)
    generator, critic = (GENERATORS["ProGAN"]((3, 8, 8), 6), DISCRIMINATORS["ProGAN"]((3, 8, 8)))
    latents = torch.randn(4, 6)
    expected = critic(generator(latents, fade=0.4), fade=0.4)
    for network in (generator, critic):
        network.to(memory_format=torch.channels_last)
    torch.testing.assert_close(critic(generator(latents, fade=0.4), fade=0.4), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # 8 bits, through a dozen layers.
        torch.testing.assert_close(
            critic(generator(latents, fade=0.4), fade=0.4).float(), expected, rtol=0.05, atol=0.05
        )


@pytest.mark.parametrize("kind", GENERATORS)
def test_a_stage_can_be_exported(kind):
    torch.manual_seed(0)
    generator = GENERATORS[kind]((3, 16, 16), 6).eval()
    latents = torch.randn(2, 6)
    stage = {"height": 8, "fade": 0.25}
    exported = torch.export.export(generator, (latents,), stage).module()
    torch.testing.assert_close(exported(latents, **stage), generator(latents, **stage))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ProGANGenerator((3, 32, 32), 8, base=(3, 3)),
            "32 x 32 .* not a base of 3 x 3 .* 8 x 8, 4 x 4, 2 x 2, 1 x 1",
        ),
        (lambda: ProGANDiscriminator((3, 32, 32), base=(4, 8)), "not a base of 4 x 8"),
        (lambda: ProGANGenerator((3, 8, 8), 0), "latent_size >= 1, got 0"),
        (lambda: ProGANGenerator((3, 8, 8), 4, filters=0), "filters and max_filters >= 1, got 0"),
        (lambda: ProGANGenerator((8, 8), 4), "image_shape must be"),
        (
            lambda: ProGANGenerator((3, 16, 16), 4, **SMALL)(torch.randn(2, 4), height=32),
            r"works at the heights 4, 8, 16; got 32. It was made for image_shape \(3, 16, 16\)",
        ),
        (lambda: ProGANDiscriminator((3, 16, 16), **SMALL)(torch.randn(2, 3, 6, 6)), "heights 4, 8, 16; got 6"),
        (lambda: ProGANDiscriminator((3, 8, 8), num_classes=3, **SMALL)(torch.randn(4, 3, 8, 8)), "needs labels"),
        (lambda: ProGANDiscriminator((3, 8, 8), group_size=0, **SMALL), "group_size of at least 1"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_linear_layer_has_no_bias_but_one_a_channel():
    generator = ProGANGenerator((1, 8, 8), 6, **SMALL)
    first = generator.blocks[0]
    assert isinstance(first[0], EqualizedLinear)
    assert first[0].bias is None
    assert first[2].bias.shape == (8,)


@pytest.mark.parametrize("kind", GENERATORS)
def test_shapes_are_known_without_reckoning(kind):
    """So a model of 1024 x 1024 is made without running it."""
    with torch.device("meta"):
        generator, discriminator = GENERATORS[kind]((3, 16, 16), 6).eval(), DISCRIMINATORS[kind]((3, 16, 16))
        assert discriminator(generator(torch.zeros(2, 6))).shape == (2,)
