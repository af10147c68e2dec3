import pytest

from lightning_gen.losses.pixels import pixel_likelihood
from lightning_gen.networks import DiagonalBiLSTMNetwork, GatedPixelCNNNetwork, PixelCNNNetwork, RowLSTMNetwork


@pytest.mark.parametrize("kind", [PixelCNNNetwork, GatedPixelCNNNetwork, RowLSTMNetwork, DiagonalBiLSTMNetwork])
@pytest.mark.parametrize(
    ("image_shape", "options", "message"),
    [
        ((1, 5), {}, "image_shape"),
        ((1, 0, 5), {}, "image_shape"),
        ((1, 5, 5), {"num_levels": 1}, "num_levels"),
        ((1, 5, 5), {"layers": 0}, "layers >= 1"),
        ((3, 5, 5), {"filters": 2}, "3 channels"),
        ((3, 5, 5), {"head_filters": 2}, "3 channels"),
    ],
)
def test_arguments_that_make_no_sense(kind, image_shape, options, message):
    settings = {"filters": 5, "layers": 2, "head_filters": 7, **options}
    with pytest.raises(ValueError, match=message):
        kind(image_shape, pixel_likelihood(settings.pop("num_levels", 4)).num_parameters(image_shape[0]), **settings)
