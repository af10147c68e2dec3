import pytest
import torch
from torch import nn

from lightning_gen.networks import PatchDiscriminator, PixelDiscriminator, ResNetGenerator, UNetGenerator
from lightning_gen.networks.cyclegan import pad_to_multiple

SHAPE = (3, 256, 256)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("make", "instance", "batch"),
    [
        (lambda norm: ResNetGenerator(SHAPE, norm=norm), 11_378_179, 11_383_427),
        (lambda norm: ResNetGenerator(SHAPE, norm=norm, upsampling="resize"), 11_378_179, 11_383_427),
        (lambda norm: ResNetGenerator(SHAPE, norm=norm, blocks=6), 7_837_699, 7_841_411),
        (lambda norm: UNetGenerator(SHAPE, norm=norm), 54_409_603, 54_413_955),
        (lambda norm: UNetGenerator(SHAPE, norm=norm, depth=7), 41_825_667, 41_828_995),
    ],
    ids=["resnet9", "resnet9-resize", "resnet6", "unet256", "unet128"],
)
def test_generators_have_the_published_number_of_parameters(make, instance, batch):
    with torch.device("meta"):  # counted without filling memory
        assert parameters(make("instance")) == instance
        assert parameters(make("batch")) == batch


@pytest.mark.parametrize(
    ("layers", "count", "field", "at_256", "at_128"),
    [
        (1, 136_385, 16, 126, 62),
        (2, 662_977, 34, 62, 30),
        (3, 2_764_737, 70, 30, 14),
        (4, 6_959_553, 142, 14, 6),
        (5, 11_154_369, 286, 6, 2),
    ],
)
def test_patch_discriminators_match_the_table(layers, count, field, at_256, at_128):
    assert parameters(PatchDiscriminator(SHAPE, layers=layers)) == count
    # Instance norm mixes the whole picture, so the receptive field is measured without it, on thin networks.
    size = field + 2 * 2**layers + 64
    network = PatchDiscriminator((1, size, size), layers=layers, filters=1, norm="none")
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1.0)
    image = torch.zeros(1, 1, size, size, requires_grad=True)
    scores = network(image)
    middle = scores.shape[-1] // 2
    scores[0, 0, middle, middle].backward()
    rows = image.grad[0, 0].abs().sum(dim=1).nonzero().flatten()
    assert int(rows.max() - rows.min() + 1) == field == len(rows)
    thin = PatchDiscriminator(SHAPE, layers=layers, filters=1)
    assert thin(torch.zeros(1, 3, 256, 256)).shape == (1, 1, at_256, at_256)
    assert thin(torch.zeros(1, 3, 128, 128)).shape == (1, 1, at_128, at_128)


def test_pixel_discriminator_sees_one_pixel():
    network = PixelDiscriminator(SHAPE, norm="none")
    assert parameters(PixelDiscriminator(SHAPE)) == 8_705
    image = torch.randn(1, 3, 8, 8, requires_grad=True)
    network(image)[0, 0, 3, 4].backward()
    seen = image.grad[0].abs().sum(dim=0)
    assert seen[3, 4] > 0
    seen[3, 4] = 0
    assert not seen.any()


def test_initial_weights_are_normal_with_std_002_and_biases_zero():
    network = ResNetGenerator((3, 32, 32))
    kernels = torch.cat([p.flatten() for n, p in network.named_parameters() if n.endswith("weight")])
    # 11 million draws: the standard error of the standard deviation is 0.02 / sqrt(2n), about 4e-6.
    assert kernels.std().item() == pytest.approx(0.02, abs=3e-5)
    assert kernels.mean().item() == pytest.approx(0, abs=3e-5)
    assert not any(p.any() for n, p in network.named_parameters() if n.endswith("bias"))
    affine = torch.cat(
        [m.weight for m in UNetGenerator((3, 32, 32), depth=5).modules() if isinstance(m, nn.BatchNorm2d)]
    )
    assert affine.mean().item() == pytest.approx(1, abs=0.005)
    assert affine.std().item() == pytest.approx(0.02, rel=0.1)


def test_a_residual_block_adds_nothing_after_the_sum():
    network = ResNetGenerator((3, 16, 16), filters=4, blocks=1)
    block = next(m for m in network.modules() if type(m).__name__ == "ResidualBlock")
    features = torch.randn(2, 16, 4, 4)
    assert torch.equal(block(features), features + block.residual(features))
    assert block(features).min() < 0


def test_u_net_skips_carry_every_scale_and_dropout_sits_in_the_wide_blocks():
    network = UNetGenerator(SHAPE, filters=1)
    dropped = [any(isinstance(m, nn.Dropout) for m in up) for up in network.up]
    assert dropped == [False, True, True, True, False, False, False, False]  # from the innermost outwards
    network.eval()
    image = torch.randn(1, 3, 256, 256)
    assert network(image).shape == image.shape
    # Without the bottleneck the picture still comes through, by the skips.
    with torch.no_grad():
        nn.init.zeros_(network.down[-1][1].weight)
        nn.init.zeros_(network.up[0][1].weight)
    assert network(image).std() > 0


@pytest.mark.parametrize(("height", "width"), [(64, 96), (32, 16)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_rectangles_and_channels(height, width, channels):
    shape = (channels, height, width)
    image = torch.randn(2, *shape)
    assert ResNetGenerator(shape, filters=2, blocks=1)(image).shape == image.shape
    assert PatchDiscriminator(shape, filters=2, layers=2)(image).shape == (2, 1, height // 4 - 2, width // 4 - 2)


def test_sizes_that_do_not_work_are_refused_with_one_that_does():
    with pytest.raises(ValueError, match=r"multiples of 4, got 62 x 64\. The nearest size that works is 64 x 64"):
        ResNetGenerator((3, 62, 64))
    with pytest.raises(ValueError, match="multiples of 256, got 128 x 128"):
        UNetGenerator((3, 128, 128))
    with pytest.raises(ValueError, match="at least 32 x 32, got 16 x 16"):
        PatchDiscriminator((3, 16, 16))
    with pytest.raises(ValueError, match="upsampling must be"):
        ResNetGenerator((3, 16, 16), upsampling="bilinear")


def test_padding_reflects_and_is_cropped_back_to_the_same_pixels():
    image = torch.arange(2 * 3 * 5 * 7.0).view(2, 3, 5, 7)
    padded = pad_to_multiple(image, 4)
    assert padded.shape == (2, 3, 8, 8)
    assert torch.equal(padded[..., :5, :7], image)
    assert torch.equal(padded[..., 5, :7], image[..., 3, :])  # row 5 mirrors row 3 about row 4
    assert pad_to_multiple(torch.zeros(1, 1, 1, 1), 4).shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ResNetGenerator((3, 16, 16), filters=4, blocks=1),
        lambda: PatchDiscriminator((3, 16, 16), filters=4, layers=1),
    ],
)
def test_instance_norm_keeps_samples_apart(make):
    network, images = make(), torch.randn(3, 3, 16, 16)
    together = network(images)
    for i in range(3):
        torch.testing.assert_close(network(images[i : i + 1])[0], together[i], rtol=1e-5, atol=1e-6)
