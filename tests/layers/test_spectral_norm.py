"""Normalised weights have norm 1, their gradient is the paper's, and a forward pass changes nothing."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from lightning_gen.layers.convolution import ReflectConv2d
from lightning_gen.layers.spectral_norm import (
    Convolution,
    SpectralNorm,
    add_spectral_norm,
    circular_singular_values,
    power_iteration,
    spectral_norm,
    spectral_norms,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def layers():
    return {
        "conv": nn.Conv2d(3, 16, 3),
        "strided": nn.Conv2d(16, 16, 4, 2, 1),
        "transposed": nn.ConvTranspose2d(8, 4, 4, 2, 1),
        "linear": nn.Linear(40, 7),
        "score": nn.Linear(40, 1),
        "embedding": nn.Embedding(10, 12),
    }


def critic():
    """Feed-forward: convolutions, then linear layers, with a 1-Lipschitz activation between them."""
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.LeakyReLU(0.2),
        nn.Conv2d(8, 8, 4, stride=2, padding=1), nn.LeakyReLU(0.2),
        nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), nn.LeakyReLU(0.2),
        nn.Linear(8 * 16, 1),
    )  # fmt: skip


def largest_singular_value(matrix):
    return torch.linalg.matrix_norm(matrix, 2)


def moved(weights, scale):
    """Change the raw weights, as training does."""
    with torch.no_grad():
        for _, weight in weights:
            weight += scale * torch.randn_like(weight)


# -- the paper's norm -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", layers())
def test_the_matrix_of_a_fresh_layer_has_norm_1(name):
    layer = spectral_norm(layers()[name])
    weight = layer.weight.detach()
    rows = weight.shape[1] if name == "transposed" else weight.shape[0]
    matrix = weight.transpose(0, 1).reshape(rows, -1) if name == "transposed" else weight.reshape(rows, -1)
    torch.testing.assert_close(largest_singular_value(matrix), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_iterations_bring_the_norm_back_to_1_after_the_weights_have_changed():
    network = nn.ModuleDict({name: spectral_norm(layer) for name, layer in layers().items()})
    weights = spectral_norms(network)
    moved(weights.values(), 0.3)
    assert max(abs(weight.true_sigma() - 1) for weight in weights.values()) > 0.02
    power_iteration(weights.values(), 200)
    for weight in weights.values():
        assert weight.true_sigma() == pytest.approx(1, abs=1e-3)
        assert weight.sigma() == pytest.approx(weight.norm.true_sigma(weight.weight).item(), rel=1e-3)


def test_iterating_all_layers_together_equals_the_textbook_layer_by_layer():
    network = nn.ModuleDict({name: spectral_norm(layer) for name, layer in layers().items()})
    weights = spectral_norms(network)
    moved(weights.values(), 0.3)
    expected = {}
    for name, (norm, weight) in weights.items():
        matrix, u = norm.matrix(weight.detach()), norm.u.clone()
        for _ in range(3):
            v = F.normalize(matrix.T @ u, dim=0)
            u = F.normalize(matrix @ v, dim=0)
        expected[name] = (u, v, u @ matrix @ v)
    power_iteration(weights.values(), 3)
    for name, (norm, weight) in weights.items():
        u, v, sigma = expected[name]
        torch.testing.assert_close(norm.u, u)
        torch.testing.assert_close(norm.v, v)
        torch.testing.assert_close(norm.sigma(weight.detach()), sigma)


@pytest.mark.parametrize("iterate", [True, False])
def test_one_iteration_a_step_has_found_the_norm_after_training(iterate):
    network = add_spectral_norm(nn.Sequential(nn.Linear(32, 48), nn.LeakyReLU(), nn.Linear(48, 1)), (32, 1, 1))
    weights = spectral_norms(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, betas=(0.0, 0.9))
    worst = 0.0
    for step in range(300):
        if iterate:
            power_iteration(weights.values())
        real, fake = torch.randn(64, 32) + 0.5, torch.randn(64, 32)
        loss = F.relu(1 - network(real)).mean() + F.relu(1 + network(fake)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= 250:  # in the first steps other directions overtake the first, and one iteration lags behind
            worst = max(worst, *(abs(weight.true_sigma().item() - 1) for weight in weights.values()))
    assert (worst < 0.01) if iterate else (worst > 0.1)


# -- the forward pass -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reshape", "convolution"])
def test_forward_changes_nothing_and_does_not_know_the_mode(kind):
    network = add_spectral_norm(critic(), (2, 8, 8), kind)
    images, buffers = torch.randn(4, 2, 8, 8), {name: b.clone() for name, b in network.named_buffers()}
    first, second, third = network(images), network(images), network.eval()(images)
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    assert len(buffers) == 8
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, buffers[name])


@pytest.mark.parametrize("shape", [(5, 3), (4, 2, 3, 3)])
def test_the_gradient_is_that_of_equation_12(shape):
    weight = torch.randn(shape, dtype=torch.float64)
    norm = SpectralNorm(weight)
    weight += 0.3 * torch.randn_like(weight)  # u and v no longer fit, and the formula holds all the same
    weight.requires_grad_()
    upstream = torch.randn_like(weight)
    (gradient,) = torch.autograd.grad((norm(weight) * upstream).sum(), weight)
    sigma = norm.u @ weight.detach().flatten(1) @ norm.v
    inner = (upstream * weight.detach()).sum() / sigma  # <dL/dWbar, Wbar>
    expected = (upstream - inner * torch.outer(norm.u, norm.v).view(shape)) / sigma
    torch.testing.assert_close(gradient, expected)


def test_at_the_singular_vectors_the_gradient_is_that_of_the_true_norm():
    weight = torch.randn(5, 8, dtype=torch.float64)
    norm = SpectralNorm(weight)
    upstream = torch.randn_like(weight)
    weight.requires_grad_()
    (ours,) = torch.autograd.grad((norm(weight) * upstream).sum(), weight)
    (true,) = torch.autograd.grad((weight / largest_singular_value(weight) * upstream).sum(), weight)
    torch.testing.assert_close(ours, true)


@pytest.mark.parametrize("kind", ["reshape", "convolution"])
def test_second_derivatives_are_right(kind):
    network = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(27, 1)).double()
    spectral_norm(network[0], kind, (3, 3))
    moved(spectral_norms(network).values(), 0.1)
    images = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    name = "parametrizations.weight.original"

    def score(images, kernel):
        return torch.func.functional_call(network, {f"0.{name}": kernel}, images).sum()

    kernel = network[0].get_parameter(name).detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(score, (images, kernel))
    assert torch.autograd.gradgradcheck(score, (images, kernel))


def test_a_gradient_penalty_reaches_the_raw_weights():
    network = add_spectral_norm(critic(), (2, 8, 8))
    images = torch.randn(4, 2, 8, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(images).sum(), images, create_graph=True)
    gradient.square().sum().backward()
    for _, weight in spectral_norms(network).values():
        assert weight.grad.norm() > 0


@pytest.mark.parametrize("kind", ["reshape", "convolution"])
def test_copies_are_equal_and_independent(kind):
    network = add_spectral_norm(critic(), (2, 8, 8), kind)
    twin, images = copy.deepcopy(network), torch.randn(4, 2, 8, 8)
    assert torch.equal(twin(images), network(images))
    expected = network(images)
    moved(spectral_norms(twin).values(), 0.3)
    power_iteration(spectral_norms(twin).values())
    assert torch.equal(network(images), expected)
    assert not torch.equal(twin(images), expected)


@pytest.mark.parametrize("kind", ["reshape", "convolution"])
def test_the_state_dict_carries_everything(kind):
    network, other = (add_spectral_norm(critic(), (2, 8, 8), kind) for _ in range(2))
    images = torch.randn(4, 2, 8, 8)
    moved(spectral_norms(network).values(), 0.3)
    power_iteration(spectral_norms(network).values())
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(images), network(images))
    for each in (network, other):
        power_iteration(spectral_norms(each).values(), 2)
    assert torch.equal(other(images), network(images))


@pytest.mark.parametrize("kind", ["reshape", "convolution"])
def test_compiled_it_is_the_same_also_after_an_iteration(kind):
    network = add_spectral_norm(critic(), (2, 8, 8), kind)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    images = torch.randn(4, 2, 8, 8)
    for _ in range(2):
        gradients = []
        for form in (network, compiled):
            scores = form(images)
            gradients.append((scores.detach(), *torch.autograd.grad(scores.sum(), list(network.parameters()))))
        torch.testing.assert_close(gradients[0], gradients[1])
        moved(spectral_norms(network).values(), 0.3)
        power_iteration(spectral_norms(network).values())


@pytest.mark.parametrize("kind", ["reshape", "convolution"])
def test_autocast_does_not_touch_the_norm(kind):
    network = add_spectral_norm(critic(), (2, 8, 8), kind)
    weights = spectral_norms(network)
    moved(weights.values(), 0.3)
    twin = copy.deepcopy(network)
    expected = [layer.weight for layer in network if hasattr(layer, "weight")]
    power_iteration(spectral_norms(twin).values())
    with torch.autocast("cpu", torch.bfloat16):
        inside = [layer.weight for layer in network if hasattr(layer, "weight")]
        power_iteration(weights.values())
    for a, b in zip(inside, expected, strict=True):
        assert torch.equal(a, b)
    for a, b in zip(network.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["reshape", "convolution"])
def test_channels_last_changes_neither_the_norm_nor_the_layout_of_the_weight(kind):
    network = add_spectral_norm(critic(), (2, 8, 8), kind)
    images, expected = torch.randn(4, 2, 8, 8), [w.norm.sigma(w.weight) for w in spectral_norms(network).values()]
    scores = network(images)
    network.to(memory_format=torch.channels_last)
    assert network[2].weight.is_contiguous(memory_format=torch.channels_last)
    power_iteration(spectral_norms(network).values())
    torch.testing.assert_close([w.norm.sigma(w.weight) for w in spectral_norms(network).values()], expected)
    torch.testing.assert_close(network(images), scores)


@pytest.mark.parametrize("kind", ["reshape", "convolution"])
def test_a_weight_of_zero_stays_zero_and_can_leave_it(kind):
    layer = nn.Conv2d(2, 3, 3, padding=1)
    nn.init.zeros_(layer.weight)
    network = nn.Sequential(spectral_norm(layer, kind, (5, 5)))
    weights = spectral_norms(network).values()
    power_iteration(weights, 2)
    scores = network(torch.randn(1, 2, 5, 5)).square().sum()
    scores.backward()
    assert scores.isfinite()
    assert torch.equal(layer.weight, torch.zeros_like(layer.weight))
    (norm, weight) = next(iter(weights))
    assert weight.grad.isfinite().all()
    torch.testing.assert_close(norm.u.norm(), torch.tensor(1.0))
    moved(weights, 1.0)
    power_iteration(weights, 200)
    assert next(iter(weights)).true_sigma() == pytest.approx(1, abs=0.01)


def test_the_first_vectors_are_right_where_there_are_few_of_them():
    for weight in (torch.outer(torch.randn(6), torch.randn(9)), torch.eye(4), torch.randn(1, 1), torch.randn(2, 300)):
        norm = SpectralNorm(weight)
        torch.testing.assert_close(norm.sigma(weight), largest_singular_value(weight))


# -- the norm of the convolution itself -------------------------------------------------------------------------------


def dense(convolution, weight, shape):
    """The matrix of a linear map, column by column from single pixels."""
    columns = []
    weight = weight.detach()
    for index in range(math.prod(shape)):
        pixel = torch.zeros(math.prod(shape), dtype=weight.dtype)
        pixel[index] = 1
        columns.append(convolution(pixel.view(1, *shape), weight).detach().flatten())
    return torch.stack(columns, 1)


CONVOLUTIONS = {
    "3x3": (nn.Conv2d(2, 3, 3, padding=1), (6, 6)),
    "no padding, odd": (nn.Conv2d(2, 3, 3), (5, 7)),
    "stride, even": (nn.Conv2d(2, 3, 4, stride=2, padding=1), (6, 8)),
    "stride, odd": (nn.Conv2d(3, 2, 3, stride=2, padding=1), (7, 5)),
    "dilated": (nn.Conv2d(2, 2, 3, padding=2, dilation=2), (6, 6)),
    "groups": (nn.Conv2d(4, 4, 3, padding=1, groups=2), (4, 4)),
    "1x1": (nn.Conv2d(3, 2, 1), (4, 4)),
    "same": (nn.Conv2d(2, 2, (3, 5), padding="same"), (5, 5)),
    "circular": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (5, 6)),
    "reflect": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (5, 6)),
    "our reflect": (ReflectConv2d(2, 3, 3), (5, 5)),
    "transposed": (nn.ConvTranspose2d(3, 2, 4, stride=2, padding=1), (4, 3)),
    "transposed, output padding": (nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1, output_padding=1), (4, 4)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_norm_of_a_convolution_is_that_of_its_dense_matrix(name):
    layer, size = copy.deepcopy(CONVOLUTIONS[name])
    layer = layer.double()
    nn.init.normal_(layer.weight)
    layer.bias.data.zero_()
    shape = (layer.in_channels, *size)
    spectral_norm(layer, "convolution", size)
    matrix = dense(lambda pixel, _: layer(pixel), layer.weight, shape)  # the layer itself, as it is used
    assert largest_singular_value(matrix) == pytest.approx(1, abs=1e-4)
    weight = spectral_norms(nn.ModuleList([layer]))["0"]
    assert weight.true_sigma() == pytest.approx(largest_singular_value(matrix).item(), abs=1e-9)
    moved([weight], 0.5)
    power_iteration([weight], 300)
    matrix = dense(lambda pixel, _: layer(pixel), layer.weight, shape)
    assert largest_singular_value(matrix) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("size", [(6, 6), (5, 8)])
def test_the_fourier_formula_gives_all_singular_values_of_a_circular_convolution(size):
    layer = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", bias=False).double()
    matrix = dense(Convolution.of(layer), layer.weight.detach(), (2, *size))
    values = circular_singular_values(layer.weight.detach(), size).flatten().sort(descending=True).values
    torch.testing.assert_close(values, torch.linalg.svdvals(matrix))
    spectral_norm(layer, "convolution", size)
    assert circular_singular_values(layer.weight.detach(), size).max() == pytest.approx(1, abs=1e-4)


def test_zero_padding_has_a_smaller_norm_than_circular_padding():
    kernel = torch.randn(4, 3, 3, 3)
    layer = nn.Conv2d(3, 4, 3, padding=1)
    layer.weight.data.copy_(kernel)
    zero = spectral_norms(nn.ModuleList([spectral_norm(layer, "convolution", (8, 8))]))["0"].sigma()
    assert 0.8 * circular_singular_values(kernel, (8, 8)).max() < zero <= circular_singular_values(kernel, (8, 8)).max()


@pytest.mark.parametrize(("kernel", "stride", "bound"), [(3, 1, 3), (4, 2, 2), (4, 1, 4), (3, 2, 2), (2, 2, 1)])
def test_the_papers_norm_bounds_the_convolutions_as_documented(kernel, stride, bound):
    layer = nn.Conv2d(2, 3, kernel, stride)
    shape = (2, 8, 8)
    for values in (torch.randn_like(layer.weight), torch.ones_like(layer.weight)):  # ones come close to the bound
        layer.weight.data.copy_(values / largest_singular_value(values.flatten(1)))
        norm = largest_singular_value(dense(Convolution.of(layer), layer.weight, shape))
        assert 1 - 1e-5 <= norm <= bound + 1e-5
    assert norm > 0.7 * bound


def steepest(network, shape, pairs=1000, seed=0):
    """The largest |f(x) - f(y)| / |x - y| over random pairs: half of them far apart, half of them close."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(pairs, *shape, generator=generator)
    y = torch.randn(pairs, *shape, generator=generator)
    y[::2] = x[::2] + 0.01 * y[::2]
    x.requires_grad_()
    # Random directions say little in many dimensions; those along the gradient show the constant.
    (gradient,) = torch.autograd.grad(network(x).sum(), x)
    x = x.detach()
    y[::4] = x[::4] + gradient[::4]
    with torch.no_grad():
        return ((network(x) - network(y)).flatten(1).norm(dim=1) / (x - y).flatten(1).norm(dim=1)).max()


def test_a_critic_of_exact_norms_is_1_lipschitz():
    shape = (2, 8, 8)
    assert steepest(add_spectral_norm(critic(), shape, "convolution"), shape) <= 1.01
    reshaped = add_spectral_norm(critic(), shape)
    assert largest_singular_value(dense(Convolution.of(reshaped[0]), reshaped[0].weight.detach(), shape)) > 1.01


@pytest.mark.parametrize("kind", ["reshape", "convolution"])
def test_the_lipschitz_constant_of_a_linear_critic_tells_the_kinds_apart(kind):
    # Kernels of ones: every patch adds up, so the paper's norm is off by nearly its bound of 3.
    layer = nn.Conv2d(1, 1, 3, padding=1)
    nn.init.ones_(layer.weight)
    constant = steepest(spectral_norm(layer, kind, (12, 12)), (1, 12, 12))
    assert (constant > 2) if kind == "reshape" else (0.9 < constant <= 1.01)


# -- whole networks and mistakes --------------------------------------------------------------------------------------


class Conditional(nn.Module):
    """A projection discriminator, in small."""

    def __init__(self):
        super().__init__()
        self.features, self.score, self.classes = nn.Conv2d(3, 4, 3, 2), nn.Linear(4, 1), nn.Embedding(5, 4)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images, labels):
        hidden = self.norm(self.features(images)).sum((2, 3))
        return self.score(hidden)[:, 0] + (self.classes(labels) * hidden).sum(1)


def test_every_layer_of_a_network_is_found_and_the_network_stays_as_it_was():
    network = Conditional()
    network.score.eval()
    state = copy.deepcopy(network.norm.state_dict())
    assert add_spectral_norm(network, (3, 9, 7), "convolution", torch.zeros(1, dtype=torch.int64)) is network
    weights = spectral_norms(network)
    assert list(weights) == ["features", "score", "classes"]
    assert weights["features"].norm.v.shape == (3, 9, 7)
    assert network.training
    assert not network.score.training
    assert all(torch.equal(value, network.norm.state_dict()[key]) for key, value in state.items())
    assert not parametrize.is_parametrized(network.norm)


def test_a_layer_used_at_two_sizes_is_normalised_for_the_larger():
    layer = nn.Conv2d(1, 1, 3, padding=1)
    add_spectral_norm(nn.Sequential(layer, nn.AvgPool2d(2), layer), (1, 8, 8), "convolution")
    assert layer.parametrizations.weight[0].v.shape == (1, 8, 8)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)

    def forward(self, images):
        return self.used(images)


def test_mistakes_are_named():
    with pytest.raises(TypeError, match=r"nn\.Conv2d.*got BatchNorm2d"):
        spectral_norm(nn.BatchNorm2d(3))
    with pytest.raises(ValueError, match="'circulant'"):
        spectral_norm(nn.Linear(2, 2), "circulant")
    with pytest.raises(ValueError, match="input_size=\\(height, width\\)"):
        spectral_norm(nn.Conv2d(1, 1, 3), "convolution")
    with pytest.raises(ValueError, match="parametrized already"):
        spectral_norm(spectral_norm(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="has no convolution"):
        add_spectral_norm(nn.Sequential(nn.ReLU()), (1, 2, 2))
    with pytest.raises(ValueError, match="unused did not see"):
        add_spectral_norm(Unused(), (1, 8, 8), "convolution")
    with pytest.raises(ValueError, match="n_iterations must be at least 1"):
        power_iteration([], 0)
    with pytest.raises(ValueError, match="must not be larger"):
        circular_singular_values(torch.randn(1, 1, 5, 5), (4, 8))
