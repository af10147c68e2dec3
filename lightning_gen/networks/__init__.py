"""Generators, discriminators, density networks and a classifier: plain modules, one file per paper."""

from lightning_gen.networks.cyclegan import ResNetGenerator, UNetGenerator
from lightning_gen.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from lightning_gen.networks.lenet import LeNet
from lightning_gen.networks.lmconv import LMConvNetwork
from lightning_gen.networks.mlp import MLPDiscriminator, MLPGenerator
from lightning_gen.networks.patchgan import PatchDiscriminator, PixelDiscriminator
from lightning_gen.networks.pixelcnn import GatedPixelCNN, PixelCNN
from lightning_gen.networks.resnet import ResidualDiscriminator, ResidualGenerator

__all__ = [
    "DCGANDiscriminator",
    "DCGANGenerator",
    "GatedPixelCNN",
    "LMConvNetwork",
    "LeNet",
    "MLPDiscriminator",
    "MLPGenerator",
    "PatchDiscriminator",
    "PixelCNN",
    "PixelDiscriminator",
    "ResNetGenerator",
    "ResidualDiscriminator",
    "ResidualGenerator",
    "UNetGenerator",
]
