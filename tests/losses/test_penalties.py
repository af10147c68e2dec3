import dataclasses

import pytest
import torch
from torch import nn

from lightning_gen.hyperparameters import CLASS_KEY, Recipe, hyperparameters_of
from lightning_gen.losses import DRAGAN, R1, R2, Drift, GradientPenalty, Penalty
from lightning_gen.schedules import Cosine

GRADIENT_PENALTIES = [GradientPenalty(), GradientPenalty(one_sided=True), R1(), R2(), DRAGAN()]
PENALTIES = [*GRADIENT_PENALTIES, Drift()]


class Linear(nn.Module):
    """D(x) = <w, x>, whose gradient is w everywhere."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images):
        return (images * self.weight).flatten(1).sum(dim=1)


class Quadratic(Linear):
    """D(x) = 1/2 sum w x^2, whose gradient is w x; it keeps the pictures it saw."""

    def forward(self, images):
        self.seen = images.detach()
        return super().forward(images.square()) / 2


@pytest.fixture
def pictures():
    torch.manual_seed(0)
    return torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)


def norms(tensor):
    return tensor.flatten(1).square().sum(dim=1).sqrt()


@pytest.mark.parametrize("size", [0.5, 3.0])
def test_values_and_weight_gradients_on_a_linear_critic(pictures, size):
    weight = torch.randn(3, 4, 4)
    weight *= size / weight.norm()  # over the flattened sample: not a channel, not a pixel
    direction = weight / size
    above = max(size - 1, 0.0)
    for penalty, value, gradient in (
        (GradientPenalty(), 10 * (size - 1) ** 2, 20 * (size - 1) * direction),
        (GradientPenalty(2.0, target=0.0), 2 * size**2, 4 * weight),
        (GradientPenalty(one_sided=True), 10 * above**2, 20 * above * direction),
        (R1(), 5 * size**2, 10 * weight),
        (R2(3.0), 1.5 * size**2, 3 * weight),
        (DRAGAN(), 10 * (size - 1) ** 2, 20 * (size - 1) * direction),
        (DRAGAN(target=2.0), 10 * (size - 2) ** 2, 20 * (size - 2) * direction),
    ):
        critic = Linear(weight)
        result = penalty(critic, *pictures)
        result.backward()
        assert result.shape == ()
        torch.testing.assert_close(result, torch.tensor(value), msg=lambda m, p=penalty: f"{p}: {m}")
        torch.testing.assert_close(critic.weight.grad, gradient, msg=lambda m, p=penalty: f"{p}: {m}")


def test_values_and_weight_gradients_on_a_quadratic_critic(pictures):
    real, fake = pictures
    weight = torch.randn(3, 4, 4)

    def grown(penalty):
        critic = Quadratic(weight)
        result = penalty(critic, real, fake)
        result.backward()
        return result.detach(), critic.weight.grad, critic.seen

    for penalty, points in ((R1(4.0), real), (R2(4.0), fake)):
        value, gradient, seen = grown(penalty)
        assert torch.equal(seen, points)
        torch.testing.assert_close(value, 2 * norms(weight * points).square().mean())
        torch.testing.assert_close(gradient, 4 * (weight * points.square()).mean(dim=0))
    for penalty in (GradientPenalty(), DRAGAN()):
        value, gradient, seen = grown(penalty)
        norm = norms(weight * seen)
        torch.testing.assert_close(value, 10 * (norm - 1).square().mean())
        pull = (20 * (norm - 1) / norm)[:, None, None, None]
        torch.testing.assert_close(gradient, (pull * weight * seen.square()).mean(dim=0))


def test_drift_is_the_mean_square_of_real_scores(pictures):
    real, fake = pictures
    critic = Linear(torch.randn(3, 4, 4))
    value = Drift(0.5)(critic, real, fake)
    torch.testing.assert_close(value, 0.5 * critic(real).square().mean())
    value.backward()
    expected = (critic(real).detach()[:, None, None, None] * real).mean(dim=0)
    torch.testing.assert_close(critic.weight.grad, expected)
    assert not Drift().double_backward
    assert all(penalty.double_backward for penalty in GRADIENT_PENALTIES)


@pytest.mark.parametrize("penalty", GRADIENT_PENALTIES, ids=repr)
def test_many_scores_a_picture_are_penalised_through_their_mean(pictures, penalty):
    weight = torch.randn(3, 4, 4)

    class Patches(Linear):
        def forward(self, images):
            patches = torch.linspace(0, 2, 36).reshape(1, 1, 6, 6)  # of mean 1
            return super().forward(images)[:, None, None, None] * patches

    torch.testing.assert_close(penalty(Patches(weight), *pictures), penalty(Linear(weight), *pictures))


def test_one_epsilon_a_sample_and_points_between_real_and_fake():
    real, fake = torch.ones(64, 2, 3, 3), torch.zeros(64, 2, 3, 3)
    critic = Quadratic(torch.ones(2, 3, 3))
    GradientPenalty()(critic, real, fake)
    flat = critic.seen.flatten(1)  # here the points are epsilon themselves
    assert torch.equal(flat.amax(dim=1), flat.amin(dim=1))
    assert len(flat[:, 0].unique()) == 64
    assert flat.min() >= 0
    assert flat.max() <= 1
    assert abs(flat[:, 0].mean() - 0.5) < 0.15  # 64 uniforms: standard error 0.036


def test_dragan_looks_around_real_pictures_in_proportion_to_their_spread():
    real = 2 * torch.randn(64, 2, 8, 8) + 5
    critic = Quadratic(torch.ones(2, 8, 8))
    DRAGAN()(critic, real, torch.zeros(64, 2, 8, 8))
    noise = ((critic.seen - real) / (0.5 * real.std())).flatten(1)
    assert noise.min() > -1e-5  # the authors' noise only adds
    assert noise.max() < 1.001
    # A uniform number a pixel, times one a sample: means of 1/2 and 1/4, and a sample's largest tells its own strength.
    assert abs(noise.mean() - 0.25) < 0.06  # 64 samples of standard deviation 0.144: standard error 0.018
    strengths = noise.amax(dim=1)
    assert strengths.min() < 0.2
    assert strengths.max() > 0.8
    torch.testing.assert_close(noise.mean(dim=1), strengths / 2, rtol=0, atol=0.12)
    constant = torch.full((2, 1, 4, 4), 3.0)
    critic = Quadratic(torch.ones(1, 4, 4))
    DRAGAN()(critic, constant, constant)
    assert torch.equal(critic.seen, constant)


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_of_autocast_do_not_reach_the_penalty(penalty, dtype):
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(8 * 36, 1))
    # Scores of many thousands, whose squares do not fit in float16, and fakes as autocast makes them.
    real, fake = 1e5 * torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8).to(dtype)
    results = []
    for mixed in (False, True):
        critic.zero_grad()
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=dtype, enabled=mixed):
            value = penalty(critic, real, fake if mixed else fake.float())
        value.backward()
        results.append((value.detach(), *(p.grad for p in critic.parameters() if p.grad is not None)))
    for exact, mixed in zip(*results, strict=True):
        assert exact.dtype == torch.float32
        assert exact.isfinite().all()
        assert torch.equal(exact, mixed)


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_true_half_and_double_runs_keep_their_precision(penalty, pictures):
    real, fake = pictures
    exact = penalty(Linear(torch.ones(3, 4, 4).double()), real.double(), fake)
    assert exact.dtype == torch.float64
    half = penalty(Linear(torch.ones(3, 4, 4).bfloat16()), real.bfloat16(), fake)
    assert half.dtype == torch.float32  # the sums, not the network
    assert half.isfinite()


@pytest.mark.parametrize("penalty", GRADIENT_PENALTIES, ids=repr)
def test_a_closure_with_labels_is_a_discriminator(penalty, pictures):
    labels = torch.arange(5)
    table = nn.Embedding(7, 48)

    def discriminator(images):
        return (images.flatten(1) * table(labels)).sum(dim=1)

    penalty(discriminator, *pictures).backward()
    used = table.weight.grad.abs().sum(dim=1) > 0
    assert not used[5:].any()
    assert used[:5].all()


@pytest.mark.parametrize("penalty", GRADIENT_PENALTIES, ids=repr)
def test_a_critic_that_is_flat_somewhere_gives_no_nan(penalty, pictures):
    flat = Linear(torch.zeros(3, 4, 4))
    value = penalty(flat, *pictures)
    value.backward()
    assert value.isfinite()
    assert torch.equal(flat.weight.grad, torch.zeros(3, 4, 4))


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_pictures_and_modes_are_left_as_found(penalty, pictures):
    real, fake = pictures
    fake = fake.requires_grad_()
    kept = real.clone()
    critic = Quadratic(torch.randn(3, 4, 4))
    with torch.no_grad():
        penalty(critic, real, fake)
        assert not torch.is_grad_enabled()
    penalty(critic, real, fake).backward()
    assert torch.equal(real, kept)
    assert not real.requires_grad
    assert fake.grad is None


@pytest.mark.parametrize("penalty", GRADIENT_PENALTIES, ids=repr)
def test_a_critic_that_ignores_its_input_is_named(penalty):
    images = torch.zeros(2, 1, 4, 4)
    for scores in (torch.zeros(2), torch.zeros(2, requires_grad=True)):
        with pytest.raises(ValueError, match=f"{type(penalty).__name__}.*do not depend on its input"):
            penalty(lambda images, scores=scores: scores, images, images)


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_weights_scale_intervals_do_not_and_both_are_checked(penalty, pictures):
    critic = Linear(torch.ones(3, 4, 4))

    def value(**changes):
        return dataclasses.replace(penalty, **changes)(critic, *pictures)

    torch.testing.assert_close(value(weight=4.0), 4 * value(weight=1.0))
    assert value(weight=0.0) == 0
    torch.testing.assert_close(value(interval=16), value())  # the game multiplies
    with pytest.raises(ValueError, match=rf"{type(penalty).__name__} needs weight >= 0, got -1"):
        dataclasses.replace(penalty, weight=-1)
    with pytest.raises(ValueError, match="weight >= 0, got nan"):
        dataclasses.replace(penalty, weight=float("nan"))
    with pytest.raises(ValueError, match=r"interval >= 1 .*got 0"):
        dataclasses.replace(penalty, interval=0)


@pytest.mark.parametrize("penalty", PENALTIES, ids=repr)
def test_a_checkpoint_names_each(penalty):
    changed = dataclasses.replace(penalty, weight=2.5, interval=4)
    saved = hyperparameters_of({"penalty": changed})["penalty"]
    assert Recipe({CLASS_KEY: saved["class_path"], **saved["init_args"]}, Penalty).build() == changed


@pytest.mark.parametrize("penalty", [R1, R2, GradientPenalty, DRAGAN, Drift])
def test_a_weight_may_be_a_schedule_of_which_a_model_takes_the_number(penalty, pictures):
    weight = Cosine(4.0, 1.0, 100, by="images")
    scheduled, critic = penalty(weight), Quadratic(torch.ones(3, 4, 4))
    torch.manual_seed(1)
    value = scheduled.with_weight(weight(50))(critic, *pictures)
    torch.manual_seed(1)
    torch.testing.assert_close(value, penalty(2.5)(critic, *pictures))
    with pytest.raises(ValueError, match=rf"The weight of this {penalty.__name__} is a schedule, Cosine\(start=4.0"):
        scheduled(critic, *pictures)
    with pytest.raises(ValueError, match="needs weight >= 0"):
        penalty(Cosine(1.0, -1.0, 100))
    saved = hyperparameters_of({"penalty": scheduled})["penalty"]
    assert Recipe({CLASS_KEY: saved["class_path"], **saved["init_args"]}, Penalty).build() == scheduled
