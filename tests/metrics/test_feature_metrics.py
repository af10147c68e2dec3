"""The torchmetrics classes: torchmetrics' figures without torchmetrics' faults."""

import copy
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torchmetrics.image as stock
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities.exceptions import TorchMetricsUserError

from lightning_gen.data.images import to_uint8
from lightning_gen.extractors.base import FeatureExtractor, Features
from lightning_gen.extractors.module import ModuleFeatures, PointFeatures
from lightning_gen.metrics import feature_metrics as generative
from lightning_gen.metrics.feature_metrics import (
    FrechetInceptionDistance,
    InceptionScore,
    KernelInceptionDistance,
    PrecisionRecall,
)
from lightning_gen.metrics.frechet import frechet_distance_between
from lightning_gen.metrics.manifold import precision_recall

SHAPE = (3, 6, 5)


class Pooled(nn.Module):
    """Features that do not depend on the batch a picture is in: means over some of its pixels, in a random order."""

    def __init__(self, num_features=8, scale=1.0):
        super().__init__()
        self.num_features = num_features
        self.scale = nn.Parameter(torch.tensor(scale))
        self.norm = nn.BatchNorm1d(num_features)
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        rows = images.flatten(1).float()
        return self.norm(rows.unfold(1, 12, 10).mean(2)[:, : self.num_features] * self.scale)


class Classes(nn.Module):
    """Logits by which no softmax is flat."""

    def forward(self, images):
        return images.float().mean((2, 3)) * 0.2


def in_float64(network):
    """For torchmetrics, which computes in whatever type the features have."""
    network.eval().register_forward_hook(lambda module, images, output: output.double())
    return network


class Wrapped(FeatureExtractor):
    """An extractor of ours on uint8 pictures, with classes."""

    def __init__(self):
        super().__init__(Pooled(), name="pooled8", preprocessing="none", num_features=8, num_classes=3)

    def extract(self, images):
        return Features(self.network(images), Classes()(images))


def pictures(number, seed=0, shift=0):
    random = torch.Generator().manual_seed(seed)
    high = 120 + 40 * torch.rand(number, 1, 1, 1, generator=random)
    return (torch.rand(number, *SHAPE, generator=random) * high + shift).to(torch.uint8)


MAKERS = {
    "fid": lambda **settings: FrechetInceptionDistance(Pooled(), **settings),
    "kid blocks": lambda **settings: KernelInceptionDistance(Pooled(), subset_size=10, **settings),
    "kid subsets": lambda **settings: KernelInceptionDistance(Pooled(), subsets=3, subset_size=15, **settings),
    "prdc": lambda **settings: PrecisionRecall(Pooled(), k=3, **settings),
    "is": lambda **settings: InceptionScore(Classes(), splits=4, **settings),
}
TWO_SIDED = [name for name in MAKERS if name != "is"]
REAL, FAKE = pictures(61), pictures(45, 1, 8)


def batches(images, size):
    return [part for part in images.split(size) if len(part)]


def feed(metric, real=REAL, fake=FAKE, size=16):
    sides = [(fake, {})] if isinstance(metric, InceptionScore) else [(real, {"real": True}), (fake, {"real": False})]
    for images, side in sides:
        for part in batches(images, size):
            metric.update(part, **side)
    return metric


def numbers(figures):
    """As a list."""
    if isinstance(figures, dict):
        return [value.item() for value in figures.values()]
    return [figures.item()] if isinstance(figures, torch.Tensor) else [value.item() for value in figures]


def figures_of(name, **given):
    return numbers(feed(MAKERS[name](), **given).compute())


# ---- the figures


def test_fid_is_torchmetrics():
    other = feed(stock.FrechetInceptionDistance(in_float64(Pooled())))
    assert figures_of("fid")[0] == pytest.approx(other.compute().item(), rel=1e-6)


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save")
def test_kid_of_one_block_is_torchmetrics():
    other = stock.KernelInceptionDistance(in_float64(Pooled()), subsets=1, subset_size=45)
    ours = KernelInceptionDistance(Pooled(), subsets=1, subset_size=45)
    for metric in (other, ours):
        feed(metric, REAL[:45], FAKE)
    assert ours.compute()[0].item() == pytest.approx(other.compute()[0].item(), rel=1e-6)
    assert ours.compute()[1] == 0


@pytest.mark.filterwarnings("ignore:std", "ignore:Metric `InceptionScore` will save")
def test_the_inception_score_of_one_split_is_torchmetrics():
    other, ours = stock.InceptionScore(in_float64(Classes()), splits=1), InceptionScore(Classes(), splits=1)
    for part in FAKE.split(16):
        other.update(part)
        ours.update(part)
    mean, std = ours.compute()
    assert mean.item() == pytest.approx(other.compute()[0].item(), rel=1e-6)
    assert std == 0


def test_precision_and_recall_are_those_of_the_features():
    network = Pooled().eval()
    expected = precision_recall(network(REAL).detach(), network(FAKE).detach(), 3)
    found = feed(MAKERS["prdc"]()).compute()
    assert {name: value.item() for name, value in found.items()} == expected._asdict()


def test_fid_far_from_the_origin_keeps_its_digits():
    class Far(Pooled):
        def forward(self, images):
            return super().forward(images) * 0.01 + 100

    far = FrechetInceptionDistance(Far())
    network = Far().eval()
    expected = frechet_distance_between(network(REAL).detach(), network(FAKE).detach())
    assert feed(far).compute().item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", MAKERS)
def test_an_extractor_of_ours_gives_features_and_classes(name):
    plain = figures_of(name)
    extractor = Wrapped()
    metric = {
        "fid": lambda: FrechetInceptionDistance(extractor),
        "kid blocks": lambda: KernelInceptionDistance(extractor, subset_size=10),
        "kid subsets": lambda: KernelInceptionDistance(extractor, subsets=3, subset_size=15),
        "prdc": lambda: PrecisionRecall(extractor, k=3),
        "is": lambda: InceptionScore(extractor, splits=4),
    }[name]()
    assert metric.extractor is extractor
    assert numbers(feed(metric).compute()) == pytest.approx(plain, rel=1e-12, nan_ok=True)


def test_points_are_taken_as_they_are():
    random = torch.Generator().manual_seed(0)
    real, fake = torch.randn(50, 2, 1, 1, generator=random), torch.randn(50, 2, 1, 1, generator=random) + 9
    metric = feed(FrechetInceptionDistance(PointFeatures(2)), real, fake)
    assert metric.compute().item() == pytest.approx(frechet_distance_between(real.flatten(1), fake.flatten(1)))


# ---- order and processes


@pytest.mark.parametrize("name", MAKERS)
def test_order_and_batches_do_not_matter(name):
    expected = figures_of(name)
    order = torch.randperm(45, generator=torch.Generator().manual_seed(3))
    assert figures_of(name, real=REAL.flip(0), fake=FAKE[order], size=7) == pytest.approx(expected, rel=1e-11)


class Brightness(nn.Module):
    """Two classes, told apart without doubt."""

    def forward(self, images):
        margin = images.float().mean((1, 2, 3)) - 110
        return torch.stack([margin, -margin], dim=1)


def test_pictures_sorted_by_class_do_no_harm():
    dark, bright = pictures(60), pictures(60, 1, 95)
    mean, _ = feed(InceptionScore(Brightness(), splits=6), fake=torch.cat([dark, bright])).compute()
    assert mean.item() > 1.8  # in the order given it would be 1
    metric = KernelInceptionDistance(Pooled(), subset_size=12)
    feed(metric, torch.cat([dark, bright]), torch.cat([pictures(60, 3, 95), pictures(60, 4)]))
    value, error = metric.compute()
    assert abs(value) < 4 * error


# Pictures of each rank, real and generated: with uneven numbers of updates, with none, with those of one side.
SHARDS = {
    "uneven": [(slice(0, 41), slice(0, 9)), (slice(41, 61), slice(9, 45))],
    "a rank without any": [(slice(0, 0), slice(0, 0)), (slice(0, 61), slice(0, 45))],
    "a side each": [(slice(0, 61), slice(0, 0)), (slice(0, 0), slice(0, 45))],
}


def figures_on_a_rank(rank):
    found = {}
    for shard, ranks in SHARDS.items():
        real, fake = (images[part] for images, part in zip((REAL, FAKE), ranks[rank], strict=True))
        for name, make in MAKERS.items():
            metric = feed(make(), real, fake, 6)
            before = [state.clone() for state in states_of(metric)]
            found[shard, name] = numbers(metric.compute())
            after = states_of(metric)  # its own share again
            assert len(after) == len(before)
            assert all(map(torch.equal, after, before))
    return found


def test_two_processes_give_the_figures_of_one(on_ranks):
    for found in on_ranks(figures_on_a_rank):
        assert isinstance(found, dict), found
        assert set(found) == {(shard, name) for shard in SHARDS for name in MAKERS}
        for (shard, name), figures in found.items():
            assert figures == pytest.approx(figures_of(name, size=6), rel=1e-9), (shard, name)


def sharing_on_a_rank(rank):
    real, fake = REAL[rank::2], FAKE[rank::2]
    found = {}

    kept = MAKERS["fid"](reset_real_features=False)
    for part in batches(real, 6):
        kept.update(part, real=True)
    for turn in ("first", "second"):
        kept.update(fake, real=False)
        found[turn] = numbers(kept.compute())
        kept.reset()
    kept.update(fake, real=False)
    kept.sync()
    with pytest.raises(TorchMetricsUserError, match="synced"):
        kept.update(fake, real=False)
    kept.reset()
    kept.update(fake, real=False)
    found["after a reset while synced"] = numbers(kept.compute())

    collection = MetricCollection({"fid": MAKERS["fid"](), "prdc": MAKERS["prdc"](), "kid": MAKERS["kid blocks"]()})
    feed(collection, real, fake)
    computed = collection.compute()
    found["collection"] = [*numbers(computed["fid"]), *numbers(computed["kid"]), computed["recall"].item()]
    found["again"] = [collection["fid"].compute().item()]

    own = MAKERS["fid"](dist_sync_fn=gather)
    found["gather"] = numbers(feed(own, real, fake).compute())

    sizes, all_reduce = [], dist.all_reduce
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", lambda x, **given: (sizes.append(x.numel()), all_reduce(x, **given)))
        patch.setattr(dist, "all_gather", None)
        feed(MAKERS["fid"](), real, fake).compute()
    found["sizes"] = sizes

    few = MAKERS["fid"]()
    few.update(real[:1], real=True)
    with pytest.raises(ValueError, match="got 2 and 0"):
        few.compute()
    local = MAKERS["fid"](sync_on_compute=False)
    found["local"] = numbers(feed(local, real, fake).compute())
    return found


def gather(tensor, group=None):
    parts = [torch.empty_like(tensor) for _ in range(2)]
    dist.all_gather(parts, tensor, group=group)
    return parts


def test_what_processes_share(on_ranks):
    fid, kid, prdc = figures_of("fid"), figures_of("kid blocks"), figures_of("prdc")
    for rank, found in enumerate(on_ranks(sharing_on_a_rank)):
        assert isinstance(found, dict), found
        for what in ("first", "second", "after a reset while synced", "gather", "again"):
            assert found[what] == pytest.approx(fid, rel=1e-9), what
        assert found["collection"] == pytest.approx([*fid, *kid, prdc[1]], rel=1e-9)
        assert found["sizes"] == [2 * (1 + 8 + 8 * 9 // 2)]  # one message: counts, sums, triangles
        assert found["local"] == figures_of("fid", real=REAL[rank::2], fake=FAKE[rank::2])


def test_merging_states_adds_their_pictures():
    for name in MAKERS:
        whole, part, other = (MAKERS[name]() for _ in range(3))
        feed(whole)
        feed(part, REAL[:20], FAKE[:20])
        part.merge_state(feed(other, REAL[20:], FAKE[20:]))
        assert numbers(part.compute()) == pytest.approx(numbers(whole.compute()), rel=1e-11)


# ---- precision, modules around it, random states


def states_of(metric):
    return [part for value in metric.metric_state.values() for part in (value if isinstance(value, list) else [value])]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize(
    "convert",
    [
        lambda module: module.to(torch.bfloat16),
        lambda module: module.half(),
        lambda module: module.to(torch.float32),
        lambda module: module.bfloat16(),
        lambda module: module.metric.set_dtype(torch.bfloat16),
    ],
)
def test_states_keep_their_type_and_digits(name, convert):
    parent = nn.Module()
    parent.metric = MAKERS[name]()
    feed(parent.metric, REAL[:30], FAKE[:30])
    convert(parent)
    feed(parent.metric, REAL[30:], FAKE[30:])
    dtypes = {torch.float64, torch.int64} if name == "fid" else {torch.float32}
    assert {state.dtype for state in states_of(parent.metric)} == dtypes
    figures = parent.metric.compute()
    convert(parent)
    assert numbers(figures) == pytest.approx(figures_of(name), rel=1e-11)
    assert numbers(parent.metric.compute()) == numbers(figures)
    for value in (
        figures.values() if isinstance(figures, dict) else figures if isinstance(figures, tuple) else [figures]
    ):
        assert value.dtype == torch.float64


class Evaluated(LightningModule):
    """A model that keeps all metrics as attributes, and draws random numbers of its own."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.metrics = nn.ModuleDict({name.replace(" ", "_"): make() for name, make in MAKERS.items()})

    def training_step(self, batch):
        return self.layer(torch.ones(1, 2, device=self.device, dtype=self.layer.weight.dtype)).sum()

    def validation_step(self, batch):
        for metric in self.metrics.values():
            feed(metric, *batch)

    def on_validation_epoch_end(self):
        found = {name: numbers(metric.compute()) for name, metric in self.metrics.items()}
        self.log_dict({name: figures[0] for name, figures in found.items()})
        self.log("with metric", self.metrics["fid"])
        self.found = found
        for name in ("kid_blocks", "kid_subsets", "prdc", "is"):
            self.metrics[name].reset()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_in_a_run_under_any_precision(precision, tmp_path):
    model = Evaluated()
    data = DataLoader([(REAL, FAKE)], batch_size=None)
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", precision=precision, max_epochs=2, logger=False,
        num_sanity_val_steps=0, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.validate(model, data, verbose=False)  # in inference mode
    trainer.fit(model, data, data)
    for name in MAKERS:
        assert model.found[name.replace(" ", "_")] == pytest.approx(figures_of(name), rel=1e-11)
    assert trainer.callback_metrics["with metric"].item() == pytest.approx(figures_of("fid")[0], rel=1e-6)
    assert set(model.state_dict()) == {"layer.weight", "layer.bias"}
    assert len(list(model.parameters())) == 2


def test_autocast_does_not_reach_the_features():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(90, 6)

        def forward(self, images):
            return self.layer(images.flatten(1).float() / 255)

    network = Mixed()
    plain, inside = FrechetInceptionDistance(network, input_img_size=SHAPE), KernelInceptionDistance(network)
    feed(plain)
    expected = feed(KernelInceptionDistance(network)).compute()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = feed(FrechetInceptionDistance(network, input_img_size=SHAPE))
        feed(inside)
        assert mixed.compute() == plain.compute()
        assert inside.compute()[0] == expected[0]
    assert not any(state.requires_grad for state in states_of(inside))


@pytest.mark.parametrize("name", MAKERS)
def test_inference_mode_and_gradients_around_it_are_no_matter(name):
    metric = MAKERS[name]() if name == "is" else MAKERS[name](reset_real_features=False)
    with torch.inference_mode():
        feed(metric)
        metric.compute()
        metric.reset()
        feed(metric, REAL[:0], FAKE[:20])
    feed(metric, REAL[:0], FAKE[20:])
    assert numbers(metric.compute()) == pytest.approx(figures_of(name), rel=1e-11)


def test_the_module_that_was_given_is_neither_frozen_nor_moved_nor_followed():
    network = Pooled()
    metric = FrechetInceptionDistance(network)
    parent = nn.Module()
    parent.metric = metric
    parent.train()
    feed(metric, REAL, FAKE[:20])
    with torch.no_grad():
        network.scale.fill_(7)
    feed(metric, REAL[:0], FAKE[20:])
    assert metric.compute().item() == pytest.approx(figures_of("fid")[0], rel=1e-11)
    assert network.training
    assert network.scale.requires_grad
    assert torch.equal(network.norm.running_mean, torch.zeros(8))
    assert torch.equal(metric.extractor.norm.running_mean, torch.zeros(8))


@pytest.mark.parametrize("name", MAKERS)
def test_it_adds_nothing_to_a_checkpoint_or_an_optimizer(name):
    metric = feed(MAKERS[name]())
    assert metric.state_dict() == {}
    assert list(metric.parameters()) == list(metric.children()) == list(metric.buffers()) == []


@pytest.mark.parametrize("name", MAKERS)
def test_copies_share_the_extractor_and_not_the_states(name):
    metric = feed(MAKERS[name]())
    copied, restored = copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))
    assert copied.extractor is metric.extractor
    metric.reset()
    for other in (copied, restored, copied.clone()):
        assert numbers(other.compute()) == figures_of(name)
        other.reset()
        assert numbers(feed(other).compute()) == figures_of(name)


@pytest.mark.parametrize("name", MAKERS)
def test_global_random_states_are_left_alone(name):
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    expected = figures_of(name)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    torch.manual_seed(1)
    assert figures_of(name) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("name", MAKERS)
def test_on_a_gpu_figures_are_those_of_the_cpu(name):
    metric = MAKERS[name]().to("cuda")
    feed(metric, REAL.cuda(), FAKE.cuda())
    assert {state.device.type for state in states_of(metric)} == {"cuda"}
    assert numbers(metric.compute()) == pytest.approx(figures_of(name), rel=1e-4)
    metric.reset()
    feed(metric, REAL, FAKE)  # wherever pictures lie
    assert numbers(metric.compute()) == pytest.approx(figures_of(name), rel=1e-4)


# ---- the interface


@pytest.mark.parametrize("name", MAKERS)
def test_calling_it_updates_once_and_gives_no_figure(name):
    metric, called = MAKERS[name](), MAKERS[name]()
    feed(metric)
    for part in batches(REAL, 16) if name in TWO_SIDED else []:
        assert called(part, real=True) is None
    for part in batches(FAKE, 16):
        assert (called(part, real=False) if name in TWO_SIDED else called(part)) is None
    assert numbers(called.compute()) == numbers(metric.compute())


@pytest.mark.parametrize("name", MAKERS)
def test_reset_forgets_all(name):
    metric = feed(MAKERS[name](), pictures(30, 7), pictures(30, 8))
    metric.reset()
    assert numbers(feed(metric).compute()) == figures_of(name)


@pytest.mark.parametrize("name", TWO_SIDED)
def test_real_features_can_be_kept(name):
    metric = feed(MAKERS[name](reset_real_features=False), REAL, pictures(30, 8))
    metric.reset()
    assert numbers(feed(metric, REAL[:0]).compute()) == figures_of(name)
    # In a collection two of them share their lists.
    makers = {key: MAKERS[key] for key in (name, "prdc", "kid blocks")}
    collection = MetricCollection({key: make(reset_real_features=False) for key, make in makers.items()})
    feed(collection, REAL, pictures(30, 8))
    collection.reset()
    feed(collection, REAL[:0])
    computed = collection.compute()
    assert numbers(computed["kid blocks"]) == pytest.approx(figures_of("kid blocks"), rel=1e-11)
    assert computed["coverage"].item() == figures_of("prdc")[3]


def test_floats_in_the_unit_interval_are_rounded_to_8_bits():
    levels = torch.arange(256).repeat(1, 1, 90, 1).transpose(0, 3).reshape(256, *SHAPE)
    exact = feed(FrechetInceptionDistance(Wrapped()), levels.to(torch.uint8), FAKE)
    for offset in (-0.45, 0, 0.45):
        metric = FrechetInceptionDistance(Wrapped(), normalize=True)
        feed(metric, ((levels + offset) / 255).clamp(0, 1), FAKE / 255)
        assert metric.compute() == exact.compute()
    signed = FrechetInceptionDistance(Wrapped())
    feed(signed, to_uint8(levels / 127.5 - 1), to_uint8(FAKE / 127.5 - 1))
    assert signed.compute() == exact.compute()


@pytest.mark.parametrize(
    ("normalize", "images", "message"),
    [
        (False, torch.rand(4, *SHAPE), "dtype=torch.uint8, got torch.float32.*normalize=True.*to_uint8"),
        (True, FAKE, r"expected floats in \[0, 1\], got torch.uint8 from 8 to"),
        (True, torch.linspace(-1, 1, 360).view(4, *SHAPE), "got torch.float32 from -1.0 to 1.0.*to_uint8"),
        (True, torch.full((4, *SHAPE), float("nan")), "from nan to nan"),
        (False, FAKE[:, 0], r"batches \[N, C, H, W\]"),
    ],
)
def test_pictures_of_the_wrong_type_or_range_are_refused(normalize, images, message):
    for metric in (
        FrechetInceptionDistance(Wrapped(), normalize=normalize),
        InceptionScore(Wrapped(), normalize=normalize),
    ):
        with pytest.raises(ValueError, match=message):
            metric(images) if isinstance(metric, InceptionScore) else metric(images, real=True)


def test_a_plain_module_is_given_the_pictures_as_they_come():
    for images in (FAKE, FAKE / 255, FAKE / 127.5 - 1):
        for normalize in (True, False):
            for metric in (
                FrechetInceptionDistance(Pooled(), normalize=normalize),
                InceptionScore(Pooled(), normalize=normalize),
            ):
                feed(metric, images, images)
                assert torch.equal(metric.extractor.seen[0], images[:16])


def test_a_plain_module_is_given_floats_of_its_own_type():
    # As in a run of bf16-true, which converts the batch but not what is outside of the module tree.
    metric, same = FrechetInceptionDistance(Pooled()), FrechetInceptionDistance(Pooled())
    feed(metric, (REAL / 255).bfloat16(), (FAKE / 255).bfloat16())
    feed(same, (REAL / 255).bfloat16().float(), (FAKE / 255).bfloat16().float())
    assert metric.extractor.seen[0].dtype == torch.float32
    assert metric.compute() == same.compute()


def test_features_of_one_picture_may_be_a_vector():
    class Squeezed(Pooled):
        def forward(self, images):
            return super().forward(images).squeeze(0)

    metric = feed(FrechetInceptionDistance(Squeezed()), size=1)
    assert metric.compute().item() == pytest.approx(figures_of("fid")[0], rel=1e-11)


def test_a_module_without_num_features_is_measured():
    class Unknown(nn.Module):
        def forward(self, images):
            return images.flatten(1).float()[:, :7]

    assert FrechetInceptionDistance(Unknown(), input_img_size=(1, 4, 4)).num_features == 7
    assert FrechetInceptionDistance(Unknown(), normalize=True).num_features == 7
    lying = Unknown()
    lying.num_features = 5
    with pytest.raises(ValueError, match="was to give 5 features, but gives 7"):
        FrechetInceptionDistance(lying).update(FAKE, real=True)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.ones(45), r"features \[45, d\], got \[45\]. In place of the module, ModuleFeatures\("),
        (torch.ones(45, 2, 1, 1), r"got \[45, 2, 1, 1\]"),
        ((torch.ones(45, 2), torch.ones(45, 3)), "got tuple"),
        (torch.full((45, 2), float("inf")), "45 of the 45 rows of the features of the module are not finite"),
    ],
)
def test_features_of_the_wrong_shape_are_refused(output, message):
    class Fixed(nn.Module):
        num_features = 2

        def forward(self, images):
            return output

    with pytest.raises(ValueError, match=message):
        FrechetInceptionDistance(Fixed()).update(FAKE, real=True)


@pytest.mark.parametrize(
    ("name", "real", "fake", "message"),
    [
        ("fid", 1, 9, "at least 2 real and 2 generated.*got 1 and 9"),
        ("kid blocks", 9, 1, "at least 2 real and 2 generated pictures, got 9 and 1"),
        ("kid blocks", 0, 9, "got 0 and 9"),
        ("kid subsets", 20, 14, "at least 15 real and 15 generated pictures, got 20 and 14"),
        ("prdc", 3, 9, "k = 3 needs at least 4 real and 4 generated pictures, got 3 and 9"),
        ("is", 0, 3, "4 splits need at least as many pictures, got 3"),
        ("is", 0, 0, "got 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_too_few_pictures_are_an_error_that_says_how_many_it_takes(name, real, fake, message):
    metric = feed(MAKERS[name](), REAL[:real], FAKE[:fake])
    with pytest.raises(ValueError, match=message):
        metric.compute()


def test_one_block_of_few_pictures_has_a_value_and_no_error():
    value, error = feed(KernelInceptionDistance(Pooled())).compute()
    assert value.isfinite()
    assert error.isnan()


def test_the_inception_network_of_the_published_figures_is_the_default(monkeypatch):
    made = []

    def make(*args, **settings):
        made.append((args, settings))
        return Wrapped()

    monkeypatch.setattr(generative, "InceptionFeatures", make)
    for kind in (FrechetInceptionDistance, KernelInceptionDistance, PrecisionRecall, InceptionScore):
        kind()
        kind(antialias=True, feature_extractor_weights_path="weights.pth")
        assert made[-2] == ((2048,), {"weights": None, "resize": "tf1"})
        assert made[-1] == ((2048,), {"weights": "weights.pth", "resize": "antialias"})
    FrechetInceptionDistance(64)
    assert made[-1][0] == (64,)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: FrechetInceptionDistance(1.5), TypeError, "Got unknown input to argument `feature`: 1.5"),
        (lambda: FrechetInceptionDistance(100), ValueError, "one of 64, 192, 768, 2048"),
        (
            lambda: FrechetInceptionDistance(Pooled(), feature_extractor_weights_path="x"),
            ValueError,
            "not for a module",
        ),
        (lambda: FrechetInceptionDistance(Pooled(), antialiased=True), ValueError, "Unexpected keyword.*antialiased"),
        (lambda: InceptionScore(2048), ValueError, "'logits_unbiased' or a module, got 2048"),
        (
            lambda: InceptionScore(Pooled(), splits=0),
            ValueError,
            "`splits` expected to be integer .* 0, got 0",
        ),
        (
            lambda: KernelInceptionDistance(Pooled(), subset_size=1),
            ValueError,
            "`subset_size` .* 2 at least, got 1",
        ),
        (lambda: PrecisionRecall(Pooled(), k=0), ValueError, "`k` expected to be integer larger than 0, got 0"),
        (lambda: InceptionScore(PointFeatures(2)).update(torch.zeros(3, 2, 1, 1)), ValueError, "points2 has none"),
    ],
)
def test_what_cannot_be_made_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---- in torchmetrics' place


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *[(kind, {"feature": feature}) for kind in ("Fréchet", "Kernel", "Score") for feature in (2, [1, 2], 1.5)],
        *[(kind, {"normalize": "yes"}) for kind in ("Fréchet", "Kernel", "Score")],
        *[(kind, {"reset_real_features": "no"}) for kind in ("Fréchet", "Kernel")],
        *[("Kernel", {name: value}) for name in ("subsets", "subset_size", "degree", "coef") for value in (0, "many")],
        *[("Kernel", {"gamma": value}) for value in (-1.0, "small")],
    ],
)
@pytest.mark.filterwarnings("ignore:Metric")
def test_what_torchmetrics_refuses_is_refused_with_an_error_of_that_type(kind, settings):
    name = {"Fréchet": "FrechetInceptionDistance", "Kernel": "KernelInceptionDistance", "Score": "InceptionScore"}[kind]
    settings = {"feature": Pooled(), **settings}
    with pytest.raises((ValueError, TypeError, RuntimeError), match=r".") as theirs:
        getattr(stock, name)(**settings)
    with pytest.raises(theirs.type, match=str(theirs.value).partition(" one of ")[0].partition(" larger")[0]) as ours:
        getattr(generative, name)(**settings)
    assert ours.type is theirs.type


@pytest.mark.filterwarnings("ignore:Metric", "ignore:The ``compute``")
def test_too_few_pictures_are_torchmetrics_errors():
    settings = {"feature": in_float64(Pooled()), "subsets": 2, "subset_size": 20}
    for kinds, given in (
        ((stock.FrechetInceptionDistance, FrechetInceptionDistance), {"feature": in_float64(Pooled())}),
        ((stock.KernelInceptionDistance, KernelInceptionDistance), settings),
    ):
        theirs, ours = (feed(kind(**given), REAL, FAKE[:1]) for kind in kinds)
        with pytest.raises((ValueError, TypeError, RuntimeError), match=r".") as error:
            theirs.compute()
        with pytest.raises(error.type):
            ours.compute()
        with pytest.raises(ValueError, match="got 61 and 1"):
            ours.compute()


def test_sums_have_torchmetrics_names():
    ours, theirs = (
        feed(kind(in_float64(Pooled()))) for kind in (FrechetInceptionDistance, stock.FrechetInceptionDistance)
    )
    assert ours.metric_state.keys() == theirs.metric_state.keys()
    for name, value in theirs.metric_state.items():
        torch.testing.assert_close(ours.metric_state[name], value, rtol=1e-6, atol=0)
    assert ours.real_features_num_samples == 61


@pytest.mark.parametrize("name", MAKERS)
def test_the_network_is_there_under_torchmetrics_name(name):
    metric = MAKERS[name]()
    parent = nn.Module()
    parent.metric = metric
    parent.train()
    assert metric.inception is metric.extractor
    assert not metric.inception.training
    assert not any(parameter.requires_grad for parameter in metric.inception.parameters())


@pytest.mark.parametrize("name", MAKERS)
def test_features_that_have_been_read_serve_as_pictures(name):
    metric, network = MAKERS[name](), (Classes() if name == "is" else Pooled()).eval()
    for images, side in ((REAL, {"real": True}), (FAKE, {"real": False})):
        if name != "is" or images is FAKE:
            with torch.no_grad():
                rows = network(images)
            metric.update(Features(rows, rows), **({} if name == "is" else side))
    assert numbers(metric.compute()) == pytest.approx(figures_of(name), rel=1e-11)


@pytest.mark.parametrize("kind", [KernelInceptionDistance, PrecisionRecall])
def test_of_many_pictures_the_first_generated_and_evenly_spaced_real_ones_are_taken(kind):
    settings = {"subset_size": 10} if kind is KernelInceptionDistance else {}
    few = feed(kind(Pooled(), max_features=30, **settings))
    chosen = feed(kind(Pooled(), max_features=None, **settings), REAL[[i * 61 // 30 for i in range(30)]], FAKE[:30])
    assert numbers(few.compute()) == numbers(chosen.compute())
    subsets = feed(KernelInceptionDistance(Pooled(), subsets=3, subset_size=40, max_features=30))
    assert subsets.compute()[0].isfinite()  # drawn from all, for 30 are too few


def test_a_module_that_cannot_read_the_pictures_says_how_to_give_it():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r"Sequential is given pictures as they come, and cannot .*uint8.*ModuleFeatu"):
        FrechetInceptionDistance(network)
    metric = feed(FrechetInceptionDistance(ModuleFeatures(network)))
    same = FrechetInceptionDistance(network, normalize=True)
    feed(same, REAL / 127.5 - 1, FAKE / 127.5 - 1)
    assert metric.compute().item() == pytest.approx(same.compute().item(), rel=1e-5)


def test_what_is_drawn_is_the_figure_without_its_deviation(monkeypatch):
    monkeypatch.setattr(Metric, "_plot", lambda self, value, axes: (value, axes))  # matplotlib need not be there
    for name in ("fid", "is", "kid blocks"):
        value, axes = feed(MAKERS[name]()).plot(ax=3)
        assert (value.item(), axes) == (figures_of(name)[0], 3)
        assert MAKERS[name]().plot([value])[0] == [value]
