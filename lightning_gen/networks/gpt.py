"""A decoder of tokens, as of language models, for the codes or levels of pictures (recipe: 2406.06525).

The sequence begins with a token of the class, and the others are the codes, row by row, so that what comes out at a
token is of the next code. What a step needs of earlier tokens are their keys and values, which are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.layers.conditional import check_labels
from lightning_gen.layers.dropout import Dropout
from lightning_gen.losses.precision import full
from lightning_gen.networks.density import DensityNetwork
from lightning_gen.networks.stepping import Run, call, places_of
from lightning_gen.outlines import with_values


class GPTNetwork(DensityNetwork):
    """Blocks of attention and SwiGLU, each after RMSNorm and around a residual connection, over a sequence of codes.

    LlamaGen-B (2406.06525), for 16 x 16 codes of 16,384: 12 layers, 12 heads, width 768, 111 M parameters; no biases;
    SwiGLU of 2/3 x 4 x 768 features, rounded up to a multiple of 256; two-dimensional rotary positions (2104.09864) of
    base 10,000, half of a head for rows and half for columns; dropout .1 of tokens and of what each layer adds; the
    label is dropped with probability .1, in favour of a learned null; weights from N(0, .02), those of the head 0.

    A code goes in as a vector of `width` that is learnt for it, so levels in no order are welcome, and there is `embed`
    for them; see `DensityNetwork`. Several channels of a position, such as the depths of a residual quantizer, come one
    after the other, and a vector says which is next. A step then computes all tokens of its position, for each channel
    anew: of C channels it costs as much as C^2 tokens in arithmetic, of few channels hardly more than C in time.

    Deviations from the authors' code: the first token, which has no position, is not rotated, where they set its
    queries and keys to zero; pairs that are rotated together are the two halves of a head, not neighbours.

    Args:
        image_shape: (channels, height, width).
        outputs: P C, logits of each position: P = L for each channel of L levels, or 1 where these are 2.
        width: Features of a token, a multiple of 4 heads.
        layers: Blocks.
        heads: Of attention.
        dropout: As above.
        label_dropout: Probability with which a label is dropped in training; 0 for a network without a null, which
            cannot be guided.
        num_classes: None for a network without labels.
        condition_channels: Channels of a map of conditions, of which each token gets the place that it predicts.

    Raises:
        ValueError: If a size is out of range, or one is no multiple of another that it must be of.
    """

    small: ClassVar = {"width": 8, "layers": 1, "heads": 2}
    null_label: int | None
    """The number that stands for no label, or None where there is none."""
    rotation: Tensor
    before: int = 0
    """Tokens in front of the first one, of which a cache holds keys and values, too."""

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        outputs: int,
        *,
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        dropout: float = 0.1,
        label_dropout: float = 0.1,
        num_classes: int | None = None,
        condition_channels: int | None = None,
    ) -> None:
        sizes = {"width": width, "layers": layers, "heads": heads}
        given = {"num_classes": num_classes, "condition_channels": condition_channels}
        super().__init__(image_shape, outputs, embedding=width, dropout=dropout, **given, **sizes)  # type: ignore[arg-type]
        channels = image_shape[0]
        if width % (4 * heads) or outputs % channels:
            raise ValueError(
                f"GPTNetwork needs a width that is a multiple of 4 heads, and outputs of the {channels} channels; got "
                f"width {width}, heads {heads} and outputs {outputs}."
            )
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout must be at least 0 and below 1, got {label_dropout}.")
        self.label_dropout = label_dropout
        self.null_label = num_classes if label_dropout else None
        self.start = nn.Embedding((num_classes or 1) + (self.null_label is not None), width)
        self.channel = nn.Embedding(channels, width) if channels > 1 else None
        self.condition = None if condition_channels is None else nn.Linear(condition_channels, width, bias=False)
        self.dropout = Dropout(dropout)
        self.blocks = cast(Sequence[Block], nn.ModuleList(Block(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, outputs // channels, bias=False)
        # A function of the arguments, as they are not stored.
        self.register_buffer("rotation", rotations(self.image_shape, width // heads), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(self.head.weight)

    def forward(self, images: Tensor, labels: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """What `embed` makes of levels, `[N, width C, H, W]`, to logits `[N, P, C, H, W]`.

        Args:
            images: What `embed` gave.
            labels: Int64 `[N]`, some of which are dropped in training; `null_label` stands for none.
            condition: `[N, condition_channels, H, W]`.

        Raises:
            ValueError: If labels or condition are missing, or given to a network that has no use for them, or a shape
                is another.
        """
        self.check_given(images, labels)
        self.check_condition(condition, len(images))
        if labels is not None and self.training and self.null_label is not None:
            dropped = torch.rand(len(labels), device=labels.device) < self.label_dropout
            labels = labels.masked_fill(dropped, self.null_label)
        tokens = torch.cat([self._first(len(images), labels), self._in_turn(images.flatten(2))[:, :-1]], dim=1)
        features = self._features(tokens, self._beside(condition), self.rotation)
        return self._logits(features).unflatten(3, self.image_shape[1:])

    def init_cache(
        self, batch: int, device: torch.device, labels: Tensor | None = None, condition: Tensor | None = None
    ) -> GPTCache:
        """The cache for `batch` pictures of which no position is known; the weights must stay until the end."""
        check_labels(labels, self.num_classes)
        self.check_condition(condition, batch)
        channels, height, width = self.image_shape
        length, block = channels * height * width, self.blocks[0]
        new = self.head.weight.new_zeros
        size = (batch, block.heads, self.before + length, self.in_channels // channels // block.heads)
        inputs = new(batch, height * width + 1, self.in_channels)
        with torch.no_grad():
            # The first token stands where the last channel of a position before the first would.
            inputs[:, 0].unflatten(1, (-1, channels))[:, :, -1] = self._first(batch, labels)[:, 0]
            beside = self._beside(None if condition is None else condition.to(inputs))
        return GPTCache(
            images=inputs[:, 1:].mT.unflatten(2, (height, width)),
            inputs=inputs,
            beside=beside,
            keys=[new(size) for _ in self.blocks],
            values=[new(size) for _ in self.blocks],
            mask=torch.ones(length, self.before + length, dtype=torch.bool, device=device).tril_(self.before),
            places=places_of(height, width, device),
        )

    @torch.no_grad()
    def prefill(self, cache: GPTCache, position: int) -> None:
        """One pass in place of the steps at all positions before this one."""
        if position:
            self._remembered(cache, cache.places[:position, 0], position)

    @torch.no_grad()
    def step(self, cache: GPTCache, position: int, run: Run = call) -> Tensor:
        """Logits of one position, `[N, P, C]`; one piece, which looks at those quarters of all that have begun."""
        return run(self._pixel, cache, cache.places[position], 4 * position // len(cache.places) + 1)

    def _pixel(self, cache: GPTCache, place: Tensor, quarters: int = 4) -> Tensor:
        return self._logits(self._remembered(cache, place, -(-quarters * len(cache.places) // 4))).squeeze(3)

    def _remembered(self, cache: GPTCache, places: Tensor, among: int) -> Tensor:
        """Features of the tokens at positions that follow each other, `among` the first so many; they are kept."""
        channels = self.image_shape[0]
        known = cache.inputs.index_select(1, torch.cat([places[:1], places + 1]))
        tokens = self._in_turn(known.mT)[:, channels - 1 : -1]
        indices = (places.unsqueeze(1) * channels + torch.arange(channels, device=places.device)).flatten()
        beside = cache.beside
        if beside is not None:
            beside = beside.index_select(1, indices)
        mask = cache.mask[:, : self.before + among * channels].index_select(0, indices)
        memories = [Memory(*each, self.before + indices, mask) for each in zip(cache.keys, cache.values, strict=True)]
        return self._features(tokens, beside, self.rotation.index_select(1, indices), memories)

    def _first(self, batch: int, labels: Tensor | None) -> Tensor:
        """The token before all others, `[N, 1, width]`."""
        places = torch.zeros(batch, dtype=torch.int64, device=self.start.weight.device) if labels is None else labels
        return self.start(places).unsqueeze(1)

    def _in_turn(self, vectors: Tensor) -> Tensor:
        """`[N, width C, positions]` as tokens `[N, positions C, width]`, position after position, channels within."""
        return vectors.unflatten(1, (-1, self.image_shape[0])).permute(0, 3, 2, 1).flatten(1, 2)

    def _beside(self, condition: Tensor | None) -> Tensor | None:
        """What is added to tokens, `[N or 1, H W C, width]`: which channel is next, and the conditions at its place."""
        channels, height, width = self.image_shape
        parts = []
        if self.channel is not None:
            parts.append(self.channel.weight.repeat(height * width, 1).unsqueeze(0))
        if self.condition is not None and condition is not None:
            parts.append(self.condition(condition.flatten(2).mT).repeat_interleave(channels, dim=1))
        return sum(parts[1:], parts[0]) if parts else None

    def _features(
        self, tokens: Tensor, beside: Tensor | None, rotation: Tensor, memories: list[Memory] | None = None
    ) -> Tensor:
        features = self.dropout(tokens if beside is None else tokens + beside)
        for number, block in enumerate(self.blocks):
            features = block(features, rotation, None if memories is None else memories[number])
        return self.norm(features)

    def _logits(self, features: Tensor) -> Tensor:
        """`[N, positions C, width]` to `[N, P, C, positions]`."""
        return self.head(features).unflatten(1, (-1, self.image_shape[0])).permute(0, 3, 2, 1)


class Memory(NamedTuple):
    """What a block keeps of all tokens, and where those that are computed now belong."""

    keys: Tensor
    """`[N, heads, all tokens, width / heads]`, written in place."""
    values: Tensor
    """The same."""
    indices: Tensor
    """Int64 `[tokens]`."""
    mask: Tensor
    """Bool `[tokens, L]`, True where one may look, at the first L of all."""


class Block(nn.Module):
    """Attention to the tokens before and the token itself, then SwiGLU (2002.05202), each added to what came in.

    Args:
        width: Of a token.
        heads: Of attention.
        dropout: Of what each adds.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        multiple = min(256, width)
        hidden = -(-(8 * width // 3) // multiple) * multiple
        self.heads = heads
        self.attention_norm = nn.RMSNorm(width, eps=1e-5)
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width, bias=False)
        self.swiglu_norm = nn.RMSNorm(width, eps=1e-5)
        self.gates_and_features = nn.Linear(width, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)
        self.dropout = Dropout(dropout)

    def forward(self, tokens: Tensor, rotation: Tensor, memory: Memory | None = None) -> Tensor:
        """`[N, tokens, width]` to the same; of a whole sequence, or of what follows that in a memory."""
        tokens = tokens + self.dropout(self.attention(self.attention_norm(tokens), rotation, memory))
        gates, features = self.gates_and_features(self.swiglu_norm(tokens)).chunk(2, dim=2)
        return tokens + self.dropout(self.out(F.silu(gates) * features))

    def attention(self, tokens: Tensor, rotation: Tensor, memory: Memory | None) -> Tensor:
        """Of each token the mean of values so far, weighted by softmax(q k / sqrt(width / heads)) head by head."""
        parts = self.queries_keys_values(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        (queries, keys), values = rotated(parts[:2], rotation), parts[2]  # [N, heads, tokens, width / heads]
        if memory is None:
            mixed = attend(queries, keys, values)
        else:
            seen = memory.mask.shape[1]
            keys = memory.keys.index_copy_(2, memory.indices, keys)[:, :, :seen]
            values = memory.values.index_copy_(2, memory.indices, values)[:, :, :seen]
            mixed = attend(queries, keys, values, memory.mask)
        return self.mix(mixed.transpose(1, 2).flatten(2))


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Of values `[N, heads, tokens, size]` those that a mask lets each query see; without one, those up to itself."""
    if queries.device.type != "cpu":
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=mask is None)
    # Of bfloat16, going back takes up to four times as long there as of float32 (PyTorch 2.14).
    with torch.autocast("cpu", enabled=False):
        given = full(queries), full(keys), full(values)
        return F.scaled_dot_product_attention(*given, attn_mask=mask, is_causal=mask is None).to(queries.dtype)


@with_values()
def rotations(image_shape: tuple[int, int, int], size: int, base: float = 10_000.0) -> Tensor:
    """By how much the tokens that go in are rotated, as cosines and sines, `[2, H W C, size / 2]`.

    A code of row r and column c is rotated by r base^(-4 i / size) in the first quarter of the pairs, i counting these,
    and by c base^(-4 i / size) in the others. In front of the codes stands the first token, which is not rotated, and
    the last code does not go in.

    Args:
        image_shape: (channels, height, width).
        size: Of a head, a multiple of 4.
        base: Of the wave lengths.
    """
    channels, height, width = image_shape
    positions = (torch.arange(channels * height * width) - 1).clamp(min=0) // channels  # not rotated, as is position 0
    frequencies = base ** -(torch.arange(size // 4) / (size // 4))
    angles = torch.cat([place.unsqueeze(1) * frequencies for place in (positions // width, positions % width)], dim=1)
    return torch.stack([angles.cos(), angles.sin()])


def rotated(vectors: Tensor, rotation: Tensor) -> Tensor:
    """Vectors `[..., tokens, size]` of which each pair, of one from either half, is turned by an angle of its own."""
    (cosine, sine), (x, y) = rotation, vectors.chunk(2, dim=-1)
    return torch.cat([x * cosine - y * sine, x * sine + y * cosine], dim=-1).to(vectors.dtype)


@dataclass(frozen=True, eq=False)
class GPTCache:
    """Of `GPTNetwork`; lists have one entry a block.

    Args:
        images: `[N, width C, H, W]`, a view of the inputs.
        inputs: `[N, 1 + H W, width C]`: the first token, and the codes.
        beside: What is added to tokens, `[N or 1, H W C, width]`, or None.
        keys: `[N, heads, B + H W C, width / heads]`, where B tokens stand in front of the first.
        values: The same.
        mask: Bool `[H W C, B + H W C]`, True where a token may look.
        places: Of all positions, int64 `[H * W, 1]`.
    """

    images: Tensor
    inputs: Tensor
    beside: Tensor | None
    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor
    places: Tensor
