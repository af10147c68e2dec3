import pytest
import torch

from lightning_gen.models.image_pool import ImagePool


def images(*values):
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


def test_a_pool_of_size_zero_passes_everything_through():
    batch = images(1, 2, 3).requires_grad_()
    given = ImagePool(0)(batch)
    assert torch.equal(given, batch)
    assert not given.requires_grad


def test_it_fills_first():
    pool = ImagePool(3)
    assert torch.equal(pool(images(1, 2, 3)), images(1, 2, 3))
    assert torch.equal(pool.state(), images(1, 2, 3))


def test_afterwards_half_of_the_pictures_come_from_the_history_and_replace_what_they_take():
    torch.manual_seed(0)
    pool, draws = ImagePool(50), 4000
    pool(images(*range(50)))
    history = set(range(50))
    replaced = 0
    for new in range(50, 50 + draws):
        given = int(pool(images(new))[0, 0, 0, 0])
        if given != new:
            assert given in history  # a stored picture, given once: it has left the pool
            history = (history - {given}) | {new}
            replaced += 1
        assert {int(image[0, 0, 0]) for image in pool.images[:3]} <= history
    # Binomial(4000, 1/2): standard deviation 32.
    assert abs(replaced - draws / 2) < 4 * 32
    assert len(pool.images) == 50


def test_the_history_is_a_copy_and_comes_back_bit_for_bit():
    pool = ImagePool(2)
    batch = torch.randn(2, 3, 4, 4)
    pool(batch)
    other = ImagePool(2)
    other.load(pool.state())
    batch.zero_()
    assert torch.equal(other.state(), pool.state())
    assert other.state().abs().sum() > 0
    other.load(None)
    assert other.state() is None


def test_a_negative_size_is_refused():
    with pytest.raises(ValueError, match="size >= 0, got -1"):
        ImagePool(-1)
