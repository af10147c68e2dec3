"""StyleGAN's networks: published sizes, scales at the start, mixing and truncation of styles."""

import pytest
import torch
from torch import nn

from lightning_gen.layers import AdaIN, InstanceNorm2d, PixelNorm
from lightning_gen.networks import MappingNetwork, StyleGANDiscriminator, StyleGANGenerator
from lightning_gen.networks.stylegan import mix
from tests.shared import assert_mean, mean_squares, parameters

SHAPE, SMALL = (3, 16, 16), StyleGANGenerator.small
LABELS = torch.tensor([0, 2, 1, 2])


@pytest.fixture
def generator():
    torch.manual_seed(0)
    generator = StyleGANGenerator(SHAPE, 6, **SMALL).eval()
    nn.init.normal_(generator.mean_style)
    for layer in generator.layers:
        nn.init.normal_(layer.noise.strength)
    return generator


@pytest.mark.parametrize(("size", "number"), [(32, 22_841_356), (1024, 26_219_627)])
def test_it_has_the_published_number_of_parameters(size, number):
    with torch.device("meta"):
        generator = StyleGANGenerator((3, size, size), 512)
    assert parameters(generator) == number
    assert parameters(generator.mapping) == 2_101_248
    assert generator.num_layers == {32: 8, 1024: 18}[size]


@pytest.mark.parametrize("width", [32, 64])
def test_scales_at_the_start_are_those_of_the_authors_code_at_every_width(width):
    def make():
        return StyleGANGenerator((3, 32, 32), 256, style_size=256, filters=1024 * width, max_filters=width)

    def draw():
        return torch.randn(8, 256)

    # The first layer's features are a constant, of which nothing is left.
    normed = mean_squares(make, InstanceNorm2d, draw, seeds=2)[:, 1:]
    torch.testing.assert_close(normed, torch.ones_like(normed), rtol=0.01, atol=0)
    # Normed features times 1 + s, plus t; the mean squares of s and t are that of w.
    both = mean_squares(make, (nn.LeakyReLU, AdaIN), draw)
    mapped, styled = both[:, :8], both[:, 9:]
    assert_mean(styled / (1 + 2 * mapped[:, -1:]), torch.ones(7))
    assert styled.mean(0).sqrt().tolist() == pytest.approx([1.9] * 7, rel=0.1)


def test_scales_of_the_mapping_at_the_start():
    """Each layer has 1.04 times the mean square of the one before, for leaky ReLU leaves 4 % more than ReLU."""
    mapped = mean_squares(lambda: MappingNetwork(512), nn.LeakyReLU, lambda: torch.randn(8, 512))
    assert_mean(mapped, [1.04**layer for layer in range(1, 9)])
    assert mapped.mean(0).sqrt().tolist() == pytest.approx([1.0] * 8, rel=0.2)


def test_a_layer_is_its_steps_in_the_papers_order(generator):
    torch.manual_seed(1)
    layer, features, styles = generator.layers[2], torch.randn(2, 8, 4, 4), torch.randn(2, 8)
    nn.init.normal_(layer.bias)
    convolution, blur = layer.convolution
    steps = blur(convolution(features)) + layer.noise.strength.view(-1, 1, 1) * layer.noise.fixed
    steps = torch.nn.functional.leaky_relu(steps + layer.bias.view(-1, 1, 1), 0.2)
    scale, shift = layer.style.affine(styles)[:, :, None, None].chunk(2, 1)
    mean, std = steps.mean((2, 3), keepdim=True), steps.std((2, 3), keepdim=True, correction=0)
    torch.testing.assert_close(layer(features, styles, "fixed"), (steps - mean) / std * (scale + 1) + shift)
    assert generator.layers[0].convolution(features) is features
    assert len(generator.layers[3].convolution) == 1, "only what doubles is blurred"


@pytest.mark.parametrize("cutoff", range(1, 6))
def test_mixing_takes_the_other_styles_from_the_cutoff_on(generator, cutoff):
    torch.manual_seed(1)
    latents, others = torch.randn(2, 4, 6)
    first, second = generator.map_latents(latents), generator.map_latents(others)
    seen = []
    for layer in generator.layers:
        layer.register_forward_pre_hook(lambda _, given: seen.append(given[1]))
    images = generator(latents, others=others, cutoff=cutoff)
    for i, styles in enumerate(seen):
        assert torch.equal(styles, (first if i < cutoff else second)[:, i])
    assert torch.equal(images, generator.synthesize(mix(first, second, cutoff)))
    assert torch.equal(images, generator(latents, others=others, cutoff=torch.tensor(cutoff)))
    assert not torch.equal(images, generator(latents))
    assert torch.equal(generator(latents, others=others, cutoff=6), generator(latents))
    assert torch.equal(generator(latents, others=others, cutoff=0), generator(others))


def test_truncation_of_the_first_layers(generator):
    styles = generator.map_latents(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
    assert generator.truncate(styles, 1.0, 6) is styles
    assert generator.truncate(styles, 0.3, 0) is styles
    some = generator.truncate(styles, 0.7, 2)
    torch.testing.assert_close(some[:, :2], 0.7 * styles[:, :2] + 0.3 * generator.mean_style)
    assert torch.equal(some[:, 2:], styles[:, 2:])
    none = generator.truncate(styles, 0.0, 6)
    assert torch.equal(none, generator.mean_style.expand_as(styles))
    images = generator.synthesize(none)
    torch.testing.assert_close(images, images[:1].expand_as(images))


def test_noise_is_random_in_training_and_fixed_in_evaluation(generator):
    latents = torch.randn(2, 6)
    assert torch.equal(generator(latents), generator(latents))
    assert torch.equal(generator(latents), generator(latents, noise="fixed"))
    assert not torch.equal(generator(latents), generator(latents, noise="none"))
    generator.train()
    assert not torch.equal(generator(latents), generator(latents))
    generators = [[torch.Generator().manual_seed(seed) for seed in (3, 4)] for _ in range(2)]
    first, second = (generator(latents, noise="random", generators=each) for each in generators)
    assert torch.equal(first, second)


def test_a_mapping_with_classes_norms_latents_and_embedding_together():
    torch.manual_seed(0)
    network = MappingNetwork(6, 8, num_classes=3).double()
    assert network.embedding.weight.shape == (3, 6)
    latents = torch.randn(4, 6).double()
    joined = torch.cat([latents, network.embedding.weight[LABELS]], dim=1)
    torch.testing.assert_close(network(latents, LABELS), network.layers(PixelNorm()(joined)))
    with pytest.raises(ValueError, match="needs labels"):
        network(latents)


def test_no_layers_are_a_mapping_too():
    latents = torch.randn(4, 6)
    assert torch.equal(MappingNetwork(6, 6, num_layers=0)(latents), PixelNorm()(latents))
    with pytest.raises(ValueError, match=r"without any, styles as wide .* got 0 layers from 6 to 8"):
        MappingNetwork(6, 8, num_layers=0)


def test_with_classes_a_score_is_that_of_the_label():
    torch.manual_seed(0)
    network = StyleGANDiscriminator(SHAPE, num_classes=3, filters=32, max_filters=8)
    images = torch.randn(4, *SHAPE)
    expected = network.judge(images, 1.0)
    assert expected.shape == (4, 3)
    assert torch.equal(network(images, LABELS), expected[range(4), LABELS])
