import pytest
import torch
from torch import nn

from lightning_gen.losses import GradientPenalty, LeastSquares, NonSaturating, Wasserstein


def test_values_by_hand():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([1.0, -1.0])
    assert LeastSquares().discriminator(real, fake) == 0.5 * (1 + 1)
    assert LeastSquares().generator(fake) == 2  # (0 + 4) / 2: not halved again
    log = lambda x: torch.log(torch.sigmoid(torch.tensor(x)))  # noqa: E731
    expected = -0.5 * ((log(2.0) + log(0.0)) / 2 + (log(-1.0) + log(1.0)) / 2)
    torch.testing.assert_close(NonSaturating().discriminator(real, fake), expected)
    torch.testing.assert_close(NonSaturating().generator(fake), -(log(1.0) + log(-1.0)) / 2)
    assert Wasserstein().discriminator(real, fake) == -1
    assert Wasserstein().generator(fake) == 0


@pytest.mark.parametrize("loss", [LeastSquares(), NonSaturating(), Wasserstein()])
def test_each_player_pulls_scores_its_own_way(loss):
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    loss.discriminator(real, fake).backward()
    assert (real.grad < 0).all()  # descent raises the scores of real pictures
    assert (fake.grad >= 0).all()  # and does not raise those of fakes
    fake.grad = None
    loss.generator(fake).backward()
    assert (fake.grad < 0).all()


def test_the_optimal_least_squares_discriminator_is_the_share_of_real():
    # Where real and fake appear with densities p and q, the minimum is at p / (p + q).
    score = torch.tensor(0.0, requires_grad=True)
    p, q = 0.3, 0.1
    loss = p * LeastSquares().discriminator(score, torch.zeros(())) + q * LeastSquares().discriminator(
        torch.ones(()), score
    )
    (first,) = torch.autograd.grad(loss, score, create_graph=True)
    (second,) = torch.autograd.grad(first, score)
    assert (-first / second).item() == pytest.approx(p / (p + q))


@pytest.mark.parametrize("scale", [80.0, -80.0])
def test_large_scores_stay_finite_and_bf16_scores_are_computed_in_float32(scale):
    scores = torch.full((3,), scale, requires_grad=True)
    for loss in (LeastSquares(), NonSaturating(), Wasserstein()):
        value = loss.discriminator(scores, scores) + loss.generator(scores)
        value.backward()
        assert value.isfinite()
        assert loss.generator(scores.bfloat16()).dtype == torch.float32
    assert scores.grad.isfinite().all()


class Linear(nn.Module):
    """D(x) = <w, x>, whose gradient is w everywhere."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images):
        return (images * self.weight).flatten(1).sum(dim=1)


def test_the_gradient_penalty_of_a_linear_critic_is_exact():
    weight = torch.randn(3, 4, 4)
    real, fake = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
    # The norm is over the flattened sample: not a channel, not a pixel.
    expected = 10 * (weight.norm() - 1) ** 2
    torch.testing.assert_close(GradientPenalty()(Linear(weight), real, fake), expected)
    # It can be differentiated with respect to the weights: 20 (|w| - 1) w / |w|.
    critic = Linear(weight)
    GradientPenalty()(critic, real, fake).backward()
    torch.testing.assert_close(critic.weight.grad, 20 * (weight.norm() - 1) * weight / weight.norm())


def test_many_scores_a_picture_are_penalised_through_their_mean():
    weight = torch.randn(3, 4, 4)

    class Patches(Linear):
        def forward(self, images):
            return super().forward(images)[:, None, None, None].expand(-1, 1, 6, 6)

    real, fake = torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
    expected = GradientPenalty()(Linear(weight), real, fake)
    torch.testing.assert_close(GradientPenalty()(Patches(weight), real, fake), expected)


def test_one_epsilon_a_sample_and_points_between_real_and_fake():
    seen = []

    class Spy(nn.Module):
        def forward(self, images):
            seen.append(images.detach())
            return images.square().flatten(1).sum(dim=1)

    real, fake = torch.ones(64, 2, 3, 3), torch.zeros(64, 2, 3, 3)
    GradientPenalty()(Spy(), real, fake)
    flat = seen[0].flatten(1)  # here the points are epsilon themselves
    assert torch.equal(flat.amax(dim=1), flat.amin(dim=1))
    assert len(flat[:, 0].unique()) == 64
    assert flat.min() >= 0
    assert flat.max() <= 1
    assert abs(flat[:, 0].mean() - 0.5) < 0.15  # 64 uniforms: standard error 0.036


def test_the_penalty_is_float32_under_autocast():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8 * 36, 1))
    real, fake = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    torch.manual_seed(1)
    exact = GradientPenalty()(critic, real, fake)
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = GradientPenalty()(critic, real, fake)
    assert torch.equal(exact, mixed)


def test_a_critic_that_ignores_its_input_is_named():
    class Constant(nn.Module):
        def forward(self, images):
            return torch.zeros(len(images), requires_grad=True)

    with pytest.raises(ValueError, match="do not depend on its input"):
        GradientPenalty()(Constant(), torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match="weight >= 0"):
        GradientPenalty(weight=-1)
