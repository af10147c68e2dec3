"""Models: one LightningModule a paper."""

from lightning_gen.models.classifier import Classifier
from lightning_gen.models.code_prior import CodePrior
from lightning_gen.models.cyclegan import CycleGAN
from lightning_gen.models.dcgan import DCGAN
from lightning_gen.models.fgan import FGAN
from lightning_gen.models.gan import GAN
from lightning_gen.models.gated_pixelcnn import GatedPixelCNN
from lightning_gen.models.gumbel_vae import GumbelVAE
from lightning_gen.models.kde import KDE
from lightning_gen.models.lmconv import LMConv
from lightning_gen.models.lsgan import LSGAN
from lightning_gen.models.pix2pix import Pix2Pix
from lightning_gen.models.pixel_rnn import DiagonalBiLSTM, RowLSTM
from lightning_gen.models.pixelcnn import PixelCNN
from lightning_gen.models.pixelcnn_pp import PixelCNNPP
from lightning_gen.models.pixelsnail import PixelSNAIL
from lightning_gen.models.progan import ProGAN
from lightning_gen.models.r3gan import R3GAN
from lightning_gen.models.scorer import Scorer
from lightning_gen.models.sngan import SNGAN
from lightning_gen.models.stylegan import StyleGAN
from lightning_gen.models.text_to_image import TextToImage
from lightning_gen.models.vae import VAE
from lightning_gen.models.vqgan import VQGAN
from lightning_gen.models.vqvae import VQVAE
from lightning_gen.models.vqvae2 import VQVAE2
from lightning_gen.models.wgan import WGAN, WGANGP

__all__ = [
    "DCGAN",
    "FGAN",
    "GAN",
    "KDE",
    "LSGAN",
    "R3GAN",
    "SNGAN",
    "VAE",
    "VQGAN",
    "VQVAE",
    "VQVAE2",
    "WGAN",
    "WGANGP",
    "Classifier",
    "CodePrior",
    "CycleGAN",
    "DiagonalBiLSTM",
    "GatedPixelCNN",
    "GumbelVAE",
    "LMConv",
    "Pix2Pix",
    "PixelCNN",
    "PixelCNNPP",
    "PixelSNAIL",
    "ProGAN",
    "RowLSTM",
    "Scorer",
    "StyleGAN",
    "TextToImage",
]
