import jsonargparse
import pytest
import torch
import torch.nn.functional as F

from lightning_gen.checkpoints import CheckpointError
from lightning_gen.hyperparameters import CLASS_KEY, Recipe, hyperparameters_of
from lightning_gen.losses import (
    FDivergence,
    Hinge,
    InstanceNoise,
    LabelFlipping,
    LabelSmoothing,
    LeastSquares,
    Minimax,
    NonSaturating,
    SeparableLoss,
    Wasserstein,
)


@pytest.fixture
def scores():
    torch.manual_seed(0)
    return torch.randn(40, 1, 3, 3), torch.randn(40, 1, 3, 3)


def test_smoothing_is_soft_targets_for_cross_entropy(scores):
    real, fake = scores
    bce = F.binary_cross_entropy_with_logits
    one_sided = LabelSmoothing(NonSaturating())
    expected = bce(real, torch.full_like(real, 0.9)) + bce(fake, torch.zeros_like(fake))
    torch.testing.assert_close(one_sided.discriminator(real, fake), expected)
    two_sided = LabelSmoothing(Minimax(), real=0.2, fake=0.3)
    expected = bce(real, torch.full_like(real, 0.8)) + bce(fake, torch.full_like(fake, 0.3))
    torch.testing.assert_close(two_sided.discriminator(real, fake), expected)


def test_smoothing_is_soft_targets_for_least_squares_up_to_a_constant(scores):
    real, fake = scores
    a, b = -1.0, 3.0
    smoothed = LabelSmoothing(LeastSquares(a, b), real=0.1, fake=0.2)
    soft = (real - (b - 0.1 * (b - a))).square().mean() + (fake - (a + 0.2 * (b - a))).square().mean()
    constant = (0.1 * 0.9 + 0.2 * 0.8) * (b - a) ** 2  # the variance of the label
    torch.testing.assert_close(smoothed.discriminator(real, fake), soft + constant)


@pytest.mark.parametrize("loss", [NonSaturating(), Hinge(), FDivergence("kl", "alternative")], ids=repr)
def test_tricks_leave_the_generator_and_at_zero_the_discriminator_alone(loss, scores):
    for trick in (LabelSmoothing(loss, 0.3, 0.2), LabelFlipping(loss, 0.4)):
        assert torch.equal(trick.generator(scores[1]), loss.generator(scores[1]))
    for trick in (LabelSmoothing(loss, 0.0), LabelFlipping(loss, 0.0)):
        assert torch.equal(trick.discriminator(*scores), loss.discriminator(*scores))


def test_flipping_swaps_whole_samples_as_often_as_said():
    torch.manual_seed(0)
    loss = LabelFlipping(Wasserstein(), 0.3)
    scores = torch.ones(20_000, 1, 2, 2)
    for terms, own in ((loss.real_terms(scores), -1), (loss.fake_terms(scores), 1)):
        flat = terms.flatten(1)
        assert torch.equal(flat.amin(dim=1), flat.amax(dim=1))  # one draw a sample, for all its patches
        swapped = (flat[:, 0] == -own).double().mean().item()
        assert swapped == pytest.approx(0.3, abs=0.013)  # four standard errors of 0.0032
    assert (loss.real_terms(scores[:, 0, 0, 0]) == 1).float().mean().item() == pytest.approx(0.3, abs=0.013)
    assert not torch.equal(loss.real_terms(scores), loss.real_terms(scores))  # a new draw every time
    torch.manual_seed(1)
    first = loss.discriminator(scores, scores)
    torch.manual_seed(1)
    assert torch.equal(loss.discriminator(scores, scores), first)


@pytest.mark.parametrize("loss", [NonSaturating(), LeastSquares(), Hinge()], ids=repr)
def test_flipping_is_smoothing_on_average(loss):
    torch.manual_seed(0)
    real, fake = (torch.randn(1).expand(40_000) for _ in range(2))
    flipped = LabelFlipping(loss, 0.2).discriminator(real, fake)
    smoothed = LabelSmoothing(loss, 0.2, 0.2).discriminator(real, fake)
    torch.testing.assert_close(flipped, smoothed, rtol=0, atol=0.03)


def test_tricks_nest(scores):
    real, _ = scores
    # Smoothing twice is smoothing once, by the chance that one of two swaps is undone by the other.
    twice = LabelSmoothing(LabelSmoothing(Minimax(), 0.1, 0.1), 0.2, 0.2)
    share = 0.1 * 0.8 + 0.9 * 0.2
    torch.testing.assert_close(twice.real_terms(real), LabelSmoothing(Minimax(), share).real_terms(real))
    assert LabelFlipping(twice, 0.1).discriminator(*scores).isfinite()


def test_shares_are_checked():
    for share in (-0.1, 0.5, float("nan")):
        with pytest.raises(ValueError, match=r"LabelSmoothing needs real in \[0, 0.5\), got"):
            LabelSmoothing(Minimax(), real=share)
        with pytest.raises(ValueError, match=r"LabelSmoothing needs fake in \[0, 0.5\), got"):
            LabelSmoothing(Minimax(), fake=share)
        with pytest.raises(ValueError, match=r"LabelFlipping needs probability in \[0, 0.5\), got"):
            LabelFlipping(Minimax(), share)
    with pytest.raises(ValueError, match="std >= 0"):
        InstanceNoise(-0.1)
    with pytest.raises(ValueError, match="anneal_steps >= 1, or None"):
        InstanceNoise(0.1, 0)


def test_a_checkpoint_and_a_config_build_nested_losses():
    loss = LabelFlipping(LabelSmoothing(FDivergence("pearson"), 0.2), 0.1)
    saved = hyperparameters_of({"loss": loss})["loss"]
    assert Recipe({CLASS_KEY: saved["class_path"], **saved["init_args"]}, SeparableLoss).build() == loss
    saved["init_args"]["loss"]["class_path"] = "lightning_gen.losses.GradientPenalty"
    with pytest.raises(CheckpointError, match="SeparableLoss"):
        Recipe({CLASS_KEY: saved["class_path"], **saved["init_args"]}, SeparableLoss).build()

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=SeparableLoss)
    parser.add_argument("--noise", type=InstanceNoise)
    config = """
    loss:
      class_path: lightning_gen.losses.LabelFlipping
      init_args:
        probability: 0.1
        loss:
          class_path: lightning_gen.losses.LabelSmoothing
          init_args:
            real: 0.2
            loss: {class_path: lightning_gen.losses.FDivergence, init_args: {divergence: pearson}}
    noise: {std: 0.2, anneal_steps: 50}
    """
    built = parser.instantiate(parser.parse_string(config))
    assert built.loss == loss
    assert built.noise == InstanceNoise(0.2, 50)
    with pytest.raises(jsonargparse.ArgumentError, match="divergence"):
        parser.parse_string(config.replace("pearson", "pearsson"))


def test_instance_noise_falls_linearly_to_nothing():
    torch.manual_seed(0)
    images = torch.full((10, 3, 32, 32), 0.5)
    noise = InstanceNoise(0.4, anneal_steps=200)
    for step, std in ((0, 0.4), (50, 0.3), (199, 0.002)):
        added = noise(images, step) - images
        assert noise.std_at(step) == pytest.approx(std)
        # 30720 draws: the deviation's standard error is 0.4 %, the mean's 0.6 % of std.
        assert added.std().item() == pytest.approx(std, rel=0.02)
        assert abs(added.mean().item()) < 0.03 * std
    for step in (200, 10_000):
        assert noise(images, step) is images
    assert InstanceNoise(0.0)(images, 0) is images
    constant = InstanceNoise(0.4)
    assert (constant(images, 10**6) - images).std().item() == pytest.approx(0.4, rel=0.02)
    assert not torch.equal(constant(images, 0), constant(images, 0))
    assert constant(images.bfloat16(), 0).dtype == torch.bfloat16
    assert torch.equal(images, torch.full_like(images, 0.5))
