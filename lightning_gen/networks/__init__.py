"""Generators, discriminators, encoders, decoders, density networks and a classifier: plain modules, one file per paper.

`small` of a class are the sizes of the smallest network of its kind, as tests and benchmarks make them.
"""

from lightning_gen.networks.contrastive import CaptionEncoder, PictureEncoder
from lightning_gen.networks.cyclegan import ResNetGenerator, UNetGenerator
from lightning_gen.networks.dalle import DALLEDecoder, DALLEEncoder
from lightning_gen.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from lightning_gen.networks.gated_pixelcnn import GatedPixelCNNNetwork
from lightning_gen.networks.gpt import GPTNetwork
from lightning_gen.networks.lenet import LeNet
from lightning_gen.networks.lmconv import LMConvNetwork
from lightning_gen.networks.mlp import MLPDiscriminator, MLPGenerator
from lightning_gen.networks.patchgan import PatchDiscriminator, PixelDiscriminator
from lightning_gen.networks.pixel_rnn import DiagonalBiLSTMNetwork, RowLSTMNetwork
from lightning_gen.networks.pixelcnn import PixelCNNNetwork
from lightning_gen.networks.pixelcnn_pp import PixelCNNPPNetwork
from lightning_gen.networks.pixelsnail import PixelSNAILNetwork
from lightning_gen.networks.progan import ProGANDiscriminator, ProGANGenerator
from lightning_gen.networks.r3gan import R3GANDiscriminator, R3GANGenerator
from lightning_gen.networks.resnet import ResidualDiscriminator, ResidualGenerator
from lightning_gen.networks.stylegan import MappingNetwork, StyleGANDiscriminator, StyleGANGenerator
from lightning_gen.networks.text_gpt import TextGPTNetwork
from lightning_gen.networks.vae import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from lightning_gen.networks.vqgan import GaussianLatent, VQGANDecoder, VQGANEncoder
from lightning_gen.networks.vqvae import VQVAE2Decoder, VQVAE2Encoder, VQVAEDecoder, VQVAEEncoder

__all__ = [
    "CaptionEncoder",
    "ConvDecoder",
    "ConvEncoder",
    "DALLEDecoder",
    "DALLEEncoder",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DiagonalBiLSTMNetwork",
    "GPTNetwork",
    "GatedPixelCNNNetwork",
    "GaussianLatent",
    "LMConvNetwork",
    "LeNet",
    "MLPDecoder",
    "MLPDiscriminator",
    "MLPEncoder",
    "MLPGenerator",
    "MappingNetwork",
    "PatchDiscriminator",
    "PictureEncoder",
    "PixelCNNNetwork",
    "PixelCNNPPNetwork",
    "PixelDiscriminator",
    "PixelSNAILNetwork",
    "ProGANDiscriminator",
    "ProGANGenerator",
    "R3GANDiscriminator",
    "R3GANGenerator",
    "ResNetGenerator",
    "ResidualDiscriminator",
    "ResidualGenerator",
    "RowLSTMNetwork",
    "StyleGANDiscriminator",
    "StyleGANGenerator",
    "TextGPTNetwork",
    "UNetGenerator",
    "VQGANDecoder",
    "VQGANEncoder",
    "VQVAE2Decoder",
    "VQVAE2Encoder",
    "VQVAEDecoder",
    "VQVAEEncoder",
]
