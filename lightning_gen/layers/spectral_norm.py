"""Spectral normalisation: weights divided by their largest singular value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_gen.layers.convolution import ReflectConv2d
from lightning_gen.modes import evaluating

Kind = Literal["reshape", "convolution"]
Network = TypeVar("Network", bound=nn.Module)

LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.Embedding)
EPSILON = 1e-12  # below it a weight counts as zero
KRYLOV_DIMENSIONS = 30  # products with the map before a layer is first used


class SpectralNorm(nn.Module):
    """Divides a weight by sigma = u^T W v, an estimate of its largest singular value (1802.05957, algorithm 1).

    W is the weight as a matrix `[out, everything else]`. The gradient flows through W; u and v are constants, which
    makes it that of equation 12. `forward` changes nothing: it gives the same in training and in eval mode, however
    often it is called, so that second derivatives, compiled graphs, copies and several passes a step are safe.
    Deviation from the paper's code, which iterates in the forward pass: here `power_iteration` moves u and v, of all
    layers at once.

    u and v start as the singular vectors of the weight as it is (in a Krylov space from a random vector). A weight of
    zero stays zero. Everything is computed in float32 at least, under autocast as well.

    Args:
        weight: The weight, already initialised.
        output_dim: Its dimension of outputs: 1 in transposed convolutions, 0 elsewhere.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, output_dim: int = 0) -> None:
        super().__init__()
        self.output_dim = output_dim
        self._start(weight, (weight.numel() // weight.shape[output_dim],))

    @torch.no_grad()
    def _start(self, weight: Tensor, input_shape: Sequence[int]) -> None:
        with _without_autocast(weight):
            start = torch.randn(*input_shape, dtype=_wide(weight).dtype, device=weight.device)
            v = start
            if not weight.is_meta:
                v = _first_singular_vector(lambda v: self.map(v, _wide(weight.detach())), start)
            u = self.map(v, _wide(weight))
            (u,) = _normalized([u], [torch.randn_like(u)])
        self.register_buffer("u", u.to(weight.dtype))
        self.register_buffer("v", v.to(weight.dtype))

    def map(self, v: Tensor, weight: Tensor) -> Tensor:
        """W v, whose largest length for |v| = 1 is the norm in question."""
        return self.matrix(weight) @ v

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as `[out, everything else]`."""
        return weight.transpose(0, self.output_dim).flatten(1)

    def sigma(self, weight: Tensor) -> Tensor:
        """u^T W v, a scalar, differentiable in the weight."""
        with _without_autocast(weight):
            return (_wide(self.u) * self.map(_wide(self.v), _wide(weight))).sum()

    def true_sigma(self, weight: Tensor) -> Tensor:
        """What sigma estimates, by SVD in float64: slow, for tests and diagnosis."""
        return torch.linalg.matrix_norm(self.matrix(weight.detach().double()), 2)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight divided by sigma, of the same shape and dtype."""
        sigma = self.sigma(weight)
        sigma = torch.where(sigma > EPSILON, sigma, torch.ones_like(sigma))
        return weight / sigma.to(weight.dtype)


@dataclass(frozen=True)
class Convolution:
    """The linear map of a convolution layer, without its weight and bias."""

    function: Callable[..., Tensor]  # of `torch.nn.functional`
    settings: dict[str, Any]  # its arguments: stride, padding and so on
    padding_mode: str
    margins: tuple[int, ...]  # left, right, top and bottom, where the padding is not of zeros

    @classmethod
    def of(cls, layer: nn.Conv2d | nn.ConvTranspose2d) -> Convolution:
        """The map that a layer computes."""
        settings = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
        if isinstance(layer, nn.ConvTranspose2d):
            return cls(F.conv_transpose2d, settings | {"output_padding": layer.output_padding}, "zeros", ())
        mode = "reflect" if isinstance(layer, ReflectConv2d) else layer.padding_mode
        if mode == "zeros":
            return cls(F.conv2d, settings, mode, ())
        return cls(F.conv2d, settings | {"padding": 0}, mode, tuple(layer._reversed_padding_repeated_twice))

    def __call__(self, features: Tensor, weight: Tensor) -> Tensor:
        """`[N, C, H, W]` or `[C, H, W]` to what the layer would give, less its bias."""
        if self.margins:
            features = F.pad(features, self.margins, mode=self.padding_mode)
        return self.function(features, weight, **self.settings)


class ConvolutionSpectralNorm(SpectralNorm):
    """Divides a kernel by the operator norm of the convolution itself, on pictures of one size.

    sigma = <u, conv(v; W)>, with v shaped as the input and u as the output, and the layer's own stride and padding. So
    the layer has Lipschitz constant 1, which `SpectralNorm` does not give it. An alternative to the SVD of 1805.10408,
    which holds for circular padding and stride 1 (`circular_singular_values`).

    The largest singular values of a convolution lie close together, so sigma, which comes from below, follows a kernel
    that learns more slowly than the paper's does: iterate more often where the bound must hold during training.

    Args:
        weight: The kernel, already initialised.
        convolution: The layer's linear map.
        input_shape: `(channels, height, width)` of the layer's input.
    """

    def __init__(self, weight: Tensor, convolution: Convolution, input_shape: Sequence[int]) -> None:
        nn.Module.__init__(self)
        self.convolution = convolution
        self._start(weight, input_shape)

    def map(self, v: Tensor, weight: Tensor) -> Tensor:
        """conv(v; W), from `[C, H, W]` or `[N, C, H, W]`."""
        return self.convolution(v, weight)

    def true_sigma(self, weight: Tensor) -> Tensor:
        """What sigma estimates, from the dense matrix of the convolution in float64: for small pictures."""
        inputs = torch.eye(self.v.numel(), dtype=torch.float64, device=weight.device).view(-1, *self.v.shape)
        return torch.linalg.matrix_norm(self.map(inputs, weight.detach().double()).flatten(1), 2)

    def iterate(self, weight: Tensor) -> None:
        """One power iteration: u is conv(v) and v the adjoint of u, both made of length 1."""
        image, adjoint = _image_and_adjoint(lambda v: self.map(v, _wide(weight.detach())), _wide(self.v))
        (u,) = _normalized([image], [_wide(self.u)])
        (v,) = _normalized([adjoint(u)], [_wide(self.v)])
        self.u.copy_(u)
        self.v.copy_(v)


class NormalizedWeight(NamedTuple):
    """A parametrization and the raw weight it is given."""

    norm: SpectralNorm
    weight: Tensor

    def sigma(self) -> Tensor:
        """What the raw weight is divided by, detached."""
        with torch.no_grad():
            return self.norm.sigma(self.weight)

    def true_sigma(self) -> Tensor:
        """The largest singular value of the weight after normalisation, by SVD in float64: 1 where u and v are."""
        with torch.no_grad():
            return self.norm.true_sigma(self.norm(self.weight))


@torch.no_grad()
def power_iteration(weights: Iterable[NormalizedWeight], n_iterations: int = 1) -> None:
    """Move u and v of all weights towards their first singular vectors, in place and without a graph.

    Call it between the steps, not between a forward pass and its backward.

    Args:
        weights: From `spectral_norms(network).values()`.
        n_iterations: At least 1.

    Raises:
        ValueError: If n_iterations is below 1.
    """
    if n_iterations < 1:
        raise ValueError(f"n_iterations must be at least 1, got {n_iterations}.")
    matrices = []
    for norm, weight in weights:
        with _without_autocast(weight):
            if isinstance(norm, ConvolutionSpectralNorm):
                for _ in range(n_iterations):
                    norm.iterate(weight)
            else:
                matrices.append((norm, norm.matrix(_wide(weight))))
    if not matrices:
        return
    us, vs = [_wide(norm.u) for norm, _ in matrices], [_wide(norm.v) for norm, _ in matrices]
    with _without_autocast(us[0]):
        for _ in range(n_iterations):
            vs = _normalized([matrix.mT @ u for (_, matrix), u in zip(matrices, us, strict=True)], vs)
            us = _normalized([matrix @ v for (_, matrix), v in zip(matrices, vs, strict=True)], us)
    torch._foreach_copy_([norm.u for norm, _ in matrices], us)
    torch._foreach_copy_([norm.v for norm, _ in matrices], vs)


def spectral_norm(layer: Network, kind: Kind = "reshape", input_size: tuple[int, int] | None = None) -> Network:
    """Normalise the weight of a layer, and return the layer.

    `kind="reshape"` is the paper's: the kernel of a convolution is taken as the matrix `[out, in * kh * kw]`, which
    maps one patch of the input to one pixel of the output. Patches overlap, so the operator norm of the convolution so
    normalised is not 1. It is at most the root of the number of patches that share a pixel, sqrt(ceil(kh / stride) *
    ceil(kw / stride)): 3 for 3 x 3 and stride 1. It is at least 1 where a patch fits into the picture, and may be
    below 1 where none does, or in transposed convolutions. `kind="convolution"` makes it 1.

    Neither makes a network 1-Lipschitz if it adds branches: a residual sum of two such maps reaches up to 2.

    Args:
        layer: `nn.Conv2d`, `nn.ConvTranspose2d`, `nn.Linear` or `nn.Embedding`, with its weight already initialised.
        kind: Only convolutions know a difference.
        input_size: (height, width) of the layer's input, for `kind="convolution"`.

    Raises:
        TypeError: If the layer is of another type.
        ValueError: If its weight is parametrized already, the kind is unknown, or the input size is missing.
    """
    if not isinstance(layer, LAYERS):
        names = ", ".join(f"nn.{known.__name__}" for known in LAYERS)
        raise TypeError(f"spectral_norm normalises {names}; got {type(layer).__name__}.")
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}; got {kind!r}.")
    if parametrize.is_parametrized(layer, "weight"):
        raise ValueError(f"The weight of this {layer!r} is parametrized already; normalise each layer once.")
    weight = layer.weight.detach()
    if kind == "convolution" and isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        if input_size is None:
            raise ValueError(
                "The norm of a convolution depends on the size of its input: give input_size=(height, width) with kind="
                '"convolution", or let add_spectral_norm find the sizes.'
            )
        norm: SpectralNorm = ConvolutionSpectralNorm(weight, Convolution.of(layer), (layer.in_channels, *input_size))
    else:
        norm = SpectralNorm(weight, output_dim=1 if isinstance(layer, nn.ConvTranspose2d) else 0)
    parametrize.register_parametrization(layer, "weight", norm)
    return layer


def add_spectral_norm(
    network: Network, image_shape: tuple[int, int, int], kind: Kind = "reshape", labels: Tensor | None = None
) -> Network:
    """Normalise every convolution, transposed convolution, linear layer and embedding of a discriminator.

    Args:
        network: Takes pictures `[1, C, H, W]`, with weights initialised; changed in place and returned.
        image_shape: (channels, height, width).
        kind: See `spectral_norm`. For "convolution" the network is called once on zeros in eval mode, to find the
            sizes of what its layers see.
        labels: Second argument of that call, for a network that needs one: `torch.zeros(1, dtype=torch.int64)`.

    Raises:
        ValueError: If there is nothing to normalise, or a convolution is not reached by that call.
    """
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, LAYERS)}
    if not layers:
        raise ValueError(f"{type(network).__name__} has no convolution, linear layer or embedding to normalise.")
    sizes = _input_sizes(network, layers, image_shape, labels) if kind == "convolution" else {}
    for name, layer in layers.items():
        spectral_norm(layer, kind, sizes.get(name))
    return network


def spectral_norms(network: nn.Module) -> dict[str, NormalizedWeight]:
    """The normalised weights of a network, by the names of their layers."""
    found = {}
    for name, layer in network.named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            chain = layer.parametrizations["weight"]
            if isinstance(chain[0], SpectralNorm):
                found[name] = NormalizedWeight(chain[0], chain.original)
    return found


def circular_singular_values(kernel: Tensor, size: tuple[int, int]) -> Tensor:
    """All singular values of a convolution with circular padding and stride 1 (1805.10408, theorem 6).

    Args:
        kernel: `[out, in, kh, kw]`.
        size: (height, width) of the pictures.

    Returns:
        `[height, width, min(out, in)]`, descending in the last dimension.

    Raises:
        ValueError: If the kernel is larger than the pictures.
    """
    if kernel.shape[2] > size[0] or kernel.shape[3] > size[1]:
        raise ValueError(f"The kernel, {tuple(kernel.shape[2:])}, must not be larger than the pictures, {size}.")
    return torch.linalg.svdvals(torch.fft.fft2(kernel, size).permute(2, 3, 0, 1))


def _input_sizes(
    network: nn.Module, layers: Mapping[str, nn.Module], image_shape: tuple[int, int, int], labels: Tensor | None
) -> dict[str, tuple[int, int]]:
    """(height, width) of what reaches each convolution of a network."""
    sizes: dict[str, tuple[int, int]] = {}
    convolutions = {n: layer for n, layer in layers.items() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)}

    def note(name: str, features: Tensor) -> None:
        # The norm grows with the picture, so that of the largest holds for a layer that is used at several sizes.
        sizes[name] = max(sizes.get(name, (0, 0)), (features.shape[-2], features.shape[-1]))

    handles = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
        for name, layer in convolutions.items()
    ]
    device = next(network.parameters()).device
    images = torch.zeros(1, *image_shape, device=device)
    try:
        with torch.no_grad(), evaluating(network):
            network(images, *(() if labels is None else (labels.to(device),)))
    finally:
        for handle in handles:
            handle.remove()
    missed = [name for name in convolutions if name not in sizes]
    if missed:
        raise ValueError(
            f"{', '.join(missed)} did not see the zeros of shape {tuple(images.shape)}, so the size of its input is "
            'unknown. Normalise it by itself with spectral_norm(layer, "convolution", input_size).'
        )
    return sizes


def _first_singular_vector(linear: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The first right singular vector of a linear map, from the Krylov space of A^T A and a random vector.

    Takes as many products as power iteration would, but the error falls far faster where singular values lie close.
    """
    candidate, before = start, start.norm()
    basis: list[Tensor] = []
    images: list[Tensor] = []
    while len(basis) < KRYLOV_DIMENSIONS and candidate.norm() > 1e-5 * before:  # else the space is exhausted
        basis.append(candidate / candidate.norm())
        image, adjoint = _image_and_adjoint(linear, basis[-1])
        images.append(image)
        candidate = adjoint(image)
        before = candidate.norm()
        for _ in range(2):  # once is not enough in floating point
            for vector in basis:
                candidate = candidate - (vector * candidate).sum() * vector
    flat = torch.stack(images).flatten(1)
    weights = torch.linalg.eigh(flat @ flat.mT).eigenvectors[:, -1]
    vector = torch.tensordot(weights, torch.stack(basis), 1)
    return vector / vector.norm()


def _image_and_adjoint(linear: Callable[[Tensor], Tensor], vector: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A vector's image, and the adjoint map, which is what pulls gradients back through a linear map."""
    with torch.enable_grad():
        vector = vector.detach().requires_grad_()
        image = linear(vector)
    return image.detach(), lambda cotangent: torch.autograd.grad(image, vector, cotangent)[0]


def _normalized(vectors: list[Tensor], earlier: list[Tensor]) -> list[Tensor]:
    # A trace of the earlier vector keeps it where the weight is zero, which else would be stuck at zero for ever.
    vectors = list(torch._foreach_add(vectors, earlier, alpha=EPSILON))
    return list(torch._foreach_div(vectors, list(torch._foreach_norm(vectors))))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _without_autocast(tensor: Tensor) -> torch.autocast:
    return torch.autocast("cpu" if tensor.is_meta else tensor.device.type, enabled=False)
