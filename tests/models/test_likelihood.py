"""What models with a density log: likelihoods, or bounds under names of their own."""

import math

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_gen.data import Digits
from lightning_gen.models.likelihood import LikelihoodModule


class Toy(LikelihoodModule):
    """Gives every picture so many nats for each of its values that is black."""

    def __init__(self, image_shape, num_levels):
        super().__init__(image_shape, num_levels)
        self.save_hyperparameters()

    def log_prob(self, images):
        return -0.5 * (images == -1).flatten(1).sum(1).float()


class Bounded(Toy):
    bound = "elbo"


def validate(model, data):
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu")
    (found,) = trainer.validate(model, data, verbose=False)
    return found


@pytest.mark.parametrize("kind", [Toy, Bounded])
def test_figures_of_a_bound_have_names_of_their_own(kind):
    images = torch.ones(6, 1, 2, 4)
    for number in range(6):
        images[number].flatten()[:number] = -1
    model = kind((1, 2, 4), 256)
    found = validate(model, DataLoader(images, 4))
    nats, bits = 0.5 * 2.5, 0.5 * 2.5 / 8 / math.log(2)
    expected = {"val/nll": nats, "val/bpd": bits} if kind is Toy else {"val/elbo": -nats, "val/bpd-elbo": bits}
    assert found == pytest.approx(expected)
    log_prob = model.log_prob(images)
    for metric in model.metrics["test"]:  # which nothing has reset
        metric.update(log_prob)
    scatter = 0.5 * torch.arange(6.0).std().item() / math.sqrt(6)
    errors = [metric.standard_error().item() for metric in model.metrics["test"]]
    assert errors == pytest.approx([scatter, scatter / 8 / math.log(2)])


def test_a_bound_names_the_binarization_too():
    found = validate(Bounded((1, 8, 8), 2), Digits(binarization="static", num_workers=0))
    assert found.keys() == {"val/elbo-static", "val/bpd-1bit-elbo"}
    assert found["val/elbo-static"] < 0
