"""State dicts in the layout of the reference implementation, made by plain modules built here from its description."""

from collections import OrderedDict
from copy import deepcopy
from functools import partial

import pytest
import torch
from PIL import Image
from torch import nn

from lightning_gen.commands.import_weights import import_weights
from lightning_gen.data.images import open_image, read_image, to_float, to_uint8
from lightning_gen.generative import GenerativeModule
from lightning_gen.models import CycleGAN, Pix2Pix

BATCH = nn.BatchNorm2d
INSTANCE = nn.InstanceNorm2d
OLD_INSTANCE = partial(nn.InstanceNorm2d, track_running_stats=True)  # files of before 2018; never used for normalising


def NONE(width):  # --norm none: a layer that does nothing keeps the numbers of the others
    return nn.Identity()


def has_bias(norm):
    """The reference leaves the bias to the norm, but for instance norm; also where there is none."""
    return norm in (INSTANCE, OLD_INSTANCE)


class Resnet(nn.Module):
    """`model.1`, `model.4`, ..., `model.10.conv_block.1`, ...: resnet_6blocks and resnet_9blocks."""

    def __init__(self, norm, blocks, filters=4, dropout=False, inputs=3, outputs=3):
        super().__init__()
        bias = has_bias(norm)
        layers = [nn.ReflectionPad2d(3), nn.Conv2d(inputs, filters, 7, bias=bias), norm(filters), nn.ReLU(True)]
        for width in (filters, 2 * filters):
            conv = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=bias)
            layers += [conv, norm(2 * width), nn.ReLU(True)]
        layers += [ResnetBlock(4 * filters, norm, bias, dropout) for _ in range(blocks)]
        for width in (4 * filters, 2 * filters):
            conv = nn.ConvTranspose2d(width, width // 2, 3, stride=2, padding=1, output_padding=1, bias=bias)
            layers += [conv, norm(width // 2), nn.ReLU(True)]
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(filters, outputs, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, images):
        return self.model(images)


class ResnetBlock(nn.Module):
    def __init__(self, width, norm, bias, dropout):
        super().__init__()
        half = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=bias), norm(width)]
        other = [nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3, bias=bias), norm(width)]
        self.conv_block = nn.Sequential(*half, nn.ReLU(True), *([nn.Dropout(0.5)] if dropout else []), *other)

    def forward(self, images):
        return images + self.conv_block(images)


class Unet(nn.Module):
    """`model.model.0`, `model.model.1.model.1`, ..., `model.model.3`: unet_128 and unet_256."""

    def __init__(self, norm, depth, filters=2, dropout=False, inputs=3, outputs=3):
        super().__init__()
        block = UnetBlock(norm, 8 * filters, 8 * filters, place="innermost")
        for _ in range(depth - 5):
            block = UnetBlock(norm, 8 * filters, 8 * filters, block, dropout=dropout)
        for width in (4 * filters, 2 * filters, filters):
            block = UnetBlock(norm, width, 2 * width, block)
        self.model = UnetBlock(norm, outputs, filters, block, place="outermost", inputs=inputs)

    def forward(self, images):
        return self.model(images)


class UnetBlock(nn.Module):
    """Down, what lies deeper, up. The activation of the way down works in place, so the skip carries its result."""

    def __init__(self, norm, outer, inner, deeper=None, place="between", inputs=None, dropout=False):
        super().__init__()
        self.outermost = place == "outermost"
        bias = has_bias(norm)
        down = nn.Conv2d(inputs or outer, inner, 4, stride=2, padding=1, bias=bias)
        width = inner if place == "innermost" else 2 * inner
        up = nn.ConvTranspose2d(width, outer, 4, stride=2, padding=1, bias=bias or self.outermost)
        if self.outermost:
            layers = [down, deeper, nn.ReLU(True), up, nn.Tanh()]
        elif place == "innermost":
            layers = [nn.LeakyReLU(0.2, True), down, nn.ReLU(True), up, norm(outer)]
        else:
            layers = [nn.LeakyReLU(0.2, True), down, norm(inner), deeper, nn.ReLU(True), up, norm(outer)]
        self.model = nn.Sequential(*layers, *([nn.Dropout(0.5)] if dropout else []))

    def forward(self, images):
        return self.model(images) if self.outermost else torch.cat([images, self.model(images)], 1)


class PatchGAN(nn.Module):
    """`model.0`, `model.2`, `model.5`, ..."""

    def __init__(self, norm, layers, filters=4, inputs=3):
        super().__init__()
        stack = [nn.Conv2d(inputs, filters, 4, stride=2, padding=1), nn.LeakyReLU(0.2, True)]
        width = filters
        for i in range(1, layers + 1):
            wider = filters * min(2**i, 8)
            conv = nn.Conv2d(width, wider, 4, stride=2 if i < layers else 1, padding=1, bias=has_bias(norm))
            stack += [conv, norm(wider), nn.LeakyReLU(0.2, True)]
            width = wider
        self.model = nn.Sequential(*stack, nn.Conv2d(width, 1, 4, padding=1))

    def forward(self, images):
        return self.model(images)


class PixelD(nn.Module):
    """`net.0`, `net.2`, `net.5`."""

    def __init__(self, norm, filters=4, inputs=3):
        super().__init__()
        bias = has_bias(norm)
        self.net = nn.Sequential(
            nn.Conv2d(inputs, filters, 1),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(filters, 2 * filters, 1, bias=bias),
            norm(2 * filters),
            nn.LeakyReLU(0.2, True),
            nn.Conv2d(2 * filters, 1, 1, bias=bias),
        )

    def forward(self, images):
        return self.net(images)


def trained(network, seed=0):
    """The network with weights that keep activations near 1, and statistics that are not the initial ones."""
    random = torch.Generator().manual_seed(seed)
    # Without norm, only residual blocks keep up the size of what goes through them.
    bare = any(isinstance(m, nn.Identity) for m in network.modules()) and not isinstance(network, Resnet)
    gain = 2.0 if bare else 1.0
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.ndim == 4:
                tensor.copy_(torch.randn(tensor.shape, generator=random) * (gain / tensor[0].numel()) ** 0.5)
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=random)
            elif tensor.is_floating_point():
                center = 1.0 if name.endswith("weight") else 0.0
                tensor.copy_(center + 0.3 * torch.randn(tensor.shape, generator=random))
    return network


def save(network, path, prefix=""):
    torch.save(OrderedDict((prefix + name, tensor) for name, tensor in network.state_dict().items()), path)
    return path


@torch.no_grad()
def as_reference_tests(network, images, eval=False):
    """One by one with all as in training, so with dropout and batch statistics; with --eval without them.

    Instance norm takes a picture's own statistics in either.
    """
    network = deepcopy(network).train(not eval)
    for module in network.modules():
        if isinstance(module, INSTANCE):
            module.train()
    translated = []
    for image in images.split(1):
        torch.manual_seed(0)  # as translate does
        translated.append(network(image))
    return torch.cat(translated)


def pictures(size, number=2, channels=3):
    return torch.rand(number, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def assert_telling(images):
    """Pictures that differ from place to place and are not clipped: errors in the weights would show."""
    assert images.std() > 0.1
    assert (images.abs() < 0.99).float().mean() > 0.5


@pytest.mark.parametrize("eval", [False, True])
@pytest.mark.parametrize(
    ("norm", "blocks", "dropout", "prefix"),
    [
        (INSTANCE, 9, False, ""),
        (INSTANCE, 6, True, "module."),
        (OLD_INSTANCE, 6, True, ""),
        (BATCH, 6, False, "module."),
        (BATCH, 9, True, ""),
        (NONE, 6, False, ""),
        (NONE, 6, True, "module."),
    ],
)
def test_resnet_generators(tmp_path, capsys, norm, blocks, dropout, prefix, eval):
    one, other = (trained(Resnet(norm, blocks, dropout=dropout), seed) for seed in (0, 1))
    assert {"model.1.weight", "model.4.weight", "model.10.conv_block.1.weight"} <= one.state_dict().keys()
    assert f"model.10.conv_block.{6 if dropout else 5}.weight" in one.state_dict()
    assert f"model.{blocks + 17}.weight" in one.state_dict()
    if norm is NONE:
        assert len(one.state_dict()) == 19
    output = tmp_path / "c.ckpt"
    import_weights(
        save(one, tmp_path / "a.pth", prefix),
        output,
        generator_BtoA=save(other, tmp_path / "b.pth", prefix),
        image_size=32,
        eval=eval,
    )
    model = GenerativeModule.load_from_checkpoint(output)
    assert type(model) is CycleGAN
    assert model.image_shape == (3, 32, 32)
    assert model.hparams["generator"]["init_args"]["dropout"] == (0.5 if dropout else 0.0)
    images = pictures(32)
    for network, direction in ((one, "AtoB"), (other, "BtoA")):
        expected = as_reference_tests(network, images, eval)
        assert_telling(expected)
        torch.testing.assert_close(model.translate(images, direction), expected, rtol=0, atol=1e-5)
    # The file tells whether there is dropout; how to translate is the reference's way, unless told otherwise.
    said = capsys.readouterr().out
    assert "Assumed" not in said
    ways = ["dropout is drawn"] * dropout + ["batch norm takes each picture's own statistics"] * (norm is BATCH)
    assert (f"When it translates, {' and '.join(ways)}, as in the reference's test" in said) == bool(ways and not eval)


@pytest.mark.parametrize("eval", [False, True])
@pytest.mark.parametrize("dropout", [None, True, False])
@pytest.mark.parametrize(("norm", "depth"), [(BATCH, 7), (INSTANCE, 7), (NONE, 7)])
def test_unet_generators(tmp_path, capsys, norm, depth, dropout, eval):
    """A file is the same with dropout and without. A lone one is taken for pix2pix's, but with instance norm."""
    trained_with = norm is not INSTANCE if dropout is None else dropout
    network, without = (trained(Unet(norm, depth, dropout=dropout)) for dropout in (trained_with, False))
    assert network.state_dict().keys() == without.state_dict().keys()
    assert {
        "model.model.0.weight",
        "model.model.1.model.1.weight",
        "model.model.3.weight",
    } <= network.state_dict().keys()
    output = tmp_path / "c.ckpt"
    import_weights(save(network, tmp_path / "a.pth"), output, image_size=2**depth, dropout=dropout, eval=eval)
    model = GenerativeModule.load_from_checkpoint(output)
    assert type(model) is Pix2Pix
    assert model.hparams["generator"]["init_args"]["dropout"] == (0.5 if trained_with else 0.0)
    images = pictures(2**depth)
    expected = as_reference_tests(network, images, eval)
    assert_telling(expected)
    torch.testing.assert_close(model.translate(images), expected, rtol=0, atol=1e-5)
    said = capsys.readouterr().out
    told = f"trained {'with' if trained_with else 'without'} dropout, which its file does not tell; --dropout "
    assert (f"Assumed that the U-Net was {told}{str(not trained_with).lower()} if not." in said) == (dropout is None)
    assert ("dropout is drawn" in said) == (trained_with and not eval)
    # Each of these choices is seen in the result.
    if trained_with and not eval:
        assert (expected - as_reference_tests(without, images)).abs().max() > 0.1
    if norm is BATCH and not eval:
        assert (expected - as_reference_tests(network, images, eval=True)).abs().max() > 0.1


def test_unets_of_all_depths_and_of_before_2018_and_in_pairs(tmp_path, capsys):
    network, output = trained(Unet(OLD_INSTANCE, 8)), tmp_path / "c.ckpt"
    file = save(network, tmp_path / "a.pth")
    import_weights(file, output, generator_BtoA=file)
    model = CycleGAN.load_from_checkpoint(output)
    images = pictures(256)
    expected = as_reference_tests(network, images)
    torch.testing.assert_close(model.translate(images, "BtoA"), expected, rtol=0, atol=1e-5)
    # A pair is CycleGAN's, which are trained without dropout also where they have batch norm.
    file = save(trained(Unet(BATCH, 5)), tmp_path / "b.pth")
    import_weights(file, output, generator_BtoA=file, image_size=32)
    assert CycleGAN.load_from_checkpoint(output).hparams["generator"]["init_args"]["dropout"] == 0
    assert capsys.readouterr().out.count("Assumed that the U-Net was trained without dropout") == 2


@torch.no_grad()
@pytest.mark.parametrize(
    ("norm", "layers"),
    [(INSTANCE, layers) for layers in (1, 2, 3, 4, 5, "pixel")]
    + [(BATCH, 1), (BATCH, 3), (BATCH, "pixel"), (OLD_INSTANCE, 3), (OLD_INSTANCE, "pixel")]
    + [(NONE, 3), (NONE, "pixel")],
)
def test_discriminators_of_cyclegan(tmp_path, norm, layers):
    """The reference's D_A judges domain B."""
    make = partial(PixelD, norm) if layers == "pixel" else partial(PatchGAN, norm, layers)
    one, other = (trained(make(), seed) for seed in (0, 1))
    if layers == 3:
        kernels = [name for name, tensor in one.state_dict().items() if tensor.ndim == 4]
        assert kernels == [f"model.{i}.weight" for i in (0, 2, 5, 8, 11)]
    generator, output = save(trained(Resnet(INSTANCE, 6, filters=2)), tmp_path / "g.pth"), tmp_path / "c.ckpt"
    import_weights(
        generator,
        output,
        generator_BtoA=generator,
        discriminator_B=save(one, tmp_path / "D_A.pth"),
        discriminator_A=save(other, tmp_path / "D_B.pth", "module."),
        image_size=128,
    )
    model = CycleGAN.load_from_checkpoint(output).eval()
    images = pictures(128)
    for network, mine in ((one, model.discriminator_B), (other, model.discriminator_A)):
        expected = as_reference_tests(network, images, eval=True)
        assert expected.std() > 0.1
        torch.testing.assert_close(mine(images), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_discriminator_of_pix2pix(tmp_path):
    network, output = trained(PatchGAN(BATCH, 3, inputs=6)), tmp_path / "c.ckpt"
    generator = save(trained(Unet(BATCH, 7)), tmp_path / "g.pth")
    import_weights(generator, output, discriminator_B=save(network, tmp_path / "D.pth"), image_size=128)
    images = pictures(128, channels=6)
    mine = Pix2Pix.load_from_checkpoint(output).discriminator.eval()(images)
    torch.testing.assert_close(mine, network.eval()(images), rtol=0, atol=1e-5)


@torch.no_grad()
def test_one_resnet_from_colour_to_gray_in_a_file_of_the_old_format(tmp_path):
    network, output = trained(Resnet(INSTANCE, 6, outputs=1)), tmp_path / "c.ckpt"
    torch.save(network.state_dict(), tmp_path / "g.pth", _use_new_zipfile_serialization=False)
    import_weights(tmp_path / "g.pth", output)
    images = pictures(32)
    translated = Pix2Pix.load_from_checkpoint(output).translate(images)
    assert translated.shape == (2, 1, 32, 32)
    torch.testing.assert_close(translated, network(images), rtol=0, atol=1e-5)


def test_the_command_and_then_translate(tmp_path, command):
    one, other = (trained(Resnet(INSTANCE, 6), seed) for seed in (0, 1))
    output = tmp_path / "c.ckpt"
    weights = [f"--generator_AtoB={save(one, tmp_path / 'a.pth')}", "--generator_BtoA", save(other, tmp_path / "b.pth")]
    ended = command("import", *weights, "--output", output)
    assert ended.code == 0, ended.err
    assert "CycleGAN with ResNetGenerator(filters=4, blocks=6" in ended.out
    (tmp_path / "in").mkdir()
    Image.effect_noise((36, 20), 80).convert("RGB").save(tmp_path / "in" / "a.png")
    arguments = [
        "--checkpoint",
        output,
        "--input",
        tmp_path / "in",
        "--output",
        tmp_path / "out",
        "--direction",
        "BtoA",
    ]
    assert command("translate", *arguments).code == 0
    with torch.no_grad():
        expected = to_uint8(other(to_float(read_image(tmp_path / "in" / "a.png"))[None])[0])
    translated = open_image(tmp_path / "out" / "a.png").pixels
    # Kernels may round differently; a level of 255 is the most that comes of it.
    assert (translated.int() - expected.int()).abs().max() <= 1
    assert translated.float().std() > 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model.1.weight": [1, 2]}, "is no state dict: it must map names to tensors"),
        (torch.zeros(3), "is no state dict"),
        ({}, "These 0 tensors are not of a ResNet or U-Net generator"),
        ({"fc.weight": torch.zeros(3, 3)}, "not of a ResNet or U-Net generator .*first name: fc.weight"),
        (PatchGAN(INSTANCE, 3).state_dict(), "not of a ResNet or U-Net generator"),
        (partial, "cut short, or no state dict of plain tensors"),
    ],
)
def test_files_that_are_no_generator(tmp_path, content, message):
    path = tmp_path / "bad.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"bad\.pth.*{message}"):
        import_weights(path, tmp_path / "c.ckpt")
    assert not (tmp_path / "c.ckpt").exists()


def test_files_that_do_not_fit(tmp_path):
    six, nine = (save(Resnet(INSTANCE, blocks, filters=2), tmp_path / f"{blocks}.pth") for blocks in (6, 9))
    output = tmp_path / "c.ckpt"
    with pytest.raises(FileNotFoundError, match=r"There is no file .*none\.pth"):
        import_weights(tmp_path / "none.pth", output)
    with pytest.raises(ValueError, match=r"9\.pth: ResNetGenerator has 36 tensors, the file 48"):
        import_weights(six, output, generator_BtoA=nine)
    wider = save(Resnet(INSTANCE, 6, filters=3), tmp_path / "wider.pth")
    with pytest.raises(
        ValueError, match=r"wider\.pth: model.1.weight of the file has shape \(3, 3, 7, 7\).*\(2, 3, 7, 7\)"
    ):
        import_weights(six, output, generator_BtoA=wider)
    with pytest.raises(ValueError, match=r"6\.pth: .*not of a discriminator"):
        import_weights(six, output, generator_BtoA=six, discriminator_B=six)
    with pytest.raises(
        ValueError, match=r"--dropout true does not go with .*6\.pth, whose layers say .* without dropout"
    ):
        import_weights(six, output, dropout=True)
    judge = save(PatchGAN(INSTANCE, 3), tmp_path / "D.pth")
    with pytest.raises(ValueError, match="discriminator_A belongs to a CycleGAN, which needs generator_BtoA"):
        import_weights(six, output, discriminator_A=judge)
    six.write_bytes(six.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"6\.pth is cut short"):
        import_weights(six, output)
    assert not output.exists()
