"""Generators and discriminators: plain modules, one file per paper."""

from lightning_gen.networks.cyclegan import ResNetGenerator, UNetGenerator
from lightning_gen.networks.patchgan import PatchDiscriminator, PixelDiscriminator

__all__ = ["PatchDiscriminator", "PixelDiscriminator", "ResNetGenerator", "UNetGenerator"]
