"""How labels enter a network: by concatenation, and by the affine parameters of batch norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def check_labels(labels: Tensor | None, num_classes: int | None) -> None:
    """Raise a `ValueError` where labels are missing, or given to a network without classes.

    Their range is not looked at, which would make the host wait for the device.
    """
    if num_classes is None and labels is not None:
        raise ValueError("Got labels, but the network has no classes. Build it with num_classes, or leave them out.")
    if num_classes is not None and labels is None:
        raise ValueError(
            f"The network was built with num_classes={num_classes} and needs labels: int64 [N], "
            f"each in 0 ... {num_classes - 1}."
        )


def append_labels(features: Tensor, labels: Tensor | None, num_classes: int | None) -> Tensor:
    """Concatenate one-hot labels to the channels (1411.1784); without classes the features come back as they are.

    A linear layer or convolution that follows multiplies the one-hot vector with its weights, so that it learns an
    embedding of the class.

    Args:
        features: `[N, D]`, or `[N, C, H, W]`, to which one constant map a class is appended.
        labels: int64 `[N]`; None without classes.
        num_classes: Number of classes K, or None.

    Returns:
        `[N, D + K]` or `[N, C + K, H, W]`.

    Raises:
        ValueError: If labels are missing, or given without classes.
    """
    check_labels(labels, num_classes)
    if labels is None or num_classes is None:
        return features
    one_hot = F.one_hot(labels, num_classes).to(features.dtype)
    one_hot = one_hot.view(*one_hot.shape, *[1] * (features.dim() - 2)).expand(-1, -1, *features.shape[2:])
    return torch.cat([features, one_hot], dim=1)


class ConditionalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose scale and shift belong to the class of each picture (1610.07629, 1802.05637).

    Mean and variance are those of the whole batch, as in plain batch norm; only the affine map differs by class. It
    starts as plain batch norm: every scale is 1, every shift 0.

    Args:
        num_features: Channels.
        num_classes: Number of classes.
        eps: Added to the variance.
        momentum: Of the running statistics.
    """

    def __init__(self, num_features: int, num_classes: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum, affine=False)
        self.scale = nn.Embedding(num_classes, num_features)
        self.shift = nn.Embedding(num_classes, num_features)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, input: Tensor, labels: Tensor | None = None) -> Tensor:
        """`[N, C, H, W]` and labels int64 `[N]` to `[N, C, H, W]`.

        Raises:
            ValueError: If labels are missing.
        """
        check_labels(labels, self.scale.num_embeddings)
        scale, shift = (embedding(labels)[:, :, None, None] for embedding in (self.scale, self.shift))
        normed = super().forward(input)
        return torch.addcmul(shift.to(normed.dtype), normed, scale.to(normed.dtype))
