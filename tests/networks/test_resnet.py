import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.layers.conditional import ConditionalBatchNorm2d
from lightning_gen.layers.spectral_norm import spectral_norms
from lightning_gen.networks import ResidualDiscriminator, ResidualGenerator
from lightning_gen.networks.resnet import DiscriminatorBlock, UpsamplingBlock

SHAPES = [(3, 32, 32), (1, 28, 28), (3, 20, 48), (1, 33, 37), (3, 48, 50), (1, 8, 8), (2, 2, 3), (2, 1, 1)]
LABELS = torch.tensor([0, 1, 2, 1])


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def convolution(inputs: int, outputs: int, kernel: int = 3) -> int:
    return (inputs * kernel**2 + 1) * outputs


def generator_parameters(start: int, widths: list[int]) -> int:
    """Linear layer from 128 latents, blocks with two batch norms, batch norm and the convolution to RGB."""
    total = 129 * start * widths[0] + 2 * widths[-1] + convolution(widths[-1], 3)
    for a, b in pairwise(widths):
        total += convolution(a, b) + convolution(b, b) + convolution(a, b, 1) + 2 * a + 2 * b
    return total


def discriminator_parameters(halving: list[int], flat: list[int]) -> int:
    first, widths = halving[0], halving + flat
    total = convolution(3, first) + convolution(first, first) + convolution(3, first, 1) + widths[-1] + 1
    for i, (a, b) in enumerate(pairwise(widths), start=1):
        total += convolution(a, a) + convolution(a, b)
        total += convolution(a, b, 1) if i < len(halving) or a != b else 0
    return total


@pytest.mark.parametrize(
    ("size", "start", "widths", "halving", "flat"),
    [
        (32, 16, [256] * 4, [128] * 2, [128] * 2),
        (28, 49, [256] * 3, [128] * 2, [128] * 2),
        (48, 36, [512, 256, 128, 64], [64, 128, 256, 512], [1024]),
        (64, 16, [1024, 512, 256, 128, 64], [64, 128, 256, 512], [1024]),
        (128, 16, [1024, 1024, 512, 256, 128, 64], [64, 128, 256, 512, 1024], [1024]),
    ],
)
def test_sizes_have_the_layers_of_the_paper(size, start, widths, halving, flat):
    with torch.device("meta"):
        assert parameters(ResidualGenerator((3, size, size), 128)) == generator_parameters(start, widths)
        assert parameters(ResidualDiscriminator((3, size, size))) == discriminator_parameters(halving, flat)


def test_the_nets_for_32_x_32_have_the_published_number_of_parameters():
    assert parameters(ResidualGenerator((3, 32, 32), 128)) == 4_276_739
    assert parameters(ResidualDiscriminator((3, 32, 32))) == 1_053_825


@pytest.mark.parametrize("kind", ["reshape", "convolution"])
def test_spectral_norm_covers_every_layer_and_adds_no_parameter(kind):
    torch.manual_seed(0)
    plain = ResidualDiscriminator((3, 16, 16), filters=4, num_classes=3)
    network = ResidualDiscriminator((3, 16, 16), filters=4, num_classes=3, spectral_norm=kind)
    assert parameters(network) == parameters(plain)
    weights = spectral_norms(network)
    layers = [m for m in plain.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert len(weights) == len(layers) == 12
    assert all(weight.true_sigma().item() == pytest.approx(1.0, abs=0.01) for weight in weights.values())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_classes", [None, 3])
def test_any_size_and_number_of_channels(shape, num_classes):
    torch.manual_seed(0)
    labels = None if num_classes is None else LABELS
    generator = ResidualGenerator(shape, 10, filters=4, num_classes=num_classes)
    discriminator = ResidualDiscriminator(shape, filters=16, num_classes=num_classes)
    images = generator(100 * torch.randn(4, 10), labels)
    assert images.shape == (4, *shape)
    assert images.abs().max() <= 1
    images = images.detach().requires_grad_()
    scores = discriminator(images, labels)
    assert scores.shape == (4,)
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert (gradient.abs().amax(dim=(0, 1)) > 0).all()
    assert (generator.image_shape, generator.latent_size, generator.num_classes) == (shape, 10, num_classes)
    assert (discriminator.image_shape, discriminator.num_classes) == (shape, num_classes)


def test_the_generator_block_is_its_formula():
    torch.manual_seed(0)
    block = UpsamplingBlock(3, 5, norm="batch", num_classes=None).double()
    features = torch.randn(2, 3, 4, 6).double()

    def norm(x):
        return (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), keepdim=True, correction=0) + 1e-5).sqrt()

    hidden = F.interpolate(norm(features).relu(), scale_factor=2)
    hidden = F.conv2d(hidden, block.conv1.weight, block.conv1.bias, padding=1)
    hidden = F.conv2d(norm(hidden).relu(), block.conv2.weight, block.conv2.bias, padding=1)
    doubled = F.interpolate(features, scale_factor=2)
    expected = hidden + F.conv2d(doubled, block.shortcut.weight, block.shortcut.bias)
    torch.testing.assert_close(block(features, None), expected)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("halve", [True, False])
@pytest.mark.parametrize("outputs", [3, 5])
def test_the_discriminator_block_is_its_formula_in_values_and_gradients(first, halve, outputs):
    torch.manual_seed(0)
    block = DiscriminatorBlock(3, outputs, halve=halve, first=first).double()
    features = torch.randn(2, 3, 6, 8).double().requires_grad_()
    conv1, conv2 = (m for m in block.residual if isinstance(m, nn.Conv2d))
    assert conv1.out_channels == (outputs if first else 3)
    hidden = features if first else features.relu()
    hidden = F.conv2d(hidden, conv1.weight, conv1.bias, padding=1).relu()
    hidden = F.conv2d(hidden, conv2.weight, conv2.bias, padding=1)
    shortcut = features
    if halve or outputs != 3:
        conv = block.shortcut[-1]
        shortcut = F.conv2d(features, conv.weight, conv.bias)
    expected = hidden + shortcut
    expected = F.avg_pool2d(expected, 2) if halve else expected
    # A ReLU in place would change the features before the shortcut reads them; the values and the gradients show it.
    result = block(features * 1)
    torch.testing.assert_close(result, expected)
    upstream = torch.randn_like(expected)
    (own,) = torch.autograd.grad(result, features, upstream)
    (other,) = torch.autograd.grad(expected, features, upstream)
    torch.testing.assert_close(own, other)


def test_blocks_leave_their_input_as_it_was():
    torch.manual_seed(0)
    features = torch.randn(2, 4, 4, 4)
    before = features.clone()
    UpsamplingBlock(4, 4, norm="none", num_classes=None)(features, None)
    DiscriminatorBlock(4, 4, halve=False)(features)
    assert torch.equal(features, before)


def test_a_whole_critic_has_right_first_and_second_derivatives():
    torch.manual_seed(0)
    critic = ResidualDiscriminator((1, 8, 8), filters=2).double()
    images = torch.randn(1, 1, 8, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: critic(x).tanh(), images)
    assert torch.autograd.gradgradcheck(lambda x: critic(x).tanh(), images)


@pytest.mark.parametrize("pooling", ["sum", "mean"])
def test_the_projection_adds_the_inner_product_with_the_class(pooling):
    torch.manual_seed(0)
    network = ResidualDiscriminator((1, 8, 8), filters=4, pooling=pooling, num_classes=3).double()
    images = torch.randn(4, 1, 8, 8).double()
    features = network.features(images).flatten(2)
    pooled = features.sum(dim=2) if pooling == "sum" else features.mean(dim=2)
    expected = [
        pooled[n] @ network.score.weight[0] + network.score.bias[0] + pooled[n] @ network.embedding.weight[label]
        for n, label in enumerate(LABELS)
    ]
    torch.testing.assert_close(network(images, LABELS), torch.stack(expected))

    nn.init.zeros_(network.embedding.weight)
    plain = ResidualDiscriminator((1, 8, 8), filters=4, pooling=pooling).double()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("embedding")})
    torch.testing.assert_close(network(images, LABELS), plain(images))


def test_a_conditional_generator_starts_as_the_plain_one_and_then_tells_classes_apart():
    torch.manual_seed(0)
    network = ResidualGenerator((1, 8, 8), 10, filters=4, num_classes=3).double()
    plain = ResidualGenerator((1, 8, 8), 10, filters=4).double()
    shared = {k: v for k, v in network.state_dict().items() if ".scale." not in k and ".shift." not in k}
    assert not plain.load_state_dict(shared, strict=False).unexpected_keys
    latents = torch.randn(1, 10).double().expand(4, -1) + 0.1 * torch.randn(4, 10).double()
    torch.testing.assert_close(network(latents, LABELS), plain(latents))
    conditional = [m for m in network.modules() if isinstance(m, ConditionalBatchNorm2d)]
    assert len(conditional) == 2  # both of the one block; the last batch norm is plain
    for norm in conditional:
        nn.init.normal_(norm.scale.weight)
    network.eval()
    images = network(latents[:1].expand(4, -1), LABELS)
    torch.testing.assert_close(images[1], images[3], rtol=0, atol=1e-12)
    assert (images[0] - images[1]).abs().max() > 1e-3


@pytest.mark.parametrize("norm", ["none", "instance", "batch"])
def test_without_batch_norm_each_score_depends_on_its_own_picture_alone(norm):
    torch.manual_seed(0)
    critic = ResidualDiscriminator((1, 16, 16), filters=4, norm=norm).double()
    images = torch.randn(4, 1, 16, 16).double().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(images)[2], images)
    touched = gradient.flatten(1).abs().amax(dim=1).nonzero().flatten().tolist()
    assert touched == ([0, 1, 2, 3] if norm == "batch" else [2])


def test_weights_start_with_xaviers_deviation():
    torch.manual_seed(0)
    for network in (ResidualGenerator((3, 32, 32), 128, filters=64), ResidualDiscriminator((3, 32, 32), filters=64)):
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(module.weight)
                gain = math.sqrt(2) if "blocks" in name or "features" in name else 1.0
                gain = 1.0 if "shortcut" in name else gain
                # n uniform numbers: their deviation is off by 0.45 / sqrt(n), of which five times is allowed.
                tolerance = 5 * 0.45 / math.sqrt(module.weight.numel())
                expected = gain * math.sqrt(2 / (fan_in + fan_out))
                assert module.weight.std().item() == pytest.approx(expected, rel=tolerance), name
                assert not module.bias.any()


@pytest.mark.parametrize("num_classes", [None, 3])
def test_layout_and_precision_do_not_change_the_answer(num_classes):
    torch.manual_seed(0)
    labels = None if num_classes is None else torch.cat([LABELS, LABELS])
    generator = ResidualGenerator((3, 16, 16), 10, filters=8, num_classes=num_classes)
    discriminator = ResidualDiscriminator((3, 16, 16), filters=8, num_classes=num_classes)
    latents = torch.randn(8, 10)
    images = generator(latents, labels)
    scores = discriminator(images, labels)
    generator, discriminator = (n.to(memory_format=torch.channels_last) for n in (generator, discriminator))
    torch.testing.assert_close(generator(latents, labels), images, rtol=0, atol=1e-4)
    packed = images.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(discriminator(packed, labels), scores, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # 8 bits through nine layers: a few hundredths of the values' size.
        half = discriminator(packed, labels)
        assert (half - scores).abs().max() <= 0.05 * scores.abs().max()
        assert (generator(latents, labels) - images).abs().mean() <= 0.05 * images.abs().mean()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResidualGenerator((1, 8, 8), 0), "latent_size, filters and base >= 1, got 0"),
        (lambda: ResidualGenerator((1, 8, 8), 4, norm="none", num_classes=3), "conditions batch norm; got norm='none'"),
        (lambda: ResidualDiscriminator((1, 8, 8), filters=0), "filters >= 1, got 0"),
        (lambda: ResidualDiscriminator((1, 8, 8), pooling="max"), "'sum' or 'mean', got 'max'"),
        (lambda: ResidualGenerator((1, 8, 8), 4, filters=2, num_classes=3)(torch.randn(4, 4)), "needs labels"),
        (lambda: ResidualGenerator((1, 8, 8), 4, filters=2)(torch.randn(4, 4), LABELS), "no classes"),
        (lambda: ResidualDiscriminator((1, 8, 8), filters=2)(torch.randn(4, 1, 8, 8), LABELS), "no classes"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
