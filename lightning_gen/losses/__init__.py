"""Losses, likelihoods and penalties: formulas only, no optimizer, no backward."""

from lightning_gen.losses.adversarial import (
    AdversarialLoss,
    AuxiliaryClassifier,
    Hinge,
    LeastSquares,
    Minimax,
    NonSaturating,
    RelativisticPairing,
    SeparableLoss,
    Wasserstein,
)
from lightning_gen.losses.categorical import (
    bernoulli_log_prob,
    bernoulli_sample,
    categorical_log_prob,
    categorical_sample,
    images_to_levels,
    keep_likeliest,
    levels_to_images,
)
from lightning_gen.losses.constraints import Constraint, WeightClipping
from lightning_gen.losses.contrastive import contrastive_loss
from lightning_gen.losses.densities import (
    gaussian_log_prob,
    logit_laplace_log_prob,
    logit_laplace_map,
    logit_laplace_unmap,
)
from lightning_gen.losses.divergences import FDivergence
from lightning_gen.losses.images import GaussianPixels, ImageLikelihood, LogitLaplace, Pixelwise
from lightning_gen.losses.latents import (
    categorical_kl,
    categorical_token_kl,
    free_bits,
    gaussian_kl,
    gaussian_latent_kl,
    importance_weighted_bound,
)
from lightning_gen.losses.logistic_mixture import (
    logistic_mixture_channels,
    logistic_mixture_log_prob,
    logistic_mixture_sample,
)
from lightning_gen.losses.penalties import DRAGAN, R1, R2, Drift, GradientPenalty, InputGradientPenalty, Penalty
from lightning_gen.losses.perceptual import LPIPSDistance, PerceptualLoss, VGGDistance
from lightning_gen.losses.pixels import Bernoulli, Categorical, LogisticMixture, PixelLikelihood
from lightning_gen.losses.tricks import InstanceNoise, LabelFlipping, LabelSmoothing

__all__ = [
    "DRAGAN",
    "R1",
    "R2",
    "AdversarialLoss",
    "AuxiliaryClassifier",
    "Bernoulli",
    "Categorical",
    "Constraint",
    "Drift",
    "FDivergence",
    "GaussianPixels",
    "GradientPenalty",
    "Hinge",
    "ImageLikelihood",
    "InputGradientPenalty",
    "InstanceNoise",
    "LPIPSDistance",
    "LabelFlipping",
    "LabelSmoothing",
    "LeastSquares",
    "LogisticMixture",
    "LogitLaplace",
    "Minimax",
    "NonSaturating",
    "Penalty",
    "PerceptualLoss",
    "PixelLikelihood",
    "Pixelwise",
    "RelativisticPairing",
    "SeparableLoss",
    "VGGDistance",
    "Wasserstein",
    "WeightClipping",
    "bernoulli_log_prob",
    "bernoulli_sample",
    "categorical_kl",
    "categorical_log_prob",
    "categorical_sample",
    "categorical_token_kl",
    "contrastive_loss",
    "free_bits",
    "gaussian_kl",
    "gaussian_latent_kl",
    "gaussian_log_prob",
    "images_to_levels",
    "importance_weighted_bound",
    "keep_likeliest",
    "levels_to_images",
    "logistic_mixture_channels",
    "logistic_mixture_log_prob",
    "logistic_mixture_sample",
    "logit_laplace_log_prob",
    "logit_laplace_map",
    "logit_laplace_unmap",
]
