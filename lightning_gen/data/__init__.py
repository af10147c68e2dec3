"""Data modules, and the built-in pictures."""

from lightning_gen.data.base import Draw, DrawSampler, ImageDataModule, ResumableLoader
from lightning_gen.data.datasets import CIFAR10, MNIST, Digits, FashionMNIST
from lightning_gen.data.folders import ImageFolder, PairedImageFolder, UnpairedImageFolder
from lightning_gen.data.scenes import PairedScenes, Scenes, UnpairedScenes

__all__ = [
    "CIFAR10",
    "MNIST",
    "Digits",
    "Draw",
    "DrawSampler",
    "FashionMNIST",
    "ImageDataModule",
    "ImageFolder",
    "PairedImageFolder",
    "PairedScenes",
    "ResumableLoader",
    "Scenes",
    "UnpairedImageFolder",
    "UnpairedScenes",
]
