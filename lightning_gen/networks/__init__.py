"""Generators, discriminators and a classifier: plain modules, one file per paper."""

from lightning_gen.networks.cyclegan import ResNetGenerator, UNetGenerator
from lightning_gen.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from lightning_gen.networks.lenet import LeNet
from lightning_gen.networks.mlp import MLPDiscriminator, MLPGenerator
from lightning_gen.networks.patchgan import PatchDiscriminator, PixelDiscriminator
from lightning_gen.networks.resnet import ResidualDiscriminator, ResidualGenerator

__all__ = [
    "DCGANDiscriminator",
    "DCGANGenerator",
    "LeNet",
    "MLPDiscriminator",
    "MLPGenerator",
    "PatchDiscriminator",
    "PixelDiscriminator",
    "ResNetGenerator",
    "ResidualDiscriminator",
    "ResidualGenerator",
    "UNetGenerator",
]
