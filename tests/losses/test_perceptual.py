"""Perceptual losses: where their gradient goes, what they are of known features, and what becomes of absent weights."""

import pickle
import urllib.error

import pytest
import torch
import torchvision.models
from torch import nn
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as lpips_of
from torchvision.models.vgg import cfgs, make_layers

from lightning_gen.losses import LPIPSDistance, PerceptualLoss, VGGDistance
from lightning_gen.losses.perceptual import layered_distances


def pictures(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class Own(PerceptualLoss):
    """Squared differences after a known convolution with dropout."""

    loaded = 0

    def load(self):
        self.loaded += 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout())

    def distances(self, network, reconstructions, images):
        return (network(reconstructions) - network(images)).square().flatten(1).sum(1)


# -- what all do ------------------------------------------------------------------------------------------------------


def test_its_gradient_reaches_the_decoder_and_nothing_else():
    """The largest library computes it under `no_grad`: a number in the log that nothing follows."""
    torch.manual_seed(0)
    loss, decoder = Own(), nn.Conv2d(2, 3, 3, padding=1)
    latents, images = torch.randn(2, 2, 6, 6), pictures(2, 3, 6, 6).requires_grad_()
    loss(decoder(latents), images).backward()
    assert images.grad is None
    assert all(not p.requires_grad and p.grad is None for p in loss.network().parameters())
    # Against the difference quotient of the decoder's bias.
    step = 1e-2 * torch.tensor([1.0, -2.0, 0.5])
    with torch.no_grad():
        ends = []
        for sign in (1, -1):
            decoder.bias += sign * step
            ends.append(loss(decoder(latents), images))
            decoder.bias -= sign * step
    assert (decoder.bias.grad @ step).item() == pytest.approx(((ends[0] - ends[1]) / 2).item(), rel=1e-3)


def test_it_is_a_mean_over_pictures_in_float32_by_a_network_that_stays_as_it_is():
    loss, a, b = Own(), pictures(3, 3, 6, 6), pictures(3, 3, 6, 6, seed=1)
    found = loss(a, b)
    alone = torch.stack([loss(a[i : i + 1], b[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(found, alone.mean())
    assert loss(a, a) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(a, b), found)
    assert loss(a.bfloat16(), b).dtype == loss(a.double(), b).dtype == torch.float32
    assert loss.loaded == 1
    assert not loss.network().training, "dropout would make every answer another one"
    assert torch.equal(pickle.loads(pickle.dumps(loss))(a, b), found)
    with pytest.raises(ValueError, match=r"one shape, got \[3, 3, 6, 6\] and \[2, 3, 6, 6\]"):
        loss(a, b[:2])


def test_what_the_network_cannot_read_is_said_before_the_run():
    loss = Own()
    loss.prepare((3, 6, 6))
    assert loss.loaded == 1
    for shape in ((1, 6, 6), (3, 2, 2)):
        with pytest.raises(ValueError, match=rf"cannot read pictures of shape \[{shape[0]}, {shape[1]}"):
            loss.prepare(shape)


# -- layers -----------------------------------------------------------------------------------------------------------


def test_layers_are_compared_in_units_of_the_originals_features():
    a, b = torch.zeros(2, 2, 1, 2), torch.zeros(2, 2, 1, 2)
    a[0, 0], b[0, 1] = 3.0, 4.0  # at both places |(3, -4)|^2 = 25, over |(0, 4)|^2 = 16
    a[1, 0, 0, 0], b[1, 0, 0, 0] = 1.5, 1.0  # 0.25 over 1, at one of two places, of which the other is empty in both
    vectors, others = torch.tensor([[2.0, 0.0], [7.0, 7.0]]), torch.tensor([[-1.0, 0.0], [7.0, 7.0]])  # 9, and 0
    expected = torch.tensor([25 / 16 + 9, 0.25 + 0])
    torch.testing.assert_close(layered_distances([a, vectors], [b, others]), expected)
    torch.testing.assert_close(layered_distances([a * 100, vectors * 0.1], [b * 100, others * 0.1]), expected)
    # A place where the original is empty does not count for more because it is.
    noisy = b[:1].clone()
    noisy[0, 0, 0, 0] += 0.01
    assert layered_distances([noisy], [b[:1]]).item() < 1e-4


def test_where_features_are_zero_there_is_a_finite_gradient():
    dark = torch.zeros(1, 3, 2, 2, requires_grad=True)
    layered_distances([dark, dark], [torch.ones(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)]).sum().backward()
    assert dark.grad.isfinite().all()


# -- torchvision's networks -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A folder of weights: squeeze's and those of VGG's convolutions, drawn."""
    folder = tmp_path_factory.mktemp("hub")
    (folder / "checkpoints").mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        squeeze = torchvision.models.squeezenet1_1().state_dict()
        vgg = nn.ModuleDict({"features": make_layers(cfgs["D"])}).state_dict()
    torch.save(squeeze, folder / "checkpoints" / torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.split("/")[-1])
    torch.save(vgg, folder / "checkpoints" / torchvision.models.VGG16_Weights.DEFAULT.url.split("/")[-1])
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(folder))
    yield folder
    torch.hub.set_dir(before)
    for file in (folder / "checkpoints").iterdir():
        file.unlink()  # pytest would keep its 64 MB


def test_lpips_is_torchmetrics_own(hub):
    state = torch.get_rng_state()
    loss, a, b = LPIPSDistance("squeeze"), pictures(2, 3, 40, 32), pictures(2, 3, 40, 32, seed=1)
    found = loss(a, b)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(found, lpips_of(a, b, net_type="squeeze"))
    assert found > 0
    assert not any(module.training for module in loss.network().modules())
    gray = a[:, :1]
    torch.testing.assert_close(loss(gray, b[:, :1]), loss(gray.repeat(1, 3, 1, 1), b[:, :1].repeat(1, 3, 1, 1)))
    a.requires_grad_()
    loss(a, b).backward()
    assert a.grad.abs().amax((1, 2, 3)).gt(0).all()
    for shape in ((3, 8, 8), (2, 40, 40)):
        with pytest.raises(ValueError, match=r"LPIPSDistance\(net='squeeze'\) cannot read"):
            loss.prepare(shape)


def test_vgg_compares_the_layers_that_were_asked_for(hub):
    state = torch.get_rng_state()
    loss, a, b = VGGDistance(("relu1_1", "relu2_2")), pictures(2, 3, 16, 16), pictures(2, 3, 16, 16, seed=1)
    found = loss(a, b)
    assert torch.equal(torch.get_rng_state(), state)
    weights = torch.load(hub / "checkpoints" / torchvision.models.VGG16_Weights.DEFAULT.url.split("/")[-1])

    def convolved(features, place):
        name = f"features.{place}"
        return nn.functional.conv2d(features, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1).relu()

    def layers(images):
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        first = convolved(((images + 1) / 2 - mean[:, None, None]) / std[:, None, None], 0)
        pooled = nn.functional.max_pool2d(convolved(first, 2), 2)
        return first, convolved(convolved(pooled, 5), 7)

    expected = sum((x - y).square().mean() for x, y in zip(layers(a), layers(b), strict=True))
    torch.testing.assert_close(found, expected)
    assert len(loss.network()) == 10, "of the network there is what is looked at"


def test_vgg_has_the_layers_of_the_papers():
    # relu3_3 is layer 15 of torchvision's features in VGG-16; the last of VGG-19 is 35.
    assert [isinstance(layer, nn.ReLU) for layer in make_layers(cfgs["D"])][15]
    for wrong, depth in (("relu3_4", 16), ("relu6_1", 19), ("conv1_1", 16)):
        with pytest.raises(ValueError, match=rf"layers relu1_1, .*relu5_{3 if depth == 16 else 4}; got {wrong}"):
            VGGDistance((wrong,), depth=depth)
    VGGDistance(("relu3_4",), depth=19)
    with pytest.raises(ValueError, match="got none"):
        VGGDistance(())
    with pytest.raises(ValueError, match="depth must be 16 or 19, got 18"):
        VGGDistance(depth=18)
    with pytest.raises(ValueError, match="net must be 'vgg', 'alex' or 'squeeze', got 'vgg16'"):
        LPIPSDistance("vgg16")


@pytest.mark.parametrize("loss", [LPIPSDistance(), LPIPSDistance("squeeze"), VGGDistance(), VGGDistance(depth=19)])
def test_absent_weights_are_an_error_and_never_random_ones(loss, tmp_path, monkeypatch):
    def fails(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fails)
    name = f"vgg{loss.depth}" if isinstance(loss, VGGDistance) else {"vgg": "vgg16"}.get(loss.net, "squeezenet1_1")
    words = rf"{type(loss).__name__}: .*no network.*https://.*/{name}-.*\.pth into {tmp_path}/checkpoints.*FeatureDist"
    with pytest.raises(FileNotFoundError, match=words):
        loss.prepare((3, 64, 64))
