"""Metrics: torchmetrics modules and plain functions, and the feature extractors that they look through."""

from lightning_gen.extractors.base import FeatureExtractor
from lightning_gen.extractors.classifier import ClassifierFeatures
from lightning_gen.extractors.inception import InceptionFeatures
from lightning_gen.extractors.module import ModuleFeatures, PointFeatures
from lightning_gen.extractors.scenes import SceneFeatures
from lightning_gen.metrics.attributes import AttributeAccuracy
from lightning_gen.metrics.captions import CaptionScore
from lightning_gen.metrics.codebook import CodebookUsage
from lightning_gen.metrics.feature_metrics import (
    FrechetInceptionDistance,
    InceptionScore,
    KernelInceptionDistance,
    PrecisionRecall,
)
from lightning_gen.metrics.frechet import frechet_distance, frechet_distance_between, frechet_infinity
from lightning_gen.metrics.likelihood import BitsPerDim, NegativeLogLikelihood
from lightning_gen.metrics.manifold import authenticity, memorisation_ratio, precision_recall
from lightning_gen.metrics.parzen import ParzenWindow
from lightning_gen.metrics.path_length import LPIPS, perceptual_path_length
from lightning_gen.metrics.scores import inception_score, kernel_distance
from lightning_gen.metrics.similarity import psnr, ssim
from lightning_gen.metrics.toy import ModeCoverage, ToyMetrics, mode_coverage, wasserstein_1

__all__ = [
    "LPIPS",
    "AttributeAccuracy",
    "BitsPerDim",
    "CaptionScore",
    "ClassifierFeatures",
    "CodebookUsage",
    "FeatureExtractor",
    "FrechetInceptionDistance",
    "InceptionFeatures",
    "InceptionScore",
    "KernelInceptionDistance",
    "ModeCoverage",
    "ModuleFeatures",
    "NegativeLogLikelihood",
    "ParzenWindow",
    "PointFeatures",
    "PrecisionRecall",
    "SceneFeatures",
    "ToyMetrics",
    "authenticity",
    "frechet_distance",
    "frechet_distance_between",
    "frechet_infinity",
    "inception_score",
    "kernel_distance",
    "memorisation_ratio",
    "mode_coverage",
    "perceptual_path_length",
    "precision_recall",
    "psnr",
    "ssim",
    "wasserstein_1",
]
