"""Models: one LightningModule a paper."""

from lightning_gen.models.cyclegan import CycleGAN
from lightning_gen.models.pix2pix import Pix2Pix

__all__ = ["CycleGAN", "Pix2Pix"]
