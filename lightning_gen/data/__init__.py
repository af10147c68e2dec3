"""Data modules, and the built-in pictures."""

from lightning_gen.data.base import Draw, DrawSampler, ImageDataModule, ResumableLoader
from lightning_gen.data.codes import Codes
from lightning_gen.data.datasets import CIFAR10, MNIST, Digits, FashionMNIST
from lightning_gen.data.folders import ImageFolder, PairedImageFolder, UnpairedImageFolder
from lightning_gen.data.huggingface import HuggingFaceImages
from lightning_gen.data.prepared import PreparedFolder
from lightning_gen.data.scenes import CaptionedScenes, PairedScenes, Scenes, UnpairedScenes
from lightning_gen.data.shards import WebDatasetImages
from lightning_gen.data.toy import (
    GridOfGaussians,
    Line,
    Mixture,
    ParallelLines,
    PointDistribution,
    RingOfGaussians,
    Spiral,
    SwissRoll,
    TwoGaussians,
)

__all__ = [
    "CIFAR10",
    "MNIST",
    "CaptionedScenes",
    "Codes",
    "Digits",
    "Draw",
    "DrawSampler",
    "FashionMNIST",
    "GridOfGaussians",
    "HuggingFaceImages",
    "ImageDataModule",
    "ImageFolder",
    "Line",
    "Mixture",
    "PairedImageFolder",
    "PairedScenes",
    "ParallelLines",
    "PointDistribution",
    "PreparedFolder",
    "ResumableLoader",
    "RingOfGaussians",
    "Scenes",
    "Spiral",
    "SwissRoll",
    "TwoGaussians",
    "UnpairedImageFolder",
    "UnpairedScenes",
    "WebDatasetImages",
]
