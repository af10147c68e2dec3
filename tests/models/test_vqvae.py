"""VQ-VAE and VQ-VAE-2: the loss of the paper, its gradient, codes, and what several processes and checkpoints hold."""

from functools import partial

import lightning.pytorch as pl
import lightning.pytorch.strategies.launchers.multiprocessing as launching
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from benchmarks.shipped import small, small_model
from lightning_gen.data import Scenes
from lightning_gen.generative import GenerativeModule
from lightning_gen.layers import DeepQuantizer, FiniteScalarQuantizer, VectorQuantizer
from lightning_gen.models import VQVAE, VQVAE2
from lightning_gen.networks import VQVAE2Decoder, VQVAE2Encoder, VQVAEDecoder
from tests.shared import differences, save, trainer

SHAPE = (3, 16, 16)
KINDS = {"VQVAE": small_model(VQVAE, SHAPE, data_variance=0.3), "VQVAE2": small_model(VQVAE2, SHAPE)}
each_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind="VQVAE", seed=0, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return KINDS[kind](**{"channels": 8, "quantizer": partial(VectorQuantizer, num_codes=32), **settings})


def pictures(number, seed=0):
    return torch.rand(number, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# -- the paper ------------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_the_authors_example():
    model = VQVAE((3, 32, 32))
    quantizer = model.quantizer
    assert sum(p.numel() for p in model.parameters()) == 372_416 + 290_307
    assert model.code_shape == (8, 8)
    assert (quantizer.num_codes, quantizer.channels) == (512, 64)
    assert (quantizer.beta, quantizer.decay, quantizer.eps) == (0.25, 0.99, 1e-5)
    optimizer = model.configure_optimizers()
    assert type(optimizer) is torch.optim.Adam
    assert optimizer.defaults["lr"] == 3e-4
    assert optimizer.defaults["betas"] == (0.9, 0.999)


def test_the_defaults_of_two_levels_are_those_of_the_port():
    model = VQVAE2((3, 256, 256))
    assert sum(p.numel() for p in model.parameters()) == 672_000 + 716_867
    assert model.code_shape == [(32, 32), (64, 64)]
    assert [(q.num_codes, q.channels, q.beta, q.decay) for q in model.quantizers] == [(512, 64, 0.25, 0.99)] * 2
    assert model.configure_optimizers().defaults["lr"] == 3e-4


def test_the_loss_is_the_papers():
    model, images = make(data_variance=0.7).eval(), pictures(4)
    features = model.encoder(images)
    codebook = model.quantizer.codebook
    tokens = features.movedim(1, -1)
    codes = torch.cdist(tokens.flatten(0, 2), codebook).argmin(1).view(4, 4, 4)
    vectors = codebook[codes].movedim(-1, 1)
    terms = model.terms(images, model.encode(images))
    assert terms.keys() == {"reconstruction", "commitment"}
    torch.testing.assert_close(terms["reconstruction"], (model.decoder(vectors) - images).square().mean() / 0.7)
    torch.testing.assert_close(terms["commitment"], 0.25 * (features - vectors).square().mean())
    assert torch.equal(model.codes(images), codes)


def test_the_loss_of_levels_is_one_reconstruction_and_the_sum_of_their_commitments():
    model, images = make("VQVAE2").eval(), pictures(4)
    top, bottom = model.encoder(images)
    top = model.encoder.to_quantize(0, top, None)
    top_vectors, top_codes, _ = model.quantizers[0](top)
    bottom = model.encoder.to_quantize(1, bottom, model.decoder.context([top_vectors]))
    bottom_vectors, bottom_codes, _ = model.quantizers[1](bottom)
    terms = model.terms(images, model.encode(images))
    error = (model.decoder([top_vectors, bottom_vectors]) - images).square().mean()
    torch.testing.assert_close(terms["reconstruction"], error)
    commitment = 0.25 * ((top - top_vectors).square().mean() + (bottom - bottom_vectors).square().mean())
    torch.testing.assert_close(terms["commitment"], commitment)
    assert terms.keys() == {"reconstruction", "commitment"}
    assert all(map(torch.equal, model.codes(images), [top_codes, bottom_codes]))


def test_the_decoders_gradient_reaches_the_encoder_as_it_is():
    model, images = make(), pictures(4)
    features = model.encoder(images)
    features.retain_grad()
    quantized, _, _ = model.quantizer(features)
    quantized.retain_grad()
    F.mse_loss(model.decoder(quantized), images).backward()
    assert torch.equal(features.grad, quantized.grad)
    assert features.grad.abs().max() > 0
    assert all(p.grad.abs().max() > 0 for p in model.encoder.parameters())


def test_finer_codes_depend_on_coarser_ones():
    """Which is what VQ-VAE-2 has beside two VQ-VAEs; a well-known port has not."""
    model, images = make("VQVAE2").eval(), pictures(8)
    with torch.no_grad():
        for weight in model.decoder.contexts.parameters():
            weight *= 3
    top, bottom = model.codes(images)
    model.quantizers[0].codebook.neg_()  # the coarse codes say something else
    assert not torch.equal(model.codes(images)[1], bottom)
    model.quantizers[0].codebook.neg_()
    model.decoder.context = lambda maps: torch.zeros(len(images), 8, 4, 4) if maps else None  # planted
    planted = model.codes(images)
    model.quantizers[0].codebook.neg_()
    assert torch.equal(model.codes(images)[1], planted[1])
    # And coarser ones depend on no finer one.
    model.quantizers[1].codebook.neg_()
    assert torch.equal(planted[0], top)


@each_kind
def test_losses_and_gradients_of_a_picture_do_not_depend_on_the_size_of_the_batch(kind):
    found = []
    for times in (1, 8, 64):
        model = make(kind).double()
        images = pictures(1).double().expand(times, -1, -1, -1)
        terms = model.terms(images, model.encode(images))
        sum(terms.values()).backward()
        found.append([*terms.values(), *[p.grad for p in model.parameters()]])
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


# -- codes and pictures ---------------------------------------------------------------------------------------------


QUANTIZERS = {
    "narrow": partial(VectorQuantizer, num_codes=32, code_size=2, normalize=True),
    "finite scalar": partial(FiniteScalarQuantizer, levels=(4, 3, 5)),
    "residual": partial(DeepQuantizer, depth=3, quantizer=partial(VectorQuantizer, num_codes=16)),
}


@pytest.mark.parametrize("name", QUANTIZERS)
def test_any_quantizer(name, tmp_path):
    model, images = make(quantizer=QUANTIZERS[name]), pictures(5)
    trainer(max_steps=2).fit(model, DataLoader(TensorDataset(pictures(8)), 4))
    codes = model.codes(images)
    assert model.code_shape == ([(4, 4)] * 3 if name == "residual" else (4, 4))
    assert torch.equal(model.decode(codes), model.reconstruct(images))
    loaded = GenerativeModule.load_from_checkpoint(save(model, tmp_path / "a.ckpt"))
    torch.testing.assert_close(loaded.reconstruct(images), model.reconstruct(images))
    results = trainer().validate(loaded, DataLoader(TensorDataset(images), 2), verbose=False)[0]
    assert results["val/reconstruction"] > 0


def test_use_of_codes_is_logged_for_each_level_over_the_whole_split():
    images = pictures(10)
    model = make("VQVAE2")
    results = trainer().validate(model, DataLoader(TensorDataset(images), 3), verbose=False)[0]
    for level, codes in enumerate(model.codes(images)):
        number = len(codes.unique())
        assert results[f"val/used_{level}"] == pytest.approx(number / 32)
        assert results[f"val/dead_codes_{level}"] == 32 - number
        shares = codes.flatten().bincount() / codes.numel()
        assert results[f"val/perplexity_{level}"] == pytest.approx(torch.special.entr(shares).sum().exp().item())


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"VQVAEDecoder makes pictures of \(3, 8, 8\).*\(3, 16, 16\).*same stride"):
        make(decoder=small(VQVAEDecoder, stride=2))
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        make(channels=0)
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        make("VQVAE2", channels=0)
    with pytest.raises(ValueError, match="height and width must be multiples of 8; got 12 x 16"):
        small_model(VQVAE2, (3, 12, 16))()
    with pytest.raises(ValueError, match="Conv1d is no quantizer"):
        make(quantizer=partial(torch.nn.Conv1d, out_channels=8, kernel_size=1))
    with pytest.raises(ValueError, match="what makes a Quantizer, but it made DeepQuantizer"):
        make("VQVAE2", quantizer=DeepQuantizer)
    with pytest.raises(ValueError, match="needs 1 channel and 2 codes at least"):
        make(quantizer=partial(VectorQuantizer, num_codes=1))


def test_levels_in_the_wrong_order_are_refused():
    model = make("VQVAE2")
    top, bottom = model.codes(pictures(2))
    with pytest.raises(ValueError, match=r"Codes of this VQVAE2 are \[N, 2, 2\] and \[N, 4, 4\]"):
        model.decode([bottom, top])
    with pytest.raises(ValueError, match="Codes of this VQVAE2"):
        model.decode(top)


# -- the variance of the data ---------------------------------------------------------------------------------------


class Numbered(Dataset):
    """Pictures, of which it counts those that were looked at."""

    def __init__(self, images):
        self.images, self.seen = images, []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.seen.append(index)
        return {"image": self.images[index], "label": 0}


class Stream(IterableDataset):
    def __iter__(self):
        yield from pictures(8)


def variance_of(data, **settings):
    model = make(data_variance=None)
    trainer(max_steps=1, **settings).fit(model, data)
    return model.data_variance


@pytest.mark.parametrize("kind", [Numbered, TensorDataset, list])
@pytest.mark.parametrize("batch_size", [4, None])
def test_the_variance_is_that_of_the_training_pictures(kind, batch_size):
    images = pictures(12) * 0.5 + 0.3
    data = kind(images) if batch_size else kind(images.view(3, 4, *SHAPE))
    found = variance_of(DataLoader(data, batch_size))
    assert found.item() == pytest.approx(np.var(images.double().numpy()), rel=1e-6)


def test_bytes_are_pictures_in_minus_one_to_one():
    images = torch.randint(256, (8, *SHAPE), dtype=torch.uint8)
    expected = np.var(images.numpy() / 127.5 - 1)
    assert variance_of(DataLoader(TensorDataset(images), 4)).item() == pytest.approx(expected, rel=1e-6)


def test_so_many_pictures_spread_evenly_over_the_data_are_enough(monkeypatch):
    monkeypatch.setattr("lightning_gen.models.vqvae.VARIANCE_IMAGES", 5)
    data = Numbered(pictures(40))
    found = variance_of(DataLoader(data, 4))
    assert data.seen[:5] == [0, 8, 16, 24, 32]
    assert found.item() == pytest.approx(np.var(data.images[::8].double().numpy()), rel=1e-6)


def test_data_modules_have_a_variance_too():
    data = Scenes(16, num_train=20, num_val=2, num_test=2, batch_size=4, num_workers=0)
    found = []
    for growth in (None, 0.5):
        model = make(data_variance=growth)
        trainer(max_steps=1).fit(model, datamodule=data)
        found.append(model.data_variance.item())
    images = next(iter(DataLoader(data.train_set(), 20, sampler=data.train_dataloader().sampler)))["image"]
    assert found == pytest.approx([np.var(images.double().numpy()), 0.5], rel=1e-6)


def test_looking_at_pictures_leaves_the_run_as_it_is():
    """As if the number had been given."""
    torch.manual_seed(0)
    images, weights = pictures(12), []
    variance = np.var(images.double().numpy()).item()
    for given in (None, variance):
        torch.manual_seed(3)
        model = make(data_variance=given)
        trainer(max_steps=3).fit(model, DataLoader(TensorDataset(images), 4, shuffle=True))
        weights.append(model.state_dict())
    assert not differences(*weights)


def test_the_variance_stays_with_the_weights(tmp_path):
    model = make(data_variance=None)
    first = trainer(max_steps=1)
    first.fit(model, DataLoader(TensorDataset(pictures(8)), 4))
    first.save_checkpoint(tmp_path / "a.ckpt")
    other = DataLoader(TensorDataset(pictures(8) * 0.1), 4)
    again = make(data_variance=None)
    trainer(max_steps=2).fit(again, other, ckpt_path=tmp_path / "a.ckpt")
    assert again.data_variance == model.data_variance > 0.2
    loaded = VQVAE.load_from_checkpoint(tmp_path / "a.ckpt")
    assert loaded.data_variance == model.data_variance
    changed = make(data_variance=0.123)
    trainer(max_steps=2).fit(changed, other, ckpt_path=tmp_path / "a.ckpt")
    assert changed.data_variance.item() == pytest.approx(0.123)


def test_data_without_a_variance_is_refused_in_words():
    with pytest.raises(ValueError, match=r"come from a Stream, .*Give it data_variance"):
        variance_of(DataLoader(Stream(), 4))
    with pytest.raises(ValueError, match=r"come from a list, .*Give it data_variance"):
        variance_of([pictures(4), pictures(4)])
    with pytest.raises(ValueError, match="all alike"):
        variance_of(DataLoader(TensorDataset(torch.full((8, *SHAPE), 0.5)), 4))
    for wrong in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="data_variance must be above 0"):
            make(data_variance=wrong)


# -- several processes and checkpoints ------------------------------------------------------------------------------


def lively(kind):
    """A model with k-means, and with codes that begin anew at almost every step, built before any process group."""
    settings = {"num_codes": 24, "kmeans_iterations": 2, "restart_below": 0.8, "decay": 0.9}
    return make(
        kind, quantizer=partial(VectorQuantizer, **settings), **({"data_variance": None} if kind == "VQVAE" else {})
    )


class Alike(pl.Callback):
    """Asserts that all ranks hold the same, to the bit, and that they saw other pictures; writes down the steps."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        state = torch.cat([value.flatten().double() for value in module.state_dict().values()])
        assert state.isfinite().all()
        for mine, equal in ((state, True), (batch[0], False)):
            others = [torch.empty_like(mine) for _ in range(trainer.world_size)]
            dist.all_gather(others, mine.contiguous())
            assert torch.equal(*others) == equal
        if trainer.is_global_zero:
            self.path.write_text(f"{trainer.world_size} {trainer.global_step}")


def fit_on_two(kind, path):
    launching._check_bad_cuda_fork = lambda: None  # nothing here uses CUDA
    settings = {"devices": 2, "strategy": "ddp_fork", "max_steps": 6, "num_sanity_val_steps": 0}
    trainer(**settings, callbacks=[Alike(path)]).fit(lively(kind), DataLoader(TensorDataset(pictures(48)), 4))


@each_kind
def test_two_processes_hold_the_same_to_the_bit(kind, fresh_process, tmp_path):
    """Codebooks, counts and sums too; though Lightning makes the process group after the model."""
    fresh_process(fit_on_two, kind, tmp_path / "steps")
    assert (tmp_path / "steps").read_text() == "2 6"


def fit_plain(devices, path):
    launching._check_bad_cuda_fork = lambda: None  # nothing here uses CUDA
    quantizer = partial(VectorQuantizer, num_codes=24, restart_below=0, decay=0.9)
    descent = partial(torch.optim.SGD, lr=0.01)
    model = make(quantizer=quantizer, optimizer=descent)
    strategy = {"devices": devices, "strategy": "ddp_fork" if devices > 1 else "auto", "precision": "64-true"}
    run = trainer(max_steps=6, **strategy, callbacks=[Saved(path)], num_sanity_val_steps=0, limit_val_batches=0)
    run.fit(model, datamodule=Scenes(16, num_train=48, batch_size=8 // devices, num_workers=0))


class Saved(pl.Callback):
    """Writes all that the model holds when training ends."""

    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, module):
        if trainer.is_global_zero:
            torch.save(module.state_dict(), self.path)


def test_two_processes_learn_what_one_does_from_the_joined_batch(fresh_process, tmp_path):
    for devices in (1, 2):
        fresh_process(fit_plain, devices, tmp_path / f"{devices}.pt")
    one, two = (torch.load(tmp_path / f"{devices}.pt", weights_only=True) for devices in (1, 2))
    assert one["quantizer.counts"].max() > 5
    torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-9)


@each_kind
def test_going_on_equals_never_having_stopped(kind, tmp_path, monkeypatch):
    """With codes that begin anew before and after the stop, which is at the end of an epoch of 4 batches."""
    data, events = TensorDataset(pictures(32)), []
    set_codes = VectorQuantizer._set

    def watched(quantizer, vectors, counts, sums=None):
        number = (vectors != quantizer.codebook).any(1).sum().item()
        events.append(("k-means" if sums is None else "restarts", number))
        set_codes(quantizer, vectors, counts, sums)

    monkeypatch.setattr(VectorQuantizer, "_set", watched)

    def run(model, steps, **settings):
        shown = trainer(max_steps=steps, num_sanity_val_steps=0)
        shown.fit(model, DataLoader(data, 8), **settings)
        return shown

    torch.manual_seed(1)
    through = lively(kind)
    run(through, 8)
    expected, events = events, []
    torch.manual_seed(1)
    run(lively(kind), 4).save_checkpoint(tmp_path / "a.ckpt")
    before, events = events, []
    later = lively(kind)
    run(later, 8, ckpt_path=tmp_path / "a.ckpt")
    assert not differences(through.state_dict(), later.state_dict())
    assert before + events == expected
    assert "k-means" not in dict(events)
    assert all(sum(number for name, number in part if name == "restarts") > 0 for part in (before, events))


def test_three_levels_train(tmp_path):
    strides = (2, 2, 2)
    model = make("VQVAE2", encoder=small(VQVAE2Encoder, strides=strides), decoder=small(VQVAE2Decoder, strides=strides))
    assert model.code_shape == [(2, 2), (4, 4), (8, 8)]
    trainer(max_steps=2).fit(model, DataLoader(TensorDataset(pictures(8)), 4))
    loaded = VQVAE2.load_from_checkpoint(save(model, tmp_path / "a.ckpt"))
    images = pictures(3)
    assert torch.equal(loaded.decode(model.codes(images)), model.reconstruct(images))


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@each_kind
def test_losses_are_float32_and_statistics_too_in_halves(kind, precision):
    model = make(kind)
    seen = []
    terms = model.terms
    model.terms = lambda *given: seen.append(terms(*given)) or seen[-1]
    trainer(max_steps=2, precision=precision).fit(model, DataLoader(TensorDataset(pictures(8)), 4))
    assert all(term.dtype == torch.float32 for each in seen for term in each.values())
    buffers = {name: value.dtype for name, value in model.named_buffers() if "quantizer" in name}
    assert {kind for name, kind in buffers.items() if not name.endswith("updates")} == {torch.float32}
