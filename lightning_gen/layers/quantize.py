"""Quantizers: features in, the nearest of finitely many vectors out, and gradients through as if nothing had happened.

All take features `[N, C, *space]`, whatever the space, and give a `Quantized`: the vectors, their codes, and losses by
name, weighted already, so that any of them adds up to an objective:

    quantized, codes, losses = quantizer(features)
    loss = reconstruction + sum(losses.values())

They compute in float32 also under autocast, and means are over tokens, so that no loss depends on the size of a batch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gen.outlines import with_values
from lightning_gen.processes import rank, total, world_size

BLOCK = {"cpu": 2**20}
"""Distances that are in memory at a time, by type of device; on others 2^26."""

MIN_COUNT = 0.1
"""Tokens of one step: a code whose running count is below what so many add to it keeps its vector (1e-3 at 0.99)."""


class Quantized(NamedTuple):
    """What a quantizer gives."""

    quantized: Tensor
    """`[N, D, *space]`, of the type of the features; gradients pass through it to the features. D is C but where a
    quantizer says otherwise, by its `vector_size`."""
    codes: Tensor
    """int64 `[N, *space]`, of a `ResidualQuantizer` `[N, depth, *space]`."""
    losses: dict[str, Tensor]
    """Scalars by name, in float32, to be added up; empty where there are none."""


class Quantizer(nn.Module):
    """What quantizers share. A subclass says what becomes of tokens, and what vectors stand for codes.

    Args:
        channels: C, of the features.
        num_codes: K, at least 2.

    Attributes:
        identity_gradient: Whether gradients pass from vectors to features unchanged.
        vector_size: D, of the vectors that stand for codes; C, if a subclass says nothing.

    Raises:
        ValueError: If a number is out of range; in `forward` and `lookup`, if what is given is of another shape or
            type, or a code is out of range.
    """

    identity_gradient = False

    def __init__(self, channels: int, num_codes: int) -> None:
        super().__init__()
        if channels < 1 or num_codes < 2:
            raise ValueError(
                f"{type(self).__name__} needs 1 channel and 2 codes at least, for one code says nothing; got "
                f"channels={channels} and num_codes={num_codes}."
            )
        self.channels, self.num_codes, self.vector_size = channels, num_codes, channels

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # In halves running means would stand still: what a step adds to them is less than halves tell apart.
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, now in self._buffers.items():
            if now is not None and now.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = cast(Tensor, before[name]).to(now.device)
        return self

    def extra_repr(self) -> str:
        """What `print` says."""
        return f"channels={self.channels}, num_codes={self.num_codes}"

    @abstractmethod
    def quantize(self, tokens: Tensor, **settings: Any) -> Quantized:
        """The vectors `[T, D]`, codes `[T]` and losses of tokens `[T, C]`, float32 or better."""
        raise NotImplementedError

    @abstractmethod
    def vectors(self, codes: Tensor) -> Tensor:
        """The vectors `[T, D]` of codes `[T]`."""
        raise NotImplementedError

    def forward(self, features: Tensor, **settings: Any) -> Quantized:
        """Quantize features `[N, C, *space]`; in training mode, learn from them what is not learned by gradient."""
        _check_features(self, features)
        with _without_autocast(features):
            last = features.movedim(1, -1)
            tokens = last.reshape(-1, self.channels).to(torch.promote_types(features.dtype, torch.float32))
            quantized, codes, losses = self.quantize(tokens, **settings)
            quantized = quantized.unflatten(0, last.shape[:-1]).movedim(-1, 1).to(features.dtype)
        return Quantized(quantized, codes.view(last.shape[:-1]), losses)

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors `[N, D, *space]` that stand for codes, int64 `[N, *space]` of 0 to K - 1."""
        check_codes(codes, self.num_codes)
        with _without_autocast(codes):
            return self.vectors(codes.reshape(-1)).unflatten(0, codes.shape).movedim(-1, 1)


def check_codes(codes: Tensor, num_codes: int) -> None:
    """Refuse what is no tensor of codes; a compiled function does not look at them.

    Raises:
        ValueError: If they are not int64, or one is not from 0 to `num_codes` - 1.
    """
    if codes.dtype != torch.int64:
        raise ValueError(f"Codes must be int64, got {codes.dtype}.")
    if codes.numel() and not torch.compiler.is_compiling():
        lowest, highest = (int(code) for code in codes.aminmax())
        if lowest < 0 or highest >= num_codes:
            raise ValueError(
                f"Codes must be from 0 to {num_codes - 1}, got {lowest if lowest < 0 else highest}. They belong to a "
                "model with another codebook."
            )


class _Linear(nn.Linear):
    """In the precision of what it is given, whatever that of the weights is."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight.to(input.dtype), None if self.bias is None else self.bias.to(input.dtype))


def _without_autocast(tensor: Tensor) -> Any:
    """What is computed within it has the precision of what it is given; of shapes alone, nothing is computed."""
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


def _check_features(quantizer: Any, features: Tensor) -> None:
    if features.ndim < 2 or features.shape[1] != quantizer.channels or not features.is_floating_point():
        raise ValueError(
            f"{type(quantizer).__name__} takes float features [N, {quantizer.channels}, ...], got {features.dtype} "
            f"{list(features.shape)}."
        )


def _straight_through(tokens: Tensor, quantized: Tensor) -> Tensor:
    """The second, bit for bit, with the gradient of the first."""
    return quantized.detach() + (tokens - tokens.detach())


def nearest(tokens: Tensor, codebook: Tensor) -> Tensor:
    """The codes `[T]` of the vectors `[K, D]` next to tokens `[T, D]`, the first of equals; by blocks of tokens."""
    offset, directions = codebook.square().sum(1) / 2, codebook.T
    size = max(256, BLOCK.get(tokens.device.type, 2**26) // len(codebook))
    # |x - e|^2 / 2 less |x|^2 / 2, which is the same for all codes
    return torch.cat([torch.addmm(offset, block, directions, alpha=-1).argmin(1) for block in tokens.split(size)])


def _scrambled(numbers: Tensor) -> Tensor:
    """Whole numbers of 0 to 2^62 - 1 that look random, a function of those given (after SplitMix64)."""
    for factor in (-4658895280553007687, -7723592293110705685):
        numbers = (numbers ^ (numbers >> 30)) * factor
    return (numbers ^ (numbers >> 31)) & (2**62 - 1)


class VectorQuantizer(Quantizer):
    """The nearest vector of a codebook, of which the encoder gets the gradient (van den Oord 2017, arXiv 1711.00937).

    Losses are `commitment`, beta |z - sg(e)|^2, and where the codebook is learned by gradient `codebook`,
    |sg(z) - e|^2; both means over tokens and dimensions, as in the authors' code, where the paper sums dimensions.

    By running means, a code is the mean of the tokens that were next to it: N <- d N + (1 - d) n and
    m <- d m + (1 - d) sum(z), e = m / N, after the tokens were quantized. N starts at 1 and m at the code, without
    debiasing, and a code that has hardly a count keeps its vector: so what the first batches do not hit stays where it
    is, where Sonnet's code makes it 0 and others' make it 100,000 times as long.

    A code whose running count is below a share of uniform use, sum(N) / K, begins anew at a token of this step, with
    sum(N) / K as its count; no two at the same token. (Not in the paper.) Which tokens, depends on nothing but the
    number of updates, so processes and runs that go on agree. An optimizer's moments of such a code stay.

    In several processes statistics are of all their tokens, in whatever order module and process group were made.

    Args:
        channels: C, of the features.
        num_codes: K.
        codebook: Whether it is learned as running means ("ema") or by gradient.
        beta: Weight of the commitment loss, at least 0.
        decay: d, in [0, 1).
        eps: Added to counts, which keep their sum, before they divide.
        code_size: D, of the codes. Where given, linear maps lead from the channels to them and back; None is C.
        normalize: Whether codes and what is compared to them have length 1; narrow codes of this kind, as 16,384 of
            size 8 (2110.04627), hardly collapse.
        kmeans_iterations: Of Lloyd's algorithm on the first batch of training, where the codebook begins; 0 for none.
            Empty clusters keep the token that they began with, and a count of 1.
        restart_below: Share of uniform use, in [0, 1), below which codes begin anew; 0 for never, as in the paper.

    Attributes:
        codebook: `[K, D]`; a buffer, or a parameter where it is learned by gradient.
        counts: N, `[K]`.
        last_piece: False while a batch comes in pieces and more are to follow: codes move after the last alone, by the
            statistics of all; codes that begin anew do so at its tokens, k-means at those of the first.
        sums: m, `[K, D]`; only of running means.

    Raises:
        ValueError: If a number is out of range.
    """

    last_piece = True
    codebook: Tensor
    counts: Tensor
    sums: Tensor
    updates: Tensor

    def __init__(
        self,
        channels: int,
        num_codes: int = 512,
        *,
        codebook: Literal["ema", "gradient"] = "ema",
        beta: float = 0.25,
        decay: float = 0.99,
        eps: float = 1e-5,
        code_size: int | None = None,
        normalize: bool = False,
        kmeans_iterations: int = 0,
        restart_below: float = 0.03,
    ) -> None:
        super().__init__(channels, num_codes)
        size = channels if code_size is None else code_size
        if codebook not in ("ema", "gradient"):
            raise ValueError(f'codebook must be "ema" or "gradient", got {codebook!r}.')
        for name, value, right in (
            ("beta", beta, 0 <= beta < math.inf),
            ("decay", decay, 0 <= decay < 1),
            ("eps", eps, 0 <= eps < math.inf),
            ("code_size", size, size >= 1),
            ("kmeans_iterations", kmeans_iterations, kmeans_iterations >= 0),
            ("restart_below", restart_below, 0 <= restart_below < 1),
        ):
            if not right:
                limits = {"code_size": "at least 1"}.get(name, "0 or more" + (" and below 1" if value >= 1 else ""))
                raise ValueError(f"{name} must be {limits}, got {value}.")
        self.beta, self.decay, self.eps, self.normalize = beta, decay, eps, normalize
        self.kmeans_iterations, self.restart_below, self.averages = kmeans_iterations, restart_below, codebook == "ema"
        self.identity_gradient = code_size is None and not normalize
        self.project_in = nn.Identity() if code_size is None else _Linear(channels, size)
        self.project_out = nn.Identity() if code_size is None else _Linear(size, channels)

        limit = math.sqrt(3 / size)  # of variance 1 / D, as in Sonnet
        codes = self._placed(torch.empty(num_codes, size).uniform_(-limit, limit))
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        if self.averages:
            self.register_buffer("codebook", codes)
            self.register_buffer("sums", codes.clone())
        else:
            self.codebook = nn.Parameter(codes)
        self._held: Tensor | None = None  # statistics of the pieces so far
        self._unplaced = kmeans_iterations > 0  # the same as updates == 0, for which the host need not ask the device

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._unplaced = self.kmeans_iterations > 0 and not int(self.updates)

    def _placed(self, vectors: Tensor) -> Tensor:
        """Vectors `[..., D]` where codes may lie."""
        return F.normalize(vectors, dim=-1) if self.normalize else vectors

    def quantize(self, tokens: Tensor, **settings: Any) -> Quantized:
        """As `Quantizer.quantize`; it has no settings."""
        inner = self._placed(self.project_in(tokens))
        found = inner.detach()
        if self.training and self._unplaced:
            self._place(found)
        codebook = self.codebook.to(tokens.dtype)
        with torch.no_grad():
            codes = nearest(found, self._placed(codebook))
        chosen = self._placed(F.embedding(codes, codebook))
        losses = {"commitment": self.beta * F.mse_loss(inner, chosen.detach())}
        if not self.averages:
            losses["codebook"] = F.mse_loss(chosen, found)
        if self.training:
            self._update(found, codes)
        return Quantized(self.project_out(_straight_through(inner, chosen)), codes, losses)

    def vectors(self, codes: Tensor) -> Tensor:
        """As `Quantizer.vectors`."""
        chosen = F.embedding(codes, self.codebook)
        return self.project_out(self._placed(chosen.to(torch.promote_types(chosen.dtype, torch.float32))))

    def _statistics(self, tokens: Tensor, codes: Tensor) -> Tensor:
        """Of this process: how many tokens have each code, and their sum, side by side: `[K, 1 + D]`."""
        counts, sums = tokens.new_zeros(self.num_codes), tokens.new_zeros(self.num_codes, tokens.shape[1])
        counts.index_add_(0, codes, tokens.new_ones(len(codes)))  # for bincount the host waits for the device
        return torch.cat([counts.unsqueeze(1), sums.index_add_(0, codes, tokens)], 1)

    def _candidates(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of all processes that may become codes, drawn from parts of equal size of the joined batch.

        Returns:
            `[K, D]`, with zeros for those of other processes, and the number of those that are distinct. After these
            they repeat.
        """
        here, slots = rank(), torch.arange(self.num_codes, device=tokens.device)
        lengths = torch.zeros(world_size(), dtype=torch.int64, device=tokens.device)
        lengths[here] = len(tokens)
        lengths = total(lengths)
        length, begin = lengths.sum(), lengths[:here].sum()
        distinct = length.clamp(max=self.num_codes)
        noise = _scrambled(slots + self.num_codes * (self.updates + 1))
        order = torch.where(slots < distinct, noise, torch.iinfo(torch.int64).max).argsort() % distinct
        places = order * length // distinct + _scrambled(noise[order]) % (length // distinct) - begin
        own = (places >= 0) & (places < len(tokens))
        return tokens[places.clamp(0, len(tokens) - 1)] * own.unsqueeze(1), distinct

    @torch.no_grad()
    def _place(self, tokens: Tensor) -> None:
        """Begin with the centres that k-means finds among tokens `[T, D]` of all processes."""
        centres = total(self._candidates(tokens)[0])
        counts = torch.ones_like(self.counts)
        for _ in range(self.kmeans_iterations):
            statistics = total(self._statistics(tokens, nearest(tokens, centres)))
            counts, hit = statistics[:, 0].clamp(min=1), statistics[:, :1] > 0
            centres = torch.where(hit, self._placed(statistics[:, 1:] / counts.unsqueeze(1)), centres)
        self._set(centres, counts)
        self._unplaced = False

    @torch.no_grad()
    def _update(self, tokens: Tensor, codes: Tensor) -> None:
        """Let statistics have seen tokens `[T, D]` of these codes, and codes follow them; once all pieces have come."""
        statistics = self._statistics(tokens, codes)
        if self._held is not None:
            statistics = statistics + self._held
        self._held = None if self.last_piece else statistics
        if not self.last_piece:
            return
        if self.restart_below:
            candidates, distinct = self._candidates(tokens)
            statistics = torch.cat([statistics, candidates], 1)
        counts, sums, candidates = total(statistics).tensor_split([1, 1 + tokens.shape[1]], 1)
        self.updates += 1
        self.counts.lerp_(counts.squeeze(1), 1 - self.decay)
        uniform = self.counts.mean()
        if self.averages:
            self.sums.lerp_(sums, 1 - self.decay)
            smooth = (self.counts + self.eps) * (uniform / (uniform + self.eps))
            alive = self.counts >= MIN_COUNT * (1 - self.decay)
            self.codebook.copy_(
                torch.where(alive.unsqueeze(1), self._placed(self.sums / smooth.unsqueeze(1)), self.codebook)
            )
        if self.restart_below:
            dead = self.counts < self.restart_below * uniform
            number = dead.cumsum(0)
            dead &= number <= distinct
            vectors = torch.where(dead.unsqueeze(1), candidates[(number - 1).clamp(min=0)], self.codebook)
            kept = None if not self.averages else torch.where(dead.unsqueeze(1), vectors * uniform, self.sums)
            self._set(vectors, torch.where(dead, uniform, self.counts), kept)

    def _set(self, vectors: Tensor, counts: Tensor, sums: Tensor | None = None) -> None:
        """Set the codebook and its statistics; sums are by default what these vectors and counts would be of."""
        self.codebook.copy_(vectors)
        self.counts.copy_(counts)
        if self.averages:
            self.sums.copy_(vectors * counts.unsqueeze(1) if sums is None else sums)


class FiniteScalarQuantizer(Quantizer):
    """Each of a few dimensions rounded to levels of its own (Mentzer et al. 2023, arXiv 2309.15505), without losses.

    A dimension is bounded by tanh, so that the levels are -1 to 1 in equal steps, and an even number of them 0 and one
    more below it than above, as published; two levels are -1 and 1. Gradients pass the rounding.

    Args:
        channels: C, of the features. Where it is not the number of dimensions, linear maps lead to them and back.
        levels: Of each dimension, at least 2; their product is K. The paper's of about 2^10 codes by default.

    Raises:
        ValueError: If a number is out of range.
    """

    half_width: Tensor
    shift: Tensor
    middle: Tensor
    zero: Tensor
    step: Tensor
    basis: Tensor

    def __init__(self, channels: int, levels: Sequence[int] = (8, 5, 5, 5)) -> None:
        super().__init__(channels, math.prod(levels) if levels else 0)
        if min(levels) < 2:
            raise ValueError(f"levels must be at least 2 each, got {list(levels)}.")
        self.levels = tuple(levels)
        project = channels != len(levels)
        self.project_in = _Linear(channels, len(levels)) if project else nn.Identity()
        self.project_out = _Linear(len(levels), channels) if project else nn.Identity()
        with with_values():
            number = torch.tensor(levels, dtype=torch.float32)
            two, half_width = number == 2, (number - 1) * (1 - 1e-3) / 2
            shift = torch.where((number % 2 == 0) & ~two, 0.5, 0.0).div(half_width).atanh()  # 0 becomes the level 0
            basis = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
            for name, value in {
                "half_width": half_width,
                "shift": shift,
                "middle": (number - 1) / 2,
                "zero": torch.where(two, 0.5, number // 2),
                "step": torch.where(two, 0.5, number // 2).reciprocal(),
                "basis": basis,
            }.items():
                self.register_buffer(name, value, persistent=False)

    def extra_repr(self) -> str:
        """What `print` says."""
        return f"{super().extra_repr()}, levels={self.levels}"

    def quantize(self, tokens: Tensor, **settings: Any) -> Quantized:
        """As `Quantizer.quantize`; it has no settings."""
        bounded = torch.tanh(self.project_in(tokens) + self.shift) * self.half_width + self.middle
        places = bounded.detach().round()
        codes = (places.long() * self.basis).sum(1)
        values = (_straight_through(bounded, places) - self.zero) * self.step
        return Quantized(self.project_out(values), codes, {})

    def vectors(self, codes: Tensor) -> Tensor:
        """As `Quantizer.vectors`."""
        number = self.basis.new_tensor(self.levels)
        places = codes.unsqueeze(1) // self.basis % number
        return self.project_out((places - self.zero) * self.step)


class GumbelQuantizer(Quantizer):
    """A mixture of all codes, from the Gumbel-softmax distribution (1611.01144), as in DALL-E's dVAE (2102.12092).

    In training each token becomes the vectors' mean with weights softmax((logits + Gumbel noise) / temperature), in
    both directions; with `straight_through` forward it is the vector of the largest alone (1611.01144, 2.2). In
    evaluation it is that of the largest logit, without noise. The loss `kl` is that of the logits' distribution to the
    uniform one, nats, a mean over tokens, whatever the temperature.

    Weights of all codes are kept for the backward pass; there is no relaxation without them.

    Args:
        channels: C, of the features.
        num_codes: K.
        temperature: Above 0, where `forward` is given none.
        kl_weight: Of the loss, at least 0.
        straight_through: Whether one code is taken in training.
        code_size: D, of the vectors; None is C.

    Raises:
        ValueError: If a number is out of range; in `forward`, if the temperature is.
    """

    def __init__(
        self,
        channels: int,
        num_codes: int = 8192,
        *,
        temperature: float = 1.0,
        kl_weight: float = 1.0,
        straight_through: bool = False,
        code_size: int | None = None,
    ) -> None:
        super().__init__(channels, num_codes)
        self.vector_size = channels if code_size is None else code_size
        if self.vector_size < 1 or not 0 <= kl_weight < math.inf:
            raise ValueError(
                f"code_size must be at least 1 and kl_weight 0 or more, got {self.vector_size} and {kl_weight}."
            )
        self.temperature, self.kl_weight, self.hard = _checked_temperature(temperature), kl_weight, straight_through
        self.to_logits = _Linear(channels, num_codes)
        self.codebook = _Linear(num_codes, self.vector_size)
        for layer in (self.to_logits, self.codebook):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)

    def quantize(self, tokens: Tensor, **settings: Any) -> Quantized:
        """As `Quantizer.quantize`.

        Args:
            tokens: `[T, C]`.
            **settings: `temperature`, a number or a scalar tensor, in place of the module's own; `relaxed`, whether
                codes are mixed, in place of the mode.
        """
        return self._quantize(tokens, **settings)

    def _quantize(
        self, tokens: Tensor, temperature: float | Tensor | None = None, relaxed: bool | None = None
    ) -> Quantized:
        temperature = self.temperature if temperature is None else _checked_temperature(temperature)
        logits = self.to_logits(tokens)
        log_probs = logits.log_softmax(1)
        kl = (log_probs.exp() * log_probs).sum(1).mean() + math.log(self.num_codes)
        losses = {"kl": self.kl_weight * kl}
        if not (self.training if relaxed is None else relaxed):
            codes = logits.argmax(1)
            return Quantized(self.vectors(codes), codes, losses)
        drawn = logits + _gumbel(logits)
        codes = drawn.detach().argmax(1)
        weights = (drawn / temperature).softmax(1)
        if self.hard:
            weights = _straight_through(weights, F.one_hot(codes, self.num_codes).to(weights.dtype))
        return Quantized(self.codebook(weights), codes, losses)

    def vectors(self, codes: Tensor) -> Tensor:
        """As `Quantizer.vectors`."""
        return F.embedding(codes, self.codebook.weight.T) + self.codebook.bias


def _gumbel(logits: Tensor) -> Tensor:
    """Standard Gumbel noise, from the random state."""
    return -torch.empty_like(logits).exponential_().log()


def _checked_temperature(temperature: float | Tensor) -> float | Tensor:
    if not isinstance(temperature, Tensor) and not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be above 0, got {temperature}.")
    return temperature


class ResidualQuantizer(nn.Module):
    """Quantizers one after the other, each for what those before it left (as in 2107.03312 and 2203.01941).

    Their vectors add up, and losses of a name do so too. Where gradients pass each of them unchanged, they pass the
    sum so, and each depth pulls at the features by its own loss; else gradients go through all depths as computed.

    Args:
        stages: The quantizers, from coarse to fine, all of the same channels and number of codes.
        growth: By how much what is left is enlarged from depth to depth, above 0, and what comes out made smaller; for
            quantizers that do not learn how large it is, such as `FiniteScalarQuantizer`.

    Raises:
        ValueError: If there is no quantizer, or one stands for two depths, or they do not fit together.
    """

    def __init__(self, stages: Sequence[Quantizer], growth: float = 1.0) -> None:
        super().__init__()
        widths = {(stage.channels, stage.num_codes) for stage in stages}
        if any(stage.vector_size != stage.channels for stage in stages):
            raise ValueError(
                "ResidualQuantizer takes away from features what each depth gives, so vectors must be as long as "
                f"features: {stages[0].channels}; got vectors of {[stage.vector_size for stage in stages]}."
            )
        if len(widths) != 1 or len({id(stage) for stage in stages}) != len(stages) or not 0 < growth < math.inf:
            raise ValueError(
                "ResidualQuantizer needs quantizers of the same channels and number of codes, each once, and a growth "
                f"above 0; got {[(stage.channels, stage.num_codes) for stage in stages]} and {growth}."
            )
        ((self.channels, self.num_codes),) = widths
        self.vector_size = self.channels
        self.stages, self.growth = nn.ModuleList(stages), growth
        self.identity_gradient = all(stage.identity_gradient for stage in stages)

    def forward(self, features: Tensor, **settings: Any) -> Quantized:
        """Quantize features `[N, C, *space]`."""
        _check_features(self, features)
        with _without_autocast(features):
            rest = features.to(torch.promote_types(features.dtype, torch.float32))
            whole, parts, codes = rest, [], []
            losses: dict[str, Tensor] = {}
            for depth, stage in enumerate(self.stages):
                scale = self.growth**depth
                part, code, own = stage(rest * scale, **settings)
                parts.append(part / scale)
                rest = rest - (parts[-1].detach() if self.identity_gradient else parts[-1])
                codes.append(code)
                losses |= {name: losses[name] + value if name in losses else value for name, value in own.items()}
            summed = torch.stack(parts).sum(0)
            quantized = _straight_through(whole, summed) if self.identity_gradient else summed
        return Quantized(quantized.to(features.dtype), torch.stack(codes, 1), losses)

    def lookup(self, codes: Tensor) -> Tensor:
        """The vectors `[N, C, *space]` of codes, int64 `[N, depth, *space]`; of fewer depths, the first, a coarse one.

        Raises:
            ValueError: If there are none or too many, or one is out of range.
        """
        if codes.ndim < 2 or not 1 <= codes.shape[1] <= len(self.stages):
            raise ValueError(
                f"Codes must be [N, depth, ...] of up to {len(self.stages)} depths, got {list(codes.shape)}."
            )
        stages = cast(list[Quantizer], list(self.stages))
        parts = [stages[i].lookup(code) / self.growth**i for i, code in enumerate(codes.unbind(1))]
        return torch.stack(parts).sum(0)


class DeepQuantizer(ResidualQuantizer):
    """A `ResidualQuantizer` of so many quantizers of one kind, as configurations name it.

    Args:
        channels: C, of the features.
        depth: How many, at least 1.
        quantizer: Makes each.
        growth: As of `ResidualQuantizer`.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        channels: int,
        depth: int = 4,
        quantizer: Callable[[int], Quantizer] = VectorQuantizer,
        growth: float = 1.0,
    ) -> None:
        super().__init__([quantizer(channels) for _ in range(depth)], growth)
