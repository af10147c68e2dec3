"""The loops beside which VQ-VAE is measured learn what ours does."""

import torch
from torch.utils.data import DataLoader

from benchmarks.autoencoders import vqvae
from benchmarks.contestants import Settings
from tests.shared import trainer

SETTINGS = Settings("VQVAE", 16, 4, "32-true", 16, 0, 0, True, False, False, 1, 0, 1)


def test_the_plain_loop_stays_bit_equal_to_ours():
    torch.manual_seed(0)
    contestants = vqvae(SETTINGS)
    ours, plain = contestants.ours, contestants.plain().__self__
    for mine, theirs in zip((ours.encoder, ours.quantizer, ours.decoder), parts(plain), strict=True):
        theirs.load_state_dict(mine.state_dict())
    trainer(max_steps=3).fit(ours, DataLoader([contestants.batch] * 3, batch_size=None))
    for _ in range(3):
        plain.step(contestants.batch)
    for mine, theirs in zip((ours.encoder, ours.quantizer, ours.decoder), parts(plain), strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True)
        )


def test_the_naive_loop_is_the_same_mathematics():
    torch.manual_seed(0)
    contestants = vqvae(SETTINGS)
    ours, naive = contestants.ours.double(), contestants.naive().__self__
    for mine, theirs in zip((ours.encoder, ours.decoder), (naive.encoder, naive.decoder), strict=True):
        theirs.double()
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            b.data.copy_(a.data)
    naive.quantizer.double()
    naive.quantizer.codebook.copy_(ours.quantizer.codebook)
    images = contestants.batch.double()
    sum(ours.terms(images, ours.encode(images)).values()).backward()
    naive.step(images)
    for mine, theirs in zip((ours.encoder, ours.decoder), (naive.encoder, naive.decoder), strict=True):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


def parts(plain):
    return plain.encoder, plain.quantizer, plain.decoder
