"""f-divergences as adversarial losses (f-GAN, 1606.00709)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gen.losses.adversarial import SeparableLoss
from lightning_gen.losses.precision import full

DivergenceName = Literal[
    "total_variation",
    "kl",
    "reverse_kl",
    "pearson",
    "neyman",
    "squared_hellinger",
    "jensen_shannon",
    "gan",
]
GeneratorLossName = Literal["minimax", "alternative"]


class _Formulas(NamedTuple):
    """One row of the paper's tables 2, 5 and 6."""

    generating: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    conjugate: Callable[[Tensor], Tensor]
    domain: tuple[float, float]
    activation: Callable[[Tensor], Tensor]
    conjugate_of_activation: Callable[[Tensor], Tensor]


_LOG_2 = math.log(2)
_FORMULAS: dict[str, _Formulas] = {
    "total_variation": _Formulas(
        generating=lambda u: (u - 1).abs() / 2,
        derivative=lambda u: (u - 1).sign() / 2,
        conjugate=lambda t: t,
        domain=(-0.5, 0.5),
        activation=lambda v: v.tanh() / 2,
        conjugate_of_activation=lambda v: v.tanh() / 2,
    ),
    "kl": _Formulas(
        generating=lambda u: torch.xlogy(u, u),
        derivative=lambda u: 1 + u.log(),
        conjugate=lambda t: (t - 1).exp(),
        domain=(-math.inf, math.inf),
        activation=lambda v: v,
        conjugate_of_activation=lambda v: (v - 1).exp(),
    ),
    "reverse_kl": _Formulas(
        generating=lambda u: -u.log(),
        derivative=lambda u: -1 / u,
        conjugate=lambda t: -1 - (-t).log(),
        domain=(-math.inf, 0.0),
        activation=lambda v: -(-v).exp(),
        conjugate_of_activation=lambda v: v - 1,
    ),
    "pearson": _Formulas(
        generating=lambda u: (u - 1).square(),
        derivative=lambda u: 2 * (u - 1),
        conjugate=lambda t: t.square() / 4 + t,
        domain=(-math.inf, math.inf),
        activation=lambda v: v,
        conjugate_of_activation=lambda v: v.square() / 4 + v,
    ),
    "neyman": _Formulas(
        generating=lambda u: (1 - u).square() / u,
        derivative=lambda u: 1 - 1 / u.square(),
        conjugate=lambda t: 2 - 2 * (1 - t).sqrt(),
        domain=(-math.inf, 1.0),
        activation=lambda v: -torch.expm1(-v),
        conjugate_of_activation=lambda v: -2 * torch.expm1(-v / 2),
    ),
    "squared_hellinger": _Formulas(
        generating=lambda u: (u.sqrt() - 1).square(),
        derivative=lambda u: 1 - u.rsqrt(),
        conjugate=lambda t: t / (1 - t),
        domain=(-math.inf, 1.0),
        activation=lambda v: -torch.expm1(-v),
        conjugate_of_activation=torch.expm1,
    ),
    "jensen_shannon": _Formulas(
        generating=lambda u: torch.xlogy(u, u) - (u + 1) * ((u + 1) / 2).log(),
        derivative=lambda u: _LOG_2 - torch.log1p(1 / u),
        conjugate=lambda t: -(2 - t.exp()).log(),
        domain=(-math.inf, _LOG_2),
        activation=lambda v: _LOG_2 - F.softplus(-v),
        conjugate_of_activation=lambda v: F.softplus(v) - _LOG_2,
    ),
    "gan": _Formulas(
        generating=lambda u: torch.xlogy(u, u) - (u + 1) * torch.log1p(u),
        derivative=lambda u: -torch.log1p(1 / u),
        conjugate=lambda t: -(-torch.expm1(t)).log(),
        domain=(-math.inf, 0.0),
        activation=lambda v: -F.softplus(-v),
        conjugate_of_activation=F.softplus,
    ),
}


@dataclass(frozen=True)
class FDivergence(SeparableLoss):
    """f-GAN (1606.00709): the discriminator maximises a lower bound on D_f(P || Q), P the data's law and Q the model's.

    D_f(P || Q) = E_Q f(p / q) >= E_P T - E_Q f*(T), with T = g_f(v) for raw scores v (eq. 4 to 6). The bound is tight
    at T = f'(p / q).

    Args:
        divergence: Which f:

            * `"total_variation"`: |u - 1| / 2, half the L1 distance.
            * `"kl"`: u log u, KL(P || Q).
            * `"reverse_kl"`: -log u, KL(Q || P).
            * `"pearson"`: (u - 1)^2.
            * `"neyman"`: (1 - u)^2 / u.
            * `"squared_hellinger"`: (sqrt u - 1)^2, between 0 and 2.
            * `"jensen_shannon"`: u log u - (u + 1) log((u + 1) / 2), twice the usual JS, between 0 and 2 log 2.
            * `"gan"`: u log u - (u + 1) log(u + 1), twice the usual JS minus log 4; the loss is `Minimax`.

            f is taken on the whole line for total variation and Pearson, so f* is the paper's.
        generator_loss: `"minimax"`, the default, is the paper's algorithm 1: the generator minimises the same bound,
            -E f*(g_f(v)). `"alternative"` is its section 3.2: it maximises E g_f(v), as `NonSaturating` does for
            `"gan"`. They differ most where the discriminator is sure of its fakes, v far below zero. There minimax
            saturates for KL, squared Hellinger, Jensen-Shannon and GAN, and turns round for Pearson (at v = -2); the
            alternative does neither, but for reverse KL, Neyman and squared Hellinger its gradient grows as exp(-v).

    Raises:
        ValueError: If a name is unknown.
    """

    divergence: DivergenceName
    generator_loss: GeneratorLossName = "minimax"

    def __post_init__(self) -> None:
        for field, given, known in (
            ("divergence", self.divergence, get_args(DivergenceName)),
            ("generator_loss", self.generator_loss, get_args(GeneratorLossName)),
        ):
            if given not in known:
                raise ValueError(f"FDivergence got {field}={given!r}; known are {', '.join(known)}.")

    @property
    def boundary(self) -> float:
        """The score v at which g_f(v) = f'(1), the best T where a picture is as likely real as fake."""
        return 1.0 if self.divergence == "kl" else 0.0

    @property
    def domain(self) -> tuple[float, float]:
        """The ends of the interval on which f* is finite: what T may be."""
        return self._formulas.domain

    def generating(self, u: Tensor) -> Tensor:
        """f(u), for ratios u = p / q > 0; f(1) = 0, but -log 4 for `"gan"`."""
        return self._formulas.generating(u)

    def derivative(self, u: Tensor) -> Tensor:
        """f'(u): the best T where p / q = u."""
        return self._formulas.derivative(u)

    def conjugate(self, t: Tensor) -> Tensor:
        """f*(t) = sup over u of u t - f(u); infinite outside the domain."""
        low, high = self.domain
        return self._formulas.conjugate(t).masked_fill((t < low) | (t > high), math.inf)

    def activation(self, v: Tensor) -> Tensor:
        """g_f(v): increasing, from any score to the domain of f*, so that a high score means "real".

        The paper's table 2; for Neyman, which is in the appendix only, 1 - exp(-v), increasing as the others are.
        """
        return self._formulas.activation(v)

    def conjugate_of_activation(self, v: Tensor) -> Tensor:
        """f*(g_f(v)), simplified by hand: composed, it would be log(1 - exp) of rounded numbers."""
        return self._formulas.conjugate_of_activation(v)

    def real_terms(self, scores: Tensor) -> Tensor:
        """-g_f(D(x))."""
        return -self.activation(full(scores))

    def fake_terms(self, scores: Tensor) -> Tensor:
        """f*(g_f(D(G(z))))."""
        return self.conjugate_of_activation(full(scores))

    def generator(self, fake_scores: Tensor, real_scores: Tensor | None = None) -> Tensor:
        """-E f*(g_f(D(G(z)))), or -E g_f(D(G(z)))."""
        terms = self.fake_terms if self.generator_loss == "minimax" else self.activation
        return -terms(full(fake_scores)).mean()

    def bound(self, real_scores: Tensor, fake_scores: Tensor) -> Tensor:
        """E g_f(D(x)) - E f*(g_f(D(G(z)))), at most D_f(P || Q): scalar, to log while the bound tightens."""
        return -self.discriminator(real_scores, fake_scores)

    @property
    def _formulas(self) -> _Formulas:
        return _FORMULAS[self.divergence]
