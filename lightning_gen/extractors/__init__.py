"""Frozen networks that read pictures for the figures, and for perceptual losses."""

from lightning_gen.extractors.base import FeatureExtractor, Features
from lightning_gen.extractors.classifier import ClassifierFeatures
from lightning_gen.extractors.distance import FeatureDistance
from lightning_gen.extractors.inception import InceptionFeatures
from lightning_gen.extractors.module import ModuleFeatures, PointFeatures
from lightning_gen.extractors.scenes import SceneFeatures

__all__ = [
    "ClassifierFeatures",
    "FeatureDistance",
    "FeatureExtractor",
    "Features",
    "InceptionFeatures",
    "ModuleFeatures",
    "PointFeatures",
    "SceneFeatures",
]
