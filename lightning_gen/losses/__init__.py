"""Losses and penalties: formulas only, no optimizer, no backward."""

from lightning_gen.losses.adversarial import AdversarialLoss, LeastSquares, NonSaturating, Wasserstein
from lightning_gen.losses.penalties import GradientPenalty, Penalty

__all__ = ["AdversarialLoss", "GradientPenalty", "LeastSquares", "NonSaturating", "Penalty", "Wasserstein"]
