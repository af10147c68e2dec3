"""Weight normalisation with data-dependent initialisation (Salimans & Kingma 2016, arXiv 1602.07868).

A layer's weights are w = g v / ||v||, with a norm and a factor g for each output, so that the length of w is learned
apart from its direction. Before training, g and b are set so that over a batch of pictures each pre-activation has mean
0 and a given standard deviation, layer after layer, each fed by those that are initialised already:

    with data_dependent_init(network):
        network(images)

`torch.nn.utils.parametrizations.weight_norm` keeps g and v under names of its own and knows no initialisation from
data; here they are plain parameters, `v`, `g` and `b`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STD_OF_V = 0.05
"""Standard deviation of the normal distribution that v starts from."""

MIN_VARIANCE = 1e-10
"""Added to the variance of a pre-activation, as in the code of PixelCNN++."""


class WeightNormalized(nn.Module):
    """What layers with weight norm share; a subclass says in `transform` what its weights do.

    Args:
        shape: Of the weights.
        output_axis: That of the outputs in it.
        init_scale: Standard deviation of the pre-activations that `initialize` gives. Without it g starts from this.

    Attributes:
        v: Direction of the weights, `shape`.
        g: Their length, `[out]`.
        b: Bias, `[out]`.
    """

    feature_axis = 1
    """Axis of the outputs in what `transform` gives; all others are averaged over."""

    def __init__(self, shape: tuple[int, ...], output_axis: int = 0, init_scale: float = 1.0) -> None:
        super().__init__()
        if min(shape) < 1 or not init_scale > 0:
            raise ValueError(
                f"Channels and sides of kernels must be at least 1, and init_scale above 0; got weights {list(shape)} "
                f"and {init_scale}."
            )
        self.init_scale = init_scale
        self.input_axes = [axis for axis in range(len(shape)) if axis != output_axis]
        self.v = nn.Parameter(torch.randn(shape) * STD_OF_V)
        self.g = nn.Parameter(torch.full((shape[output_axis],), float(init_scale)))
        self.b = nn.Parameter(torch.zeros(shape[output_axis]))

    def extra_repr(self) -> str:
        """What `print` says."""
        return f"v={list(self.v.shape)}, init_scale={self.init_scale}"

    @abstractmethod
    def transform(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the layer does, with weights of the shape of v."""
        raise NotImplementedError

    def weight(self) -> Tensor:
        """The weights, g v / ||v||."""
        norm = torch.linalg.vector_norm(self.v, dim=self.input_axes, keepdim=True)
        return self.v * (self.g.view_as(norm) / norm)

    def forward(self, features: Tensor) -> Tensor:
        """Features that come in to those that go out, as the layer without weight norm."""
        return self.transform(features, self.weight(), self.b)

    @torch.no_grad()
    def initialize(self, features: Tensor) -> None:
        """Set g and b so that the pre-activations have mean 0 and standard deviation `init_scale` over these features.

        Whatever g and b were has no say.
        """
        self.g.fill_(1)
        outputs = self.transform(features, self.weight(), None).movedim(self.feature_axis, 0).flatten(1)
        outputs = outputs.to(self.g.dtype)  # halves under autocast
        variance, mean = torch.var_mean(outputs, dim=1, correction=0)
        self.g.copy_(self.init_scale / (variance + MIN_VARIANCE).sqrt())
        self.b.copy_(-mean * self.g)


class WeightNormConv2d(WeightNormalized):
    """`nn.Conv2d` with weight norm.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel_size: (height, width).
        stride: Of rows and columns.
        padding: (rows, columns) of zeros on either side.
        init_scale: See `WeightNormalized`.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int] = (1, 1),
        *,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
        init_scale: float = 1.0,
    ) -> None:
        super().__init__((out_channels, in_channels, *kernel_size), init_scale=init_scale)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def transform(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`[N, in, H, W]` to `[N, out, ...]`."""
        return F.conv2d(features, weight, bias, self.stride, self.padding)


class WeightNormConvTranspose2d(WeightNormalized):
    """`nn.ConvTranspose2d` with weight norm; each norm is over all weights that lead to one output.

    Other arguments and errors are those of `WeightNormConv2d`.

    Args:
        padding: (rows, columns) cut off on either side.
        output_padding: (rows, columns) added below and to the right.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        *,
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
        output_padding: tuple[int, int] = (0, 0),
        init_scale: float = 1.0,
    ) -> None:
        super().__init__((in_channels, out_channels, *kernel_size), 1, init_scale)
        self.kernel_size, self.stride, self.padding, self.output_padding = kernel_size, stride, padding, output_padding

    def transform(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`[N, in, H, W]` to `[N, out, ...]`."""
        return F.conv_transpose2d(features, weight, bias, self.stride, self.padding, self.output_padding)


class WeightNormLinear(WeightNormalized):
    """`nn.Linear` with weight norm, along any axis; along that of the channels it is a 1 x 1 convolution.

    Args:
        in_features: Size of the axis.
        out_features: What it becomes.
        axis: Which it is; 1 for the channels of `[N, C, H, W]`.
        init_scale: See `WeightNormalized`.

    Raises:
        ValueError: If a size is below 1.
    """

    def __init__(self, in_features: int, out_features: int, *, axis: int = -1, init_scale: float = 1.0) -> None:
        super().__init__((out_features, in_features), init_scale=init_scale)
        self.feature_axis = axis

    def transform(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`[..., in, ...]` to `[..., out, ...]`."""
        if self.feature_axis == -1:
            return F.linear(features, weight, bias)
        return F.linear(features.movedim(self.feature_axis, -1), weight, bias).movedim(-1, self.feature_axis)


@contextmanager
def data_dependent_init(network: nn.Module) -> Iterator[None]:
    """Within it, each layer with weight norm that is called sets its g and b from what it is fed, then goes on.

    So one forward pass initialises all layers in the order in which they come. It builds no graph and runs eagerly,
    also where the network is compiled. A layer called twice is initialised twice, and keeps what comes last. The result
    depends on the batch: in distributed training do this on one rank and send its parameters to the others.

    Args:
        network: Whose layers are to be initialised.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, WeightNormalized)]
    hooks = [layer.register_forward_pre_hook(lambda layer, inputs: layer.initialize(*inputs)) for layer in layers]
    try:
        # A graph compiled here would hold the hooks for good.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for hook in hooks:
            hook.remove()
