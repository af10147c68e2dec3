"""LMConv: locally masked convolution, for any order of generation (Jain et al. 2020, 2006.12486)."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_gen.layers.orders import CurveName, hole_last, orders_of
from lightning_gen.losses.pixels import mixture_likelihood
from lightning_gen.models.autoregressive import AutoregressiveModule, Context, DensityFactory, Order
from lightning_gen.networks.lmconv import LMConvNetwork


class LMConv(AutoregressiveModule):
    """One network for several orders of generation, by convolutions with a mask for each pixel.

    Paper (2006.12486 and its code, CIFAR-10): 5 gated blocks of 3 x 3 in each of 6 stages, of 160 features, 8 orders of
    the S-curve; 10 logistics, a Bernoulli for 2 levels; Adam (2e-4); batch 32; 2.887 bits per dim. For binary MNIST it
    has 60 features. (Its rate falls by 0.999995 an epoch, which is nothing, and is constant here.)

    A training step draws one of the orders for its batch. `log_prob` is that of the mixture of all of them, log of the
    mean over orders of p(x), on whole pictures. `complete` generates the hole last, whatever its shape, so that all
    known pixels are context; it keeps to that of the orders which comes closest to this by itself.

    Args:
        num_levels: L of each channel; 2 for black and white, whose channels are then independent within a pixel.
        num_components: K, of the mixture.
        orders: A curve: raster, s_curve, hilbert (squares of 2^n), generalized_hilbert or random; or lists of your
            own, each of which names all pixels by row * width + column, in the order of their generation.
        num_orders: How many of a curve's 8 symmetries, or so many random orders: 8, 4 (without transposes), 2 (it and
            its mirror image, top to bottom) or 1. Only for curves.
        network: Makes the network; it is given `orders` as well, keeps them under that name, and has `masks_of`.
        learning_rate: Of Adam.
        **settings: All others as in `AutoregressiveModule`.

    Raises:
        ValueError: If a number is out of range, a list is no permutation of the pixels, or the curve does not fit.
    """

    network: LMConvNetwork

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_levels: int = 256,
        num_components: int = 10,
        orders: CurveName | list[list[int]] = "s_curve",
        num_orders: int = 8,
        network: DensityFactory = LMConvNetwork,
        learning_rate: float = 2e-4,
        **settings: Any,
    ) -> None:
        super().__init__(
            image_shape,
            mixture_likelihood(num_levels, num_components),
            num_classes=None,
            condition_channels=None,
            learning_rate=learning_rate,
            **settings,
        )
        found = orders_of(orders, num_orders, *self.image_shape[1:])
        self.network = self.network_of(partial(network, orders=found))  # type: ignore[assignment, call-arg]

    def training_context(self, context: Context) -> dict[str, Any]:
        """One order for the batch, drawn on the host, where no device is waited for."""
        return {**context, "order": int(torch.randint(len(self.network.orders), (), device="cpu"))}

    def _log_prob(self, seen: Tensor, levels: Tensor, context: Context) -> Tensor:
        orders = range(len(self.network.orders))
        every = [self.log_prob_of_levels(self.network(seen, order=order), levels) for order in orders]
        return torch.stack(every).logsumexp(0) - math.log(len(every))

    def sampling_order(self) -> Order:
        """The first order."""
        return Order(self.network.orders[0].cpu(), {"order": 0})

    def completion_order(self, known: Tensor) -> Order:
        """The known pixels first, and then the hole."""
        hole = ~known.flatten()
        orders = self.network.orders.cpu()
        # The order in which the hole comes latest by itself: the one that training knows best of those like it.
        latest = int(torch.stack([hole[order].nonzero().sum() for order in orders]).argmax())
        order = hole_last(orders[latest], known)
        return Order(order, {"order": self.network.masks_of(order)})
