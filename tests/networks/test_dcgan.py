from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.layers.spectral_norm import spectral_norms
from lightning_gen.networks import DCGANDiscriminator, DCGANGenerator

SHAPES = [(3, 64, 64), (1, 28, 28), (3, 20, 48), (1, 33, 37), (4, 30, 18), (1, 8, 8), (3, 5, 50), (2, 2, 3)]
LABELS = torch.tensor([0, 1, 2, 1])


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("filters", "generator", "discriminator"), [(64, 3_576_704, 2_765_568), (128, 12_658_432, 11_036_160)]
)
def test_the_nets_for_64_x_64_have_the_known_number_of_parameters(filters, generator, discriminator):
    wide = [8 * filters, 4 * filters, 2 * filters, filters]
    kernels = 16 * sum(a * b for a, b in pairwise(wide))
    # From 100 latents to 4 x 4, the kernels, to or from RGB, and two numbers a channel for batch norm.
    assert 100 * 16 * wide[0] + kernels + 16 * 3 * filters + 2 * sum(wide) == generator
    assert 16 * wide[0] + kernels + 16 * 3 * filters + 2 * sum(wide[:3]) == discriminator
    with torch.device("meta"):
        assert parameters(DCGANGenerator((3, 64, 64), 100, filters=filters)) == generator
        assert parameters(DCGANDiscriminator((3, 64, 64), filters=filters)) == discriminator


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_classes", [None, 3])
def test_any_size_and_number_of_channels(shape, num_classes):
    torch.manual_seed(0)
    labels = None if num_classes is None else LABELS
    generator = DCGANGenerator(shape, 10, filters=4, num_classes=num_classes)
    discriminator = DCGANDiscriminator(shape, filters=4, norm="none", num_classes=num_classes)
    images = generator(100 * torch.randn(4, 10), labels)
    assert images.shape == (4, *shape)
    assert images.abs().max() <= 1
    images = images.detach().requires_grad_()
    scores = discriminator(images, labels)
    assert scores.shape == (4,)
    # No pixel is beyond the discriminator's sight, in odd sizes neither.
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert (gradient.abs().amax(dim=(0, 1)) > 0).all()
    assert (generator.image_shape, generator.latent_size, generator.num_classes) == (shape, 10, num_classes)
    assert (discriminator.image_shape, discriminator.num_classes) == (shape, num_classes)


@pytest.mark.parametrize(
    ("size", "start", "doublings"),
    [
        ((64, 64), (4, 4), 4),
        ((32, 32), (4, 4), 3),
        ((28, 28), (7, 7), 2),
        ((20, 48), (5, 12), 2),
        ((33, 37), (5, 5), 3),
    ],
)
def test_the_size_to_start_from(size, start, doublings):
    generator = DCGANGenerator((1, *size), 10, filters=2)
    (reshape,) = (m for m in generator.modules() if isinstance(m, nn.Unflatten))
    assert tuple(reshape.unflattened_size)[1:] == start
    assert sum(isinstance(m, nn.ConvTranspose2d) for m in generator.modules()) == doublings


def test_batch_norm_is_everywhere_but_at_the_output_and_the_input():
    generator, discriminator = DCGANGenerator((3, 32, 32), 10, filters=2), DCGANDiscriminator((3, 32, 32), filters=2)
    kinds = [type(m).__name__ for m in generator.layers]
    assert kinds == ["Linear", "Unflatten", *["BatchNorm2d", "ReLU", "ConvTranspose2d"] * 3, "Tanh"]
    kinds = [type(m).__name__ for m in discriminator.layers]
    assert kinds == ["Conv2d", "LeakyReLU", *["Conv2d", "BatchNorm2d", "LeakyReLU"] * 2, "Flatten", "Linear"]
    assert {m.negative_slope for m in discriminator.layers if isinstance(m, nn.LeakyReLU)} == {0.2}


def test_weights_start_with_deviation_0_02():
    torch.manual_seed(0)
    for network in (DCGANGenerator((3, 32, 32), 100, filters=32), DCGANDiscriminator((3, 32, 32), filters=32)):
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                # At least 1536 numbers a layer: their deviation is off by 2 %, of which four times is allowed.
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.08)
            elif isinstance(module, nn.BatchNorm2d):
                assert module.weight.mean().item() == pytest.approx(1.0, abs=0.02)
                assert not module.bias.any()


@pytest.mark.parametrize("norm", ["none", "instance", "batch"])
def test_without_batch_norm_each_score_depends_on_its_own_picture_alone(norm):
    torch.manual_seed(0)
    critic = DCGANDiscriminator((1, 16, 16), filters=4, norm=norm, init_std=0.2).double()
    images = torch.randn(4, 1, 16, 16).double().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(images)[2], images)
    touched = gradient.flatten(1).abs().amax(dim=1).nonzero().flatten().tolist()
    assert touched == ([0, 1, 2, 3] if norm == "batch" else [2])


def test_a_label_map_is_a_bias_of_the_class_inside_the_first_convolution():
    torch.manual_seed(0)
    network = DCGANDiscriminator((1, 16, 16), filters=4, norm="none", num_classes=3, init_std=0.2).double()
    first, rest = network.layers[0], network.layers[1:]
    image = torch.randn(1, 1, 16, 16).double()
    scores = network(image.expand(4, -1, -1, -1), LABELS)
    ones = torch.ones(1, 1, 16, 16).double()
    for label, score in zip(LABELS.tolist(), scores, strict=True):
        own = first.weight[:, 1 + label : 2 + label]
        hidden = F.conv2d(image, first.weight[:, :1], first.bias, 2, 1) + F.conv2d(ones, own, None, 2, 1)
        torch.testing.assert_close(rest(hidden)[0, 0], score)
    assert (scores[0] - scores[1]).abs() > 1e-6


def test_a_generator_draws_another_picture_for_another_class():
    torch.manual_seed(0)
    generator = DCGANGenerator((1, 8, 8), 10, filters=4, num_classes=3).double().eval()
    images = generator(torch.randn(1, 10).double().expand(4, -1), LABELS)
    torch.testing.assert_close(images[1], images[3], rtol=0, atol=1e-12)
    assert (images[0] - images[1]).abs().max() > 1e-9


@pytest.mark.parametrize("kind", ["reshape", "convolution"])
def test_spectral_norm_covers_every_layer_and_adds_no_parameter(kind):
    torch.manual_seed(0)
    network = DCGANDiscriminator((1, 16, 16), filters=4, norm="none", spectral_norm=kind, num_classes=3)
    assert parameters(network) == parameters(DCGANDiscriminator((1, 16, 16), filters=4, norm="none", num_classes=3))
    weights = spectral_norms(network)
    assert len(weights) == 3
    assert all(weight.true_sigma().item() == pytest.approx(1.0, abs=0.01) for weight in weights.values())


def test_layout_and_precision_do_not_change_the_answer():
    torch.manual_seed(0)
    generator, discriminator = DCGANGenerator((3, 16, 16), 10, filters=8), DCGANDiscriminator((3, 16, 16), filters=8)
    latents = torch.randn(8, 10)
    images = generator(latents)
    scores = discriminator(images)
    generator, discriminator = (n.to(memory_format=torch.channels_last) for n in (generator, discriminator))
    torch.testing.assert_close(generator(latents), images, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        discriminator(images.contiguous(memory_format=torch.channels_last)), scores, rtol=0, atol=1e-5
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # Values up to 1 with 8 bits, through three layers.
        torch.testing.assert_close(generator(latents).float(), images, rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DCGANGenerator((1, 8, 8), 0), "latent_size, filters and base >= 1, got 0"),
        (lambda: DCGANDiscriminator((1, 8, 8), filters=0), "filters and base >= 1, got 0"),
        (lambda: DCGANDiscriminator((2, 1, 1)), "at least 2 x 2 pixels, got 1 x 1"),
        (lambda: DCGANGenerator((8, 8), 4), "image_shape must be"),
        (lambda: DCGANGenerator((1, 8, 8), 4, filters=2, num_classes=3)(torch.randn(4, 4)), "needs labels"),
        (lambda: DCGANDiscriminator((1, 8, 8), filters=2)(torch.randn(4, 1, 8, 8), LABELS), "no classes"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
