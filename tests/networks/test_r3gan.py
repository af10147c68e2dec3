"""Residual networks without normalisation: published sizes, scales at the start, and pictures of any size."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_gen.losses import R1, R2
from lightning_gen.networks import R3GANDiscriminator, R3GANGenerator
from lightning_gen.networks.r3gan import Bottleneck, resampling
from tests.shared import parameters

GENERATOR, DISCRIMINATOR = (partial(each, **each.small) for each in (R3GANGenerator, R3GANDiscriminator))
WIDE = {"filters": 1536, "group_size": 32}


@pytest.mark.parametrize(
    ("size", "num_classes", "settings", "generator", "discriminator"),
    [
        (32, 10, {}, 20_781_952, 21_280_512),  # CIFAR-10
        (32, None, {}, 20_732_160, 20_683_776),
        (64, None, {}, 22_429_824, 22_381_440),  # FFHQ
        (256, None, {}, 23_057_952, 23_009_568),  # FFHQ
        (32, 1000, WIDE, 82_914_304, 86_548_992),  # ImageNet
        (64, 1000, {**WIDE, "widest": 64}, 103_570_432, 107_205_120),  # ImageNet
    ],
)
def test_they_have_as_many_parameters_as_the_authors(size, num_classes, settings, generator, discriminator):
    with torch.device("meta"):
        assert parameters(R3GANGenerator((3, size, size), 64, num_classes=num_classes, **settings)) == generator
        assert parameters(R3GANDiscriminator((3, size, size), num_classes=num_classes, **settings)) == discriminator


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 28, 28), (2, 9, 30), (3, 2, 3), (1, 1, 1)])
@pytest.mark.parametrize("num_classes", [None, 3])
def test_any_size_and_number_of_channels(shape, num_classes):
    torch.manual_seed(0)
    labels = None if num_classes is None else torch.tensor([0, 2])
    images = GENERATOR(shape, 6, num_classes=num_classes)(torch.randn(2, 6), labels)
    assert images.shape == (2, *shape)
    scores = DISCRIMINATOR(shape, num_classes=num_classes)(images, labels)
    assert scores.shape == (2,)
    assert scores.isfinite().all()


@pytest.mark.parametrize("up", [True, False])
def test_resampling_is_a_convolution_by_1_3_3_1_with_a_stride(up):
    features = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    line = torch.tensor([1, 3, 3, 1], dtype=torch.float64) / 8
    kernel = torch.outer(line, line).expand(3, 1, 4, 4)
    convolve = partial(F.conv_transpose2d if up else F.conv2d, stride=2, padding=1, groups=3)
    expected = convolve(features, (4 if up else 1) * kernel)
    torch.testing.assert_close(resampling(3, 3, up=up).double()(features), expected)
    assert resampling(3, 8, up=up)(features.float()).shape == (2, 8, *expected.shape[2:])


def test_a_block_begins_as_the_identity_and_changes_by_the_share_of_one_in_all():
    torch.manual_seed(0)
    features = torch.randn(8, 64, 8, 8)
    for blocks in (1, 16):
        block = Bottleneck(64, group_size=16, blocks=blocks)
        assert torch.equal(block(features), features)
        last = block.residual[-1]
        nn.init.normal_(last.weight, 0.0, last.weight.shape[1] ** -0.5)
        # Two layers with L^(-1/4) each: L residuals have the variance of one. Zero padding takes some of it at edges.
        middle = (block(features) - features)[:, :, 1:-1, 1:-1]
        assert middle.std().item() == pytest.approx(blocks**-0.5, rel=0.1)


def test_scales_at_the_start():
    torch.manual_seed(0)
    generator = R3GANGenerator((3, 16, 16), 64, filters=256, widest=16)
    maps = generator.maps * generator.weigh(torch.randn(64, 64))[:, :, None, None]
    assert maps.std().item() == pytest.approx(1, rel=0.1)
    depth = 2 * 3  # levels of 4, 8 and 16
    for block in (each for each in generator.body if isinstance(each, Bottleneck)):
        for layer, fan_in in ((block.residual[0], 256), (block.residual[3], 9 * 16)):
            assert layer.weight.std().item() == pytest.approx((2 / 1.04) ** 0.5 * depth**-0.25 * fan_in**-0.5, rel=0.05)
            assert layer.bias is None
        assert not any(block.residual[i].bias.any() for i in (1, 4))
        assert not block.residual[6].weight.any()
    # So the network begins as what its first, its last and its resampling layers make.
    plain = nn.Sequential(*(each for each in generator.body if not isinstance(each, Bottleneck)))
    assert torch.equal(generator.body(maps), plain(maps))


def test_widths_fall_beyond_the_widest_size():
    with torch.device("meta"):
        network = R3GANGenerator((3, 48, 96), 4, filters=64, widest=16, blocks=1)
    blocks = [each for each in network.body if isinstance(each, Bottleneck)]
    assert [block.residual[0].in_channels for block in blocks] == [64, 64, 32, 16]  # of 6, 12, 24 and 48 pixels
    assert [block.residual[3].groups for block in blocks] == [8, 8, 4, 2]
    assert network.maps.shape == (64, 6, 12)


def test_classes_move_pictures_and_scores():
    torch.manual_seed(0)
    generator, discriminator = GENERATOR((3, 8, 8), 6, num_classes=3), DISCRIMINATOR((3, 8, 8), num_classes=3)
    latents, labels = torch.randn(2, 6), torch.tensor([0, 2])
    images = generator(latents, labels)
    assert not torch.allclose(images, generator(latents, labels.flip(0)))
    assert not torch.allclose(discriminator(images, labels), discriminator(images, labels.flip(0)))
    with pytest.raises(ValueError, match="num_classes=3 and needs labels"):
        generator(latents)
    with pytest.raises(ValueError, match="no classes"):
        DISCRIMINATOR((3, 8, 8))(images, labels)


def test_gradients_of_both_players_and_penalties_under_autocast():
    torch.manual_seed(0)
    generator, discriminator = GENERATOR((3, 16, 16), 6), DISCRIMINATOR((3, 16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        images = generator(torch.randn(4, 6))
        penalties = [penalty(discriminator, images.float(), images) for penalty in (R1(), R2())]
        loss = discriminator(images).mean() + sum(penalties)
    loss.backward()
    for network in (generator, discriminator):
        assert all(weight.grad.isfinite().all() for weight in network.parameters())
    assert discriminator.body[1].residual[6].weight.grad.any()


@pytest.mark.parametrize("network", [GENERATOR, DISCRIMINATOR])
def test_numbers_that_make_no_network(network):
    given = ((3, 8, 8), 6) if network is GENERATOR else ((3, 8, 8),)
    with pytest.raises(ValueError, match=r"needs filters, widest, blocks and group_size >= 1, got 4, 32, 0 and 4"):
        network(*given, blocks=0)
    with pytest.raises(ValueError, match=r"Of 4 channels a block makes 8, which groups of group_size=3 do not divide"):
        network(*given, group_size=3)
