import math

import pytest
import torch
from torch import nn

from lightning_gen.checkpoints import CheckpointError
from lightning_gen.hyperparameters import CLASS_KEY, Recipe, hyperparameters_of
from lightning_gen.losses import (
    AdversarialLoss,
    AuxiliaryClassifier,
    Hinge,
    LeastSquares,
    Minimax,
    NonSaturating,
    RelativisticPairing,
    SeparableLoss,
    Wasserstein,
)

LOSSES = [Minimax(), NonSaturating(), LeastSquares(), LeastSquares(a=-1, b=1, c=0), Hinge(), Wasserstein()]


def test_values_by_hand():
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([1.0, -1.0])
    log = lambda x: math.log(1 / (1 + math.exp(-x)))  # noqa: E731
    # Sums of both means: neither halved nor averaged.
    cross_entropy = -(log(2) + log(0)) / 2 - (log(-1) + log(1)) / 2
    assert Minimax().discriminator(real, fake).item() == pytest.approx(cross_entropy)
    assert Minimax().generator(fake).item() == pytest.approx((log(-1) + log(1)) / 2)
    assert NonSaturating().discriminator(real, fake).item() == pytest.approx(cross_entropy)
    assert NonSaturating().generator(torch.tensor([3.0])).item() == pytest.approx(-log(3))
    assert LeastSquares().discriminator(real, fake) == 1 + 1
    assert LeastSquares().generator(fake) == 2  # (0 + 4) / 2
    assert LeastSquares(a=-1, b=3, c=0.5).discriminator(real, fake) == (1 + 9) / 2 + (4 + 0) / 2
    assert LeastSquares(a=-1, b=3, c=0.5).generator(fake) == (0.25 + 2.25) / 2
    assert Hinge().discriminator(real, fake) == (0 + 1) / 2 + (2 + 0) / 2
    assert Hinge().generator(torch.tensor([3.0, 4.0])) == -3.5  # linear: not clipped at the margin
    assert Wasserstein().discriminator(real, fake) == -1
    assert Wasserstein().generator(torch.tensor([3.0, 4.0])) == -3.5


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_separable_loss_ignores_the_scores_of_real_pictures(loss):
    fake = torch.tensor([1.0, -1.0])
    assert not loss.paired
    assert torch.equal(loss.generator(fake, torch.tensor([5.0, 2.0])), loss.generator(fake))


def test_relativistic_pairing_is_a_sum_over_pairs():
    torch.manual_seed(0)
    real, fake = (torch.randn(3, 1, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    loss, pairs = RelativisticPairing(), list(zip(real.flatten(), fake.flatten(), strict=True))
    assert loss.paired
    f = lambda t: -math.log(1 + math.exp(-t))  # the paper's  # noqa: E731
    discriminator, generator = loss.discriminator(real, fake), loss.generator(fake, real)
    assert discriminator.item() == pytest.approx(-sum(f(r.item() - g.item()) for r, g in pairs) / len(pairs))
    assert generator.item() == pytest.approx(-sum(f(g.item() - r.item()) for r, g in pairs) / len(pairs))
    # d/dt of -f(t) is -sigmoid(-t): only differences matter, so the players' gradients by a pair's scores cancel.
    by_real, by_fake = torch.autograd.grad(discriminator, (real, fake))
    torch.testing.assert_close(by_real, -torch.sigmoid(fake - real).detach() / len(pairs))
    assert torch.equal(by_real, -by_fake)
    (by_fake,) = torch.autograd.grad(generator, fake)
    torch.testing.assert_close(by_fake, -torch.sigmoid(real - fake).detach() / len(pairs))
    assert torch.autograd.gradcheck(loss.discriminator, (real, fake))
    # The pairing matters, as it does not in a separable loss.
    assert not torch.isclose(loss.discriminator(real, fake.flip(0)), discriminator)
    halves = torch.tensor([9e4]).bfloat16(), torch.tensor([-9e4]).bfloat16()
    assert loss.discriminator(*halves).dtype == loss.generator(*halves).dtype == torch.float32
    assert loss.generator(halves[1], halves[0]).isfinite()


def test_relativistic_pairing_says_what_it_lacks():
    scores = torch.zeros(3, 1)
    with pytest.raises(ValueError, match="real pictures"):
        RelativisticPairing().generator(scores)
    with pytest.raises(ValueError, match=r"\(3, 1\) for real pictures and \(6, 1\) for fakes"):
        RelativisticPairing().discriminator(scores, torch.zeros(6, 1))


def test_a_classifier_beside_the_score_is_paid_for_by_both_players():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, 3), torch.tensor([[0, 1, 2, 1], [2, 0, 0, 1]])
    scores = torch.randn(2, 4)
    real, fake = (
        torch.stack([score, logit.log_softmax(1).gather(1, label[:, None])[:, 0]], dim=1)
        for score, logit, label in zip(scores, logits, labels, strict=True)
    )
    entropies = [nn.functional.cross_entropy(logit, label) for logit, label in zip(logits, labels, strict=True)]
    loss = AuxiliaryClassifier(Wasserstein(), weight=0.5)
    expected = scores[1].mean() - scores[0].mean() + 0.5 * sum(entropies)
    torch.testing.assert_close(loss.discriminator(real, fake), expected)
    torch.testing.assert_close(loss.generator(fake), -scores[1].mean() + 0.5 * entropies[1])


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_each_player_pulls_scores_its_own_way(loss):
    real, fake = torch.full((4,), -0.5, requires_grad=True), torch.full((4,), -0.5, requires_grad=True)
    loss.discriminator(real, fake).backward()
    assert (real.grad < 0).all()  # descent raises the scores of real pictures
    fake.grad = None
    loss.discriminator(torch.zeros(4), fake + 1).backward()
    assert (fake.grad > 0).all()  # and lowers those of fakes
    fake.grad = None
    loss.generator(fake).backward()
    assert (fake.grad < 0).all()


def best_score(loss, p, q):
    """Where p * real_terms + q * fake_terms is least, by Newton's method in float64."""
    score = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for _ in range(20):
        cost = p * loss.real_terms(score) + q * loss.fake_terms(score)
        (first,) = torch.autograd.grad(cost, score, create_graph=True)
        (second,) = torch.autograd.grad(first, score)
        score = (score - first / second).detach().requires_grad_()
    return score.item()


def test_optimal_discriminators():
    # Where real and fake appear with densities p and q.
    p, q = 0.3, 0.1
    assert best_score(LeastSquares(), p, q) == pytest.approx(p / (p + q))
    assert best_score(LeastSquares(a=-1, b=2), p, q) == pytest.approx((2 * p - q) / (p + q))  # eq. 5 of the paper
    assert best_score(Minimax(), p, q) == pytest.approx(math.log(p / q))


def test_the_minimax_game_is_worth_log_4_at_its_equilibrium():
    scores = torch.zeros(5)  # D = 1/2 everywhere
    assert -Minimax().discriminator(scores, scores).item() == pytest.approx(-math.log(4))


def test_the_minimax_generator_stalls_where_the_non_saturating_one_does_not():
    score = torch.tensor(-20.0, requires_grad=True)  # a fake that the discriminator is sure of
    (stalled,) = torch.autograd.grad(Minimax().generator(score), score)
    (moving,) = torch.autograd.grad(NonSaturating().generator(score), score)
    assert stalled.item() == pytest.approx(-math.exp(-20), rel=1e-5)
    assert moving.item() == pytest.approx(-1)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("scale", [80.0, -80.0])
def test_large_scores_stay_finite_and_halves_are_computed_in_float32(loss, scale):
    scores = torch.full((3,), scale, requires_grad=True)
    value = loss.discriminator(scores, scores) + loss.generator(scores)
    value.backward()
    assert value.isfinite()
    assert scores.grad.isfinite().all()
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float64,) * 2):
        halves = scores.detach().to(dtype)
        for result in (
            loss.discriminator(halves, halves),
            loss.generator(halves),
            loss.real_terms(halves),
            loss.fake_terms(halves),
        ):
            assert result.dtype == expected
    # 300^2 does not fit in float16.
    assert loss.discriminator(torch.tensor([300.0]).half(), torch.tensor([300.0]).half()).isfinite()


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_terms_are_elementwise_and_batches_of_any_size_and_shape_are_averaged_apart(loss):
    real, fake = torch.randn(3, 1, 4, 5), torch.randn(6, 1, 2, 2)
    assert loss.real_terms(real).shape == real.shape
    assert loss.fake_terms(fake).shape == fake.shape
    alone = torch.stack([loss.fake_terms(score) for score in fake.flatten()]).reshape(fake.shape)
    torch.testing.assert_close(loss.fake_terms(fake), alone)
    expected = loss.real_terms(real).mean() + loss.fake_terms(fake).mean()
    torch.testing.assert_close(loss.discriminator(real, fake), expected)


@pytest.mark.parametrize("loss", [*LOSSES, RelativisticPairing()], ids=repr)
def test_a_checkpoint_names_each(loss):
    saved = hyperparameters_of({"loss": loss})["loss"]
    assert Recipe({CLASS_KEY: saved["class_path"], **saved["init_args"]}, AdversarialLoss).build() == loss
    with pytest.raises(CheckpointError):
        Recipe({CLASS_KEY: saved["class_path"], **saved["init_args"]}, nn.Module).build()
    assert isinstance(loss, SeparableLoss) != loss.paired
