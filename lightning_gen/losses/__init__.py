"""Losses and penalties: formulas only, no optimizer, no backward."""

from lightning_gen.losses.adversarial import (
    AdversarialLoss,
    Hinge,
    LeastSquares,
    Minimax,
    NonSaturating,
    SeparableLoss,
    Wasserstein,
)
from lightning_gen.losses.constraints import Constraint, WeightClipping
from lightning_gen.losses.divergences import FDivergence
from lightning_gen.losses.penalties import DRAGAN, R1, R2, Drift, GradientPenalty, InputGradientPenalty, Penalty
from lightning_gen.losses.tricks import InstanceNoise, LabelFlipping, LabelSmoothing

__all__ = [
    "DRAGAN",
    "R1",
    "R2",
    "AdversarialLoss",
    "Constraint",
    "Drift",
    "FDivergence",
    "GradientPenalty",
    "Hinge",
    "InputGradientPenalty",
    "InstanceNoise",
    "LabelFlipping",
    "LabelSmoothing",
    "LeastSquares",
    "Minimax",
    "NonSaturating",
    "Penalty",
    "SeparableLoss",
    "Wasserstein",
    "WeightClipping",
]
