"""Mixing, directions and projection, on networks of which it is known what they should find."""

import pytest
import torch

from lightning_gen.capabilities import HasLayerStyles
from lightning_gen.styles import (
    bands_of,
    factorized_directions,
    mixed,
    noise_correlation,
    parse_layers,
    pixel_distance,
    project,
)
from tests.commands.test_styles import LAYERS, SHAPE, small
from tests.shared import assert_mean


@pytest.mark.parametrize(
    ("layers", "bands"),
    [
        (18, [(0, 4), (4, 8), (8, 18)]),  # of 1024 x 1024, as in the paper
        (10, [(0, 4), (4, 8), (8, 10)]),
        (8, [(0, 2), (2, 6), (6, 8)]),  # 4 pixels; 8 and 16; 32
        (6, [(0, 2), (2, 4), (4, 6)]),
    ],
)
def test_coarse_middle_and_fine_layers(layers, bands):
    assert bands_of(layers) == dict(zip(("coarse", "middle", "fine"), (range(*band) for band in bands), strict=True))


@pytest.mark.parametrize("layers", range(1, 19))
def test_each_layer_is_in_one_band(layers):
    assert [layer for band in bands_of(layers).values() for layer in band] == list(range(layers))


def test_layers_in_words():
    assert parse_layers("[0-2, 5]", 6) == [0, 1, 2, 5]
    assert parse_layers("3", 4) == [3]
    for text in ("", "1-", "-1", "a", "2-1"):
        with pytest.raises(ValueError, match=r"Layers are|The layers of this model"):
            parse_layers(text, 6)


def test_mixing_from_a_cutoff_on_is_what_the_generator_does():
    model = small()
    latents = model.draw_latents(4, torch.Generator().manual_seed(0))
    own, others = (model.map_latents(part) for part in latents.split(2))
    for cutoff in range(LAYERS + 1):
        styles = mixed(own, others, range(cutoff, LAYERS))
        with torch.no_grad():
            expected = model.generator.eval()(latents[:2], others=latents[2:], cutoff=cutoff)
        assert torch.equal(model.synthesize(styles), expected.clamp(-1, 1))


def test_directions_are_those_that_layers_make_the_most_of():
    """Planted: weights with singular values 5, 3, 2 and 1 along known axes, cut into two layers."""
    torch.manual_seed(0)
    axes, left = torch.linalg.qr(torch.randn(4, 4))[0], torch.linalg.qr(torch.randn(10, 4))[0]
    stacked = left @ torch.diag(torch.tensor([5.0, 3.0, 2.0, 1.0])) @ axes
    ways, shares = factorized_directions(stacked.split(6), 3)
    torch.testing.assert_close((ways @ axes.T).abs(), torch.eye(4)[:3], atol=1e-5, rtol=0)
    torch.testing.assert_close(shares, torch.tensor([25.0, 9.0, 4.0]) / 39)
    assert (ways.gather(1, ways.abs().argmax(1, keepdim=True)) > 0).all()
    other, _ = factorized_directions(stacked.split(6)[:1], 3)
    assert not torch.allclose(other, ways, atol=1e-2)


def test_style_weights_are_what_layers_multiply_styles_by():
    model = small()
    step = torch.randn(8, generator=torch.Generator().manual_seed(0))
    weights = model.style_weights()
    assert len(weights) == LAYERS
    for weight, layer in zip(weights, model.generator.layers, strict=True):
        change = layer.style.affine(step) - layer.style.affine(torch.zeros(8))
        torch.testing.assert_close(weight @ step, change.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("space", ["w", "w+"])
def test_projection_finds_a_picture_and_leaves_the_model_alone(space):
    model = small().train()
    assert isinstance(model, HasLayerStyles)
    target = model.synthesize(model.map_latents(model.draw_latents(1, torch.Generator().manual_seed(1))))[0]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = project(model, target, space=space, steps=150, num_styles=500, snapshots=4)
    assert found.steps == [0, 50, 100, 150]
    assert found.path.shape == (4, LAYERS, 8)
    assert found.distances[-1] < 0.02 * found.distances[0]
    image = model.synthesize(found.styles[None])
    assert pixel_distance(image, target[None]).item() == pytest.approx(found.distances[-1].item(), rel=1e-3, abs=1e-7)
    assert (found.styles == found.styles[0]).all() == (space == "w")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_optimised_noise_comes_near_and_stays_white_where_it_should():
    model = small()
    styles = model.map_latents(model.draw_latents(1, torch.Generator().manual_seed(1)))
    target = model.synthesize(styles, noise="random", generator=torch.Generator().manual_seed(2))[0]
    free, white = (
        project(model, target, noise="optimised", noise_weight=weight, steps=100, num_styles=500)
        for weight in (0.0, 1e5)
    )
    assert noise_correlation(white.noise) < 0.01 * noise_correlation(free.noise)
    assert free.distances[-1] < 0.5 * white.distances[-1]
    fixed = project(model, target, steps=1, num_styles=500)
    for found, own in zip(fixed.noise, model.noise_maps(), strict=True):
        assert torch.equal(found, own)


def test_noise_whose_neighbours_are_alike_is_seen_at_every_size():
    rows = torch.ones(16)
    rows[::2] = -1
    # Neighbours below have product -1, beside 1; the mean of 2 x 2 is 0.
    assert noise_correlation([rows.view(1, 1, 16, 1).expand(-1, -1, -1, 16)]).item() == 2
    # All are alike: 1 + 1 of 16 x 16; times 2, of 8 x 8, 4^2 + 4^2.
    assert noise_correlation([torch.ones(1, 1, 16, 16)]).item() == 34
    assert noise_correlation([torch.ones(1, 1, 4, 8)] * 2).item() == 4
    # Of white noise the mean square of a mean of n products is 1 / n, for each of two sides at 64, 32, 16 and 8.
    torch.manual_seed(0)
    drawn = torch.stack([noise_correlation([torch.randn(1, 1, 64, 64)]) for _ in range(64)])
    assert_mean(drawn[:, None], [sum(2 / side**2 for side in (64, 32, 16, 8))])


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((3, 8, 8), {}, r"The target must be \[3, 16, 16\], as the model's pictures; got \[3, 8, 8\]\."),
        (SHAPE, {"steps": 0}, "steps must be at least 1, got 0."),
        (SHAPE, {"learning_rate": 0.0}, "learning_rate must be above 0"),
        (SHAPE, {"noise": "loud"}, "noise must be 'fixed' or 'optimised', got 'loud'"),
    ],
)
def test_what_cannot_be_projected(shape, settings, message):
    with pytest.raises(ValueError, match=message):
        project(small(), torch.zeros(shape), **settings)
