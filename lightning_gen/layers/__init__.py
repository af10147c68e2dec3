"""Single layers and parametrizations."""

from lightning_gen.layers.ada import ADA
from lightning_gen.layers.augment import Augmentation, DiffAugment
from lightning_gen.layers.conditional import ConditionalBatchNorm2d
from lightning_gen.layers.convolution import ReflectConv2d
from lightning_gen.layers.equalized import EqualizedConv2d, EqualizedLinear
from lightning_gen.layers.local_masked import LocallyMaskedConv2d, local_taps
from lightning_gen.layers.lstm import DiagonalBiLSTMLayer, RowLSTMLayer
from lightning_gen.layers.masked import MaskedConv2d, VerticalConv2d
from lightning_gen.layers.minibatch import MinibatchStd
from lightning_gen.layers.normalization import InstanceNorm2d, PixelNorm
from lightning_gen.layers.orders import (
    as_order,
    generalized_hilbert_order,
    hilbert_order,
    hole_last,
    local_masks,
    random_order,
    raster_order,
    s_curve_order,
    symmetries,
    transformed,
)
from lightning_gen.layers.quantize import (
    DeepQuantizer,
    FiniteScalarQuantizer,
    GumbelQuantizer,
    Quantized,
    Quantizer,
    ResidualQuantizer,
    VectorQuantizer,
)
from lightning_gen.layers.resampling import DownsamplingConv2d, UpsamplingConv2d
from lightning_gen.layers.shifted import (
    DownRightShiftedConv2d,
    DownRightShiftedConvTranspose2d,
    DownShiftedConv2d,
    DownShiftedConvTranspose2d,
)
from lightning_gen.layers.spectral_norm import (
    ConvolutionSpectralNorm,
    SpectralNorm,
    add_spectral_norm,
    circular_singular_values,
    power_iteration,
    spectral_norm,
    spectral_norms,
)
from lightning_gen.layers.style import AdaIN, Blur, NoiseInjection
from lightning_gen.layers.weight_norm import (
    WeightNormConv2d,
    WeightNormConvTranspose2d,
    WeightNormLinear,
    data_dependent_init,
)

__all__ = [
    "ADA",
    "AdaIN",
    "Augmentation",
    "Blur",
    "ConditionalBatchNorm2d",
    "ConvolutionSpectralNorm",
    "DeepQuantizer",
    "DiagonalBiLSTMLayer",
    "DiffAugment",
    "DownRightShiftedConv2d",
    "DownRightShiftedConvTranspose2d",
    "DownShiftedConv2d",
    "DownShiftedConvTranspose2d",
    "DownsamplingConv2d",
    "EqualizedConv2d",
    "EqualizedLinear",
    "FiniteScalarQuantizer",
    "GumbelQuantizer",
    "InstanceNorm2d",
    "LocallyMaskedConv2d",
    "MaskedConv2d",
    "MinibatchStd",
    "NoiseInjection",
    "PixelNorm",
    "Quantized",
    "Quantizer",
    "ReflectConv2d",
    "ResidualQuantizer",
    "RowLSTMLayer",
    "SpectralNorm",
    "UpsamplingConv2d",
    "VectorQuantizer",
    "VerticalConv2d",
    "WeightNormConv2d",
    "WeightNormConvTranspose2d",
    "WeightNormLinear",
    "add_spectral_norm",
    "as_order",
    "circular_singular_values",
    "data_dependent_init",
    "generalized_hilbert_order",
    "hilbert_order",
    "hole_last",
    "local_masks",
    "local_taps",
    "power_iteration",
    "random_order",
    "raster_order",
    "s_curve_order",
    "spectral_norm",
    "spectral_norms",
    "symmetries",
    "transformed",
]
