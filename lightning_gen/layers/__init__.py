"""Single layers and parametrizations."""

from lightning_gen.layers.conditional import ConditionalBatchNorm2d
from lightning_gen.layers.convolution import ReflectConv2d
from lightning_gen.layers.normalization import InstanceNorm2d
from lightning_gen.layers.resampling import DownsamplingConv2d, UpsamplingConv2d
from lightning_gen.layers.spectral_norm import (
    ConvolutionSpectralNorm,
    SpectralNorm,
    add_spectral_norm,
    circular_singular_values,
    power_iteration,
    spectral_norm,
    spectral_norms,
)

__all__ = [
    "ConditionalBatchNorm2d",
    "ConvolutionSpectralNorm",
    "DownsamplingConv2d",
    "InstanceNorm2d",
    "ReflectConv2d",
    "SpectralNorm",
    "UpsamplingConv2d",
    "add_spectral_norm",
    "circular_singular_values",
    "power_iteration",
    "spectral_norm",
    "spectral_norms",
]
