import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.layers.spectral_norm import spectral_norms
from lightning_gen.networks import MLPDiscriminator, MLPGenerator
from lightning_gen.networks.mlp import Maxout

SHAPES = [(1, 28, 28), (3, 5, 7), (2, 1, 1)]
LABELS = torch.tensor([0, 1, 2, 1])


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_networks_of_the_first_gan_have_the_parameters_of_their_sizes():
    generator, discriminator = MLPGenerator((1, 28, 28), 100), MLPDiscriminator((1, 28, 28))
    assert parameters(generator) == 101 * 1200 + 1201 * 1200 + 1201 * 784 == 2_503_984
    assert parameters(discriminator) == 785 * 240 * 5 + 241 * 240 * 5 + 241 == 1_231_441
    assert [m.p for m in discriminator.modules() if isinstance(m, nn.Dropout)] == [0.2, 0.5, 0.5]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_classes", [None, 3])
def test_latents_to_pictures_to_scores(shape, num_classes):
    torch.manual_seed(0)
    labels = None if num_classes is None else LABELS
    generator = MLPGenerator(shape, 6, widths=(8,), num_classes=num_classes)
    discriminator = MLPDiscriminator(shape, widths=(8,), num_classes=num_classes)
    images = generator(100 * torch.randn(4, 6), labels)
    assert images.shape == (4, *shape)
    assert images.abs().max() <= 1
    assert discriminator(images, labels).shape == (4,)
    assert (generator.image_shape, generator.latent_size, generator.num_classes) == (shape, 6, num_classes)
    assert (discriminator.image_shape, discriminator.num_classes) == (shape, num_classes)


def test_a_linear_output_is_unbounded_and_no_hidden_layer_leaves_a_linear_map():
    torch.manual_seed(0)
    generator = MLPGenerator((2, 1, 1), 6, widths=(), output="linear").double()
    a, b = torch.randn(2, 5, 6).double().unbind()
    # An affine map keeps the middle in the middle.
    torch.testing.assert_close(generator((a + b) / 2), (generator(a) + generator(b)) / 2)
    assert generator(1e6 * a).abs().max() > 1e3


def test_maxout_is_the_largest_of_its_pieces_and_holds_every_absolute_value():
    features = torch.tensor([[1.0, 5.0, -3.0, -4.0, 0.0, 2.0]])
    assert Maxout(2)(features).tolist() == [[5, -3, 2]]
    assert Maxout(3)(features).tolist() == [[5, 2]]
    assert torch.equal(Maxout(2)(torch.stack([features, -features], dim=2).flatten(1)), features.abs())


def test_the_discriminator_is_its_formula():
    torch.manual_seed(0)
    discriminator = MLPDiscriminator((1, 3, 3), widths=(4,), maxout=3).double().eval()
    hidden, score = (m for m in discriminator.modules() if isinstance(m, nn.Linear))
    images = torch.randn(5, 1, 3, 3).double()
    pieces = (images.flatten(1) @ hidden.weight.T + hidden.bias).view(5, 4, 3)
    expected = pieces.max(dim=2).values @ score.weight[0] + score.bias
    torch.testing.assert_close(discriminator(images), expected)


def test_labels_act_as_an_embedding_added_to_the_first_layer():
    torch.manual_seed(0)
    generator = MLPGenerator((1, 2, 2), 6, widths=(8,), num_classes=3).double()
    first, last = (m for m in generator.modules() if isinstance(m, nn.Linear))
    latents = torch.randn(1, 6).double().expand(4, 6)
    weight, embedding = first.weight[:, :6], first.weight[:, 6:].T
    expected = last(F.relu(latents @ weight.T + first.bias + embedding[LABELS])).tanh().view(4, 1, 2, 2)
    images = generator(latents, LABELS)
    torch.testing.assert_close(images, expected)
    torch.testing.assert_close(images[1], images[3], rtol=0, atol=1e-12)
    assert (images[0] - images[1]).abs().max() > 1e-3


def test_a_critic_scores_each_point_by_itself():
    torch.manual_seed(0)
    critic = MLPDiscriminator((2, 1, 1), widths=(16, 16), maxout=1, dropout=0.0, input_dropout=0.0).double()
    points = torch.randn(6, 2, 1, 1).double().requires_grad_()
    (jacobian,) = torch.autograd.grad(critic(points)[2], points)
    assert jacobian.flatten(1).abs().sum(dim=1).nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("kind", ["reshape", "convolution"])
@pytest.mark.parametrize("maxout", [1, 5])
def test_with_spectral_norm_the_critic_is_1_lipschitz(kind, maxout):
    torch.manual_seed(0)
    critic = MLPDiscriminator(
        (1, 4, 4), widths=(16, 16), maxout=maxout, dropout=0.0, input_dropout=0.0, spectral_norm=kind
    )  # fmt: skip
    assert len(spectral_norms(critic)) == 3
    a = torch.randn(2000, 1, 4, 4)
    b = a + 0.1 * torch.randn_like(a)
    slopes = (critic(a) - critic(b)).abs() / (a - b).flatten(1).norm(dim=1)
    assert slopes.max() <= 1.001
    plain = MLPDiscriminator((1, 4, 4), widths=(16, 16), maxout=maxout)
    assert parameters(critic) == parameters(plain)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLPGenerator((1, 0, 4), 4), "image_shape must be"),
        (lambda: MLPGenerator((1, 4, 4), 0), "at least 1"),
        (lambda: MLPGenerator((1, 4, 4), 4, output="sigmoid"), "'tanh' or 'linear', got 'sigmoid'"),
        (lambda: MLPGenerator((1, 4, 4), 4, activation="gelu"), "got 'gelu'"),
        (lambda: MLPDiscriminator((1, 4, 4), maxout=0), "at least 1"),
        (lambda: MLPGenerator((1, 4, 4), 4, num_classes=3)(torch.randn(4, 4)), "needs labels"),
        (lambda: MLPDiscriminator((1, 4, 4))(torch.randn(4, 1, 4, 4), LABELS), "no classes"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
