import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.losses import GaussianPixels, Pixelwise, gaussian_kl
from lightning_gen.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder

SHAPES = [(3, 64, 64), (1, 28, 28), (3, 20, 48), (1, 33, 37), (4, 30, 18), (1, 8, 8), (3, 5, 50), (2, 2, 3)]
LABELS = torch.tensor([0, 1, 2, 1])
KINDS = [(ConvEncoder, ConvDecoder), (MLPEncoder, MLPDecoder)]


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_perceptrons_have_the_known_number_of_parameters():
    encoder, decoder = MLPEncoder((1, 28, 28), 20), MLPDecoder((1, 28, 28), 20, 1)
    # 1312.6114: one hidden layer of 500 units; two numbers a latent, one a pixel.
    assert parameters(encoder) == 784 * 500 + 500 + 500 * 40 + 40 == 412_540
    assert parameters(decoder) == 20 * 500 + 500 + 500 * 784 + 784 == 403_284
    # 1509.00519: two of 200, and 50 latents.
    encoder, decoder = (make(widths=(200, 200)) for make in (mnist(MLPEncoder, 50), mnist(MLPDecoder, 50, 1)))
    assert parameters(encoder) == 784 * 200 + 200 + 200 * 201 + 201 * 100 == 217_300
    assert parameters(decoder) == 51 * 200 + 200 * 201 + 201 * 784 == 207_984
    assert [type(m).__name__ for m in encoder.layers] == ["Linear", "Tanh"] * 2


def mnist(kind, *sizes):
    return lambda **settings: kind((1, 28, 28), *sizes, **settings)


def test_the_convolutional_networks_for_64_x_64_have_the_known_number_of_parameters():
    encoder, decoder = ConvEncoder((1, 64, 64), 10), ConvDecoder((1, 64, 64), 10, 1)
    # 1804.03599: four of 32 channels to 4 x 4, two hidden layers of 256, two numbers a latent; and its transpose.
    kernels, hidden = 3 * (16 * 32 * 32 + 32), 256 * 256 + 256
    assert parameters(encoder) == 16 * 32 + 32 + kernels + 512 * 256 + 256 + hidden + 256 * 20 + 20 == 252_052
    assert parameters(decoder) == 10 * 256 + 256 + hidden + 256 * 512 + 512 + kernels + 16 * 32 + 1 == 249_953
    kinds = [type(m).__name__ for m in encoder.layers]
    assert kinds == [*["Conv2d", "ReLU"] * 4, "Flatten", *["Linear", "ReLU"] * 2]
    kinds = [type(m).__name__ for m in decoder.layers]
    assert kinds == [*["Linear", "ReLU"] * 3, "Unflatten", *["ConvTranspose2d", "ReLU"] * 3, "ConvTranspose2d"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("num_classes", [None, 3])
def test_any_size_and_number_of_channels(shape, kinds, num_classes):
    torch.manual_seed(0)
    labels = None if num_classes is None else LABELS
    encoder, decoder = (
        kind(shape, *sizes, num_classes=num_classes, **kind.small)
        for kind, sizes in zip(kinds, [(5,), (5, 7)], strict=True)
    )
    if kinds == (ConvEncoder, ConvDecoder):  # so few ReLU might all be off, but not of positive numbers
        for weight in [*encoder.parameters(), *decoder.parameters()]:
            weight.data.abs_()
    images = torch.rand(4, *shape).requires_grad_()
    means, log_variances = encoder(images, labels)
    assert means.shape == log_variances.shape == (4, 5)
    # No pixel is beyond the encoder's sight, in odd sizes neither; and none beyond the latents' reach.
    (gradient,) = torch.autograd.grad(means.square().sum() + log_variances.square().sum(), images)
    assert (gradient.abs().amax(dim=(0, 1)) > 0).all()
    latents = torch.rand(4, 5)
    outputs = decoder(latents, labels)
    assert outputs.shape == (4, 7, *shape[1:])
    moved = decoder(latents + 1, labels)
    assert ((outputs - moved).abs().amax(dim=(0, 1)) > 0).all()
    for network in (encoder, decoder):
        assert (network.image_shape, network.latent_size, network.num_classes) == (shape, 5, num_classes)


@pytest.mark.parametrize(
    ("size", "start", "halvings"),
    [((64, 64), (4, 4), 4), ((28, 28), (7, 7), 2), ((20, 48), (5, 12), 2), ((33, 37), (5, 5), 3), ((2, 3), (1, 2), 1)],
)
def test_the_size_between(size, start, halvings):
    encoder, decoder = ConvEncoder((1, *size), 2, filters=2), ConvDecoder((1, *size), 2, 1, filters=2)
    (reshape,) = (m for m in decoder.modules() if isinstance(m, nn.Unflatten))
    assert tuple(reshape.unflattened_size) == (2, *start)
    assert sum(isinstance(m, nn.ConvTranspose2d) for m in decoder.modules()) == halvings
    assert sum(isinstance(m, nn.Conv2d) for m in encoder.modules()) == halvings


def test_channels_double_up_to_the_most():
    encoder = ConvEncoder((1, 64, 64), 2, filters=4, max_filters=12)
    decoder = ConvDecoder((1, 64, 64), 2, 1, filters=4, max_filters=12)
    assert [m.out_channels for m in encoder.modules() if isinstance(m, nn.Conv2d)] == [4, 8, 12, 12]
    assert [m.in_channels for m in decoder.modules() if isinstance(m, nn.ConvTranspose2d)] == [12, 12, 8, 4]


@pytest.mark.parametrize("kinds", KINDS)
def test_no_hidden_layers_and_points(kinds):
    encoder, decoder = kinds
    assert encoder((1, 8, 8), 3, widths=())(torch.randn(2, 1, 8, 8))[0].shape == (2, 3)
    assert decoder((1, 8, 8), 3, 2, widths=())(torch.randn(2, 3)).shape == (2, 2, 8, 8)
    # A linear decoder, of points.
    linear = MLPDecoder((2, 1, 1), 3, 2, widths=())
    weight, bias = linear.layers[0].weight, linear.layers[0].bias
    latents = torch.randn(4, 3)
    torch.testing.assert_close(linear(latents), F.linear(latents, weight, bias)[..., None, None])


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("num_classes", [None, 3])
def test_each_picture_is_encoded_and_decoded_by_itself(kinds, num_classes):
    torch.manual_seed(0)
    encoder, decoder = (
        kinds[0]((1, 9, 9), 3, num_classes=num_classes),
        kinds[1]((1, 9, 9), 3, 2, num_classes=num_classes),
    )
    labels = None if num_classes is None else LABELS
    for network, inputs in ((encoder, torch.randn(4, 1, 9, 9)), (decoder, torch.randn(4, 3))):
        together = network(inputs, labels)
        alone = [network(x[None], None if labels is None else labels[i : i + 1]) for i, x in enumerate(inputs)]
        if network is encoder:
            together, alone = torch.cat(together, dim=1), [torch.cat(pair, dim=1) for pair in alone]
        torch.testing.assert_close(together, torch.cat(alone))
        if labels is not None:
            swapped = network(inputs, labels.flip(0))
            swapped = torch.cat(swapped, dim=1) if network is encoder else swapped
            assert (together - swapped).abs().flatten(1).amax(1)[0] > 1e-6


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("likelihood", [Pixelwise(), GaussianPixels(std=0.5)])
def test_a_bound_rises_under_training(kinds, likelihood):
    """Sixteen pictures of two values, learned by heart: the evidence lower bound rises by half its distance to 0."""
    torch.manual_seed(0)
    shape, generator = (1, 6, 7), torch.Generator().manual_seed(1)
    images = torch.randint(2, (16, *shape), generator=generator) * 2.0 - 1
    encoder, decoder = kinds[0](shape, 4), kinds[1](shape, 4, likelihood.num_parameters(1))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-2)

    def bound():
        means, log_variances = encoder(images)
        latents = means + (log_variances / 2).exp() * torch.randn(means.shape, generator=generator)
        return (likelihood.log_prob(decoder(latents), images) - gaussian_kl(means, log_variances)).mean()

    start = bound().item()
    for _ in range(300):
        optimizer.zero_grad()
        (-bound()).backward()
        optimizer.step()
    assert bound().item() > start / 2


@pytest.mark.parametrize("kinds", KINDS)
def test_layout_and_precision_do_not_change_the_answer(kinds):
    torch.manual_seed(0)
    encoder, decoder = kinds[0]((3, 16, 16), 10), kinds[1]((3, 16, 16), 10, 6)
    images, latents = torch.randn(8, 3, 16, 16), torch.randn(8, 10)
    means, outputs = encoder(images)[0], decoder(latents)
    encoder, decoder = (network.to(memory_format=torch.channels_last) for network in (encoder, decoder))
    laid_out = encoder(images.contiguous(memory_format=torch.channels_last))[0]
    torch.testing.assert_close(laid_out, means, rtol=0, atol=1e-5)
    torch.testing.assert_close(decoder(latents), outputs, rtol=0, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        # Values of about 1 with 8 bits, through four layers.
        torch.testing.assert_close(encoder(images)[0].float(), means, rtol=0, atol=0.1)
        torch.testing.assert_close(decoder(latents).float(), outputs, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLPEncoder((1, 8, 8), 0), "MLPEncoder needs latent_size >= 1, got 0"),
        (lambda: MLPDecoder((1, 8, 8), 2, 0), "MLPDecoder needs latent_size and outputs >= 1, got 2 and 0"),
        (lambda: MLPEncoder((1, 8, 8), 2, widths=(4, 0)), "every width must be at least 1"),
        (lambda: MLPDecoder((1, 8, 8), 2, 1, activation="sine"), "'tanh', 'relu' or 'leaky_relu', got 'sine'"),
        (lambda: ConvEncoder((1, 8, 8), 2, filters=0), "latent_size, filters and base >= 1, got 2, 0 and 4"),
        (lambda: ConvEncoder((2, 1, 1), 2), "at least 2 x 2 pixels, got 1 x 1. For points take MLPEncoder"),
        (lambda: ConvDecoder((2, 1, 5), 2, 1), "at least 2 x 2 pixels, got 1 x 5. For points take MLPDecoder"),
        (lambda: ConvDecoder((1, 8, 8), 2, 1, max_filters=8), "max_filters of at least filters=32, or None; got 8"),
        (lambda: ConvEncoder((1, 8, 8), 2, widths=(0,)), "every width must be at least 1"),
        (lambda: ConvDecoder((8, 8), 4, 1), "image_shape must be"),
        (lambda: ConvDecoder((1, 8, 8), 4, 1, num_classes=3)(torch.randn(4, 4)), "needs labels"),
        (lambda: MLPEncoder((1, 8, 8), 2)(torch.randn(4, 1, 8, 8), LABELS), "no classes"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
