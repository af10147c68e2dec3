"""Encoders of pictures and of captions into one space of features, small ones in the manner of CLIP (2103.00020)."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.capabilities import Tokenizer
from lightning_gen.networks.building import check_sizes, count_halvings


class PictureEncoder(nn.Module):
    """Halvings by 3 x 3 convolutions of stride 2, then one linear layer that sees every place.

    The picture is halved, rounding up, as long as its smaller side stays at 4 or above.

    Args:
        image_shape: (channels, height, width), at least 8 x 8.
        num_features: Width of the features.
        filters: Channels of the first convolution; each further one has twice as many, up to `max_filters`.
        max_filters: Channels at most.

    Raises:
        ValueError: If a size is too small.
    """

    small: ClassVar = {"filters": 4, "max_filters": 8}

    def __init__(
        self, image_shape: tuple[int, int, int], num_features: int, *, filters: int = 32, max_filters: int = 256
    ) -> None:
        super().__init__()
        check_sizes(self, image_shape, num_features=num_features, filters=filters, max_filters=max_filters)
        if (halvings := count_halvings(image_shape, 4)) < 1:
            raise ValueError(f"PictureEncoder needs pictures of at least 8 x 8 pixels, got {list(image_shape[1:])}.")
        channels = [image_shape[0], *(min(filters * 2**i, max_filters) for i in range(halvings))]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(channels):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(1, outputs), nn.ReLU()]
        height, width = (-(-side // 2**halvings) for side in image_shape[1:])
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * height * width, num_features))

    def forward(self, images: Tensor) -> Tensor:
        """Pictures `[N, C, H, W]` in `[-1, 1]` to features `[N, num_features]`."""
        return self.layers(images)


class CaptionEncoder(nn.Module):
    """A Transformer over the tokens of a caption, and the mean of what it gives at those that do not fill up.

    Args:
        tokenizer: Whose tokens it reads.
        num_features: Width of the features.
        width: Of the layers.
        depth: Number of layers, each of attention and a perceptron of four times the width, after layer norms.
        heads: Of attention, which share the width.

    Raises:
        ValueError: If a number is below 1, or the heads do not divide the width.
    """

    small: ClassVar = {"width": 8, "depth": 1, "heads": 2}

    def __init__(
        self, tokenizer: Tokenizer, num_features: int, *, width: int = 128, depth: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        if min(num_features, width, depth, heads) < 1 or width % heads:
            raise ValueError(
                "CaptionEncoder needs num_features, width, depth and heads >= 1, and heads that divide the width; got "
                f"{num_features}, {width}, {depth} and {heads}."
            )
        self.padding = tokenizer.padding
        self.tokens = nn.Embedding(tokenizer.num_tokens, width)
        self.places = nn.Parameter(0.01 * torch.randn(tokenizer.length, width))
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, num_features))

    def forward(self, captions: Tensor) -> Tensor:
        """Tokens int64 `[N, length]` to features `[N, num_features]`."""
        said = captions != self.padding
        x = self.tokens(captions) + self.places  # [N, length, width]
        for block in self.blocks:
            x = block(x, said[:, None, None, :])
        weights = said / said.sum(1, keepdim=True).clamp(min=1)
        return self.head((x * weights.to(x.dtype)[:, :, None]).sum(1))


class _Block(nn.Module):
    """Attention to the tokens of a mask, and a perceptron, each added to what comes in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        number, length, width = x.shape
        parts = self.attention(self.norms[0](x)).view(number, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # [N, heads, length, width / heads] each
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.output(seen.transpose(1, 2).reshape(number, length, width))
        return x + self.perceptron(self.norms[1](x))
