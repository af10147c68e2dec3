import json
import multiprocessing
import os
import pickle
import re
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_gen.evaluation.statistics import ReferenceStatistics, StatisticsError, cached, load_statistics
from lightning_gen.metrics.frechet import Gaussian, frechet_distance

EXTRACTOR = {"name": "lenet4", "layer": 4, "sha256": "abc"}
RECORD = {"data": "MNIST", "split": "train", "pictures": "0123", "count": 60, "extractor": EXTRACTOR}


def make(seed=0, record=RECORD, size=4, count=60, kept=20):
    features = (
        torch.randn(count, size, generator=torch.Generator().manual_seed(seed))
        @ torch.arange(1.0, size * size + 1).view(size, size).cos()
    )
    indices = torch.arange(kept) * count // kept
    return ReferenceStatistics(dict(record), Gaussian.fit(features), features[indices], indices)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def bits(statistics):
    gaussian = statistics.gaussian
    tensors = (gaussian.mean, gaussian.covariance, gaussian.factor, statistics.features, statistics.indices)
    whole = [(tensor.dtype, tuple(tensor.shape), tensor.contiguous().numpy().tobytes()) for tensor in tensors]
    return json.dumps(statistics.record, sort_keys=True), gaussian.count, statistics.count, *whole


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some" / "folder" / "statistics.pt"
    make().save(path)
    return path


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("statistics", [make(), make(count=3, kept=3), make(record={"a": [1, 2.5, None, True, "ä"]})])
def test_what_is_read_is_what_was_written_bit_for_bit(tmp_path, statistics):
    """Of full rank and not (three pictures, four features)."""
    statistics.save(tmp_path / "a.pt")
    read = ReferenceStatistics.load(tmp_path / "a.pt")
    assert bits(read) == bits(statistics)
    assert read.fingerprint == statistics.fingerprint
    assert names(tmp_path) == ["a.pt"]


def test_the_factor_is_not_computed_again(path, monkeypatch):
    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(torch.linalg, "cholesky_ex", fail)
    monkeypatch.setattr(torch.linalg, "eigh", fail)
    factor, covariance = (lambda g: (g.factor, g.covariance))(ReferenceStatistics.load(path).gaussian)
    torch.testing.assert_close(factor @ factor.T, covariance, rtol=1e-12, atol=1e-12)


def test_a_figure_is_the_same_bit_for_bit_with_statistics_from_a_file(tmp_path):
    real, other = make(size=96, count=300), make(1, size=96, count=300)
    real.save(tmp_path / "a.pt")
    read = ReferenceStatistics.load(tmp_path / "a.pt")
    assert frechet_distance(read.gaussian, other.gaussian) == frechet_distance(real.gaussian, other.gaussian)


def test_a_file_is_plain_data_and_no_larger_than_its_content(tmp_path):
    whole = make(count=5000, kept=5000)
    part = ReferenceStatistics(RECORD, whole.gaussian, whole.features[:10], whole.indices[:10])
    part.save(tmp_path / "part.pt")
    content = torch.load(tmp_path / "part.pt", weights_only=True)
    assert {type(value) for value in content.values()} == {int, str, torch.Tensor}
    assert (tmp_path / "part.pt").stat().st_size < 10_000


def test_the_fingerprint_is_of_the_record_whatever_its_order():
    known = make().fingerprint
    assert make(seed=1, record=dict(reversed(RECORD.items()))).fingerprint == known
    assert make(record={**RECORD, "extractor": dict(reversed(EXTRACTOR.items()))}).fingerprint == known
    for change in ({"pictures": "0124"}, {"count": 61}, {"new": None}, {"extractor": {**EXTRACTOR, "layer": 5}}):
        assert make(record={**RECORD, **change}).fingerprint != known


def outcome(path, data):
    """The bits that are read from a file with this content, or None where it is refused."""
    path.write_bytes(data)
    try:
        return bits(ReferenceStatistics.load(path))
    except StatisticsError:
        return None


def test_a_file_cut_short_is_refused_wherever_it_was_cut(path):
    data = path.read_bytes()
    for length in [*range(0, len(data), len(data) // 40), len(data) - 1]:
        assert outcome(path, data[:length]) is None, length


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_flipped_bit_is_trusted(path):
    """Bytes that hold no content may change; what is read is then the very content."""
    data, expected = path.read_bytes(), bits(make())
    refused = 0
    for place in range(0, len(data), 13):
        broken = bytearray(data)
        broken[place] ^= 1 << place % 8
        given = outcome(path, bytes(broken))
        assert given in (None, expected), place
        refused += given is None
    assert refused > len(data) / 13 / 3

    for tensor in (make().gaussian.mean, make().gaussian.factor.T, make().features, make().indices):
        raw = tensor.numpy().tobytes()
        for offset in range(0, len(raw), 7):
            broken = bytearray(data)
            broken[data.index(raw) + offset] ^= 16
            assert outcome(path, bytes(broken)) is None


def test_content_that_was_exchanged_is_refused(path):
    """In files that are otherwise whole, where no checksum of the archive helps."""
    content = torch.load(path, weights_only=True)
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            other = value.clone()
            other[..., -1] += 1
        else:
            other = value + 1 if isinstance(value, int) else value.replace("a", "b")
        torch.save({**content, name: other}, path)
        match = "is of version 2, but this program" if name == "schema" else "does not have the digest"
        with pytest.raises(StatisticsError, match=match):
            ReferenceStatistics.load(path)
        torch.save({key: value for key, value in content.items() if key != name}, path)
        with pytest.raises(StatisticsError, match="damaged"):
            ReferenceStatistics.load(path)


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content",
    [b"", b"no statistics", pickle.dumps(Exploit()), {"state_dict": {}}, torch.ones(3), Exploit()],
    ids=["empty", "text", "pickle", "checkpoint", "tensor", "object"],
)
def test_other_files_are_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        (tmp_path / "a.pt").write_bytes(content)
    else:
        torch.save(content, tmp_path / "a.pt")
    with pytest.raises(StatisticsError, match=r"a\.pt is cut short, damaged, or no file of statistics\.$"):
        ReferenceStatistics.load(tmp_path / "a.pt")
    assert names(tmp_path) == ["a.pt"]


def test_what_is_not_there_is_named(tmp_path):
    for read in (ReferenceStatistics.load, ReferenceStatistics.from_npz):
        with pytest.raises(
            StatisticsError, match=r"There are no statistics to read at .*gone: No such file or directory"
        ):
            read(tmp_path / "gone")
        with pytest.raises(StatisticsError, match="Is a directory"):
            read(tmp_path)


def test_statistics_that_do_not_fit_together_are_refused():
    good = make()
    for features, indices in ((good.features[:, :3], good.indices), (good.features, good.indices[1:])):
        with pytest.raises(ValueError, match=r"need features \[M, 4\] and indices \[M\], got the shapes"):
            ReferenceStatistics(RECORD, good.gaussian, features, indices)
    with pytest.raises(ValueError, match=r"must be plain data, such as JSON can hold: .*Tensor"):
        make(record={"mean": torch.ones(2)})


def test_a_failing_write_leaves_what_was_there(path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            make(seed=1).save(path)
        with pytest.raises(OSError, match="No space left"):
            make(seed=1).to_npz(path)
    assert bits(ReferenceStatistics.load(path)) == bits(make())
    assert names(path.parent) == [path.name]


def write_often(path, seed, begun):
    mine = make(seed, size=48, count=200, kept=200)
    begun.wait()
    for _ in range(40):
        mine.save(path)


def test_two_processes_that_write_at_once_leave_a_whole_file(tmp_path):
    context = multiprocessing.get_context("fork")
    begun = context.Barrier(3)
    path = tmp_path / "a.pt"
    whole = {bits(make(seed, size=48, count=200, kept=200)) for seed in (0, 1)}
    make(0, size=48, count=200, kept=200).save(path)
    writers = [context.Process(target=write_often, args=(path, seed, begun)) for seed in (0, 1)]
    for writer in writers:
        writer.start()
    begun.wait()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(bits(ReferenceStatistics.load(path)))
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen == whole
    assert names(tmp_path) == ["a.pt"]


# -- other programs ---------------------------------------------------------------------------------------------------


def test_an_npz_of_another_program(tmp_path):
    expected = make().gaussian
    np.savez(tmp_path / "a.npz", mu=expected.mean.numpy(), sigma=expected.covariance.numpy(), extra=np.arange(3))
    read = ReferenceStatistics.from_npz(tmp_path / "a.npz")
    assert torch.equal(read.gaussian.mean, expected.mean)
    assert torch.equal(read.gaussian.covariance, expected.covariance)
    assert (*read.features.shape, *read.indices.shape) == (0, 4, 0)
    assert read.count == read.record["count"] == 0
    assert len(bytes.fromhex(read.record["sha256"])) == 32
    assert frechet_distance(read.gaussian, expected) == pytest.approx(0, abs=1e-12)

    np.savez(tmp_path / "b.npz", mu=expected.mean.float().numpy(), sigma=expected.covariance.float().numpy())
    other = ReferenceStatistics.from_npz(tmp_path / "b.npz")
    assert other.gaussian.mean.dtype == torch.float64
    assert other.fingerprint != read.fingerprint


def test_an_npz_for_other_programs(tmp_path):
    make().to_npz(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert sorted(file) == ["mu", "sigma"]
        assert file["mu"].dtype == file["sigma"].dtype == np.float64
        assert np.array_equal(file["mu"], make().gaussian.mean.numpy())
        assert np.array_equal(file["sigma"], make().gaussian.covariance.numpy())


@pytest.mark.parametrize(
    "content",
    [
        {"mu": np.zeros(3)},
        {"mu": np.zeros(3), "sigma": np.eye(4)},
        {"mu": np.full(3, np.nan), "sigma": np.eye(3)},
        {"mu": np.zeros(3), "sigma": np.arange(9.0).reshape(3, 3)},
        {"mu": np.array([Exploit()]), "sigma": np.eye(1)},
        {"mu": np.array(["a"]), "sigma": np.eye(1)},
        b"no archive",
    ],
    ids=["no sigma", "shapes", "nan", "not symmetric", "object", "text", "no archive"],
)
def test_an_npz_of_something_else_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        (tmp_path / "a.npz").write_bytes(content)
    else:
        np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(StatisticsError, match=r"a\.npz is cut short, damaged, or no \.npz file that holds `mu`"):
        ReferenceStatistics.from_npz(tmp_path / "a.npz")
    assert names(tmp_path) == ["a.npz"]


def test_an_npz_that_inflates_is_refused_unless_allowed(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    gaussian = make().moments()
    mean, covariance = gaussian.mean.numpy(), gaussian.covariance.numpy()
    np.savez_compressed(path, mu=mean, sigma=covariance)
    assert torch.equal(ReferenceStatistics.from_npz(path).moments().mean, gaussian.mean)
    np.savez_compressed(path, mu=np.zeros(500), sigma=np.eye(500))
    with pytest.raises(StatisticsError, match=r"a\.npz is a file of .* that becomes 2 MB in memory"):
        ReferenceStatistics.from_npz(path)
    monkeypatch.setenv("LIGHTNING_GEN_MAX_INFLATED_GB", "0.01")
    assert len(ReferenceStatistics.from_npz(path).moments().mean) == 500


def test_an_npz_cut_short_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    make().to_npz(path)
    data = path.read_bytes()
    for length in range(0, len(data), len(data) // 20):
        path.write_bytes(data[:length])
        with pytest.raises(StatisticsError):
            ReferenceStatistics.from_npz(path)


def test_statistics_are_of_the_extractor_that_compares_with_them(path, tmp_path):
    lenet = SimpleNamespace(name="lenet4", num_features=4, record=EXTRACTOR)
    assert bits(load_statistics(path, lenet)) == bits(make())
    make().to_npz(tmp_path / "a.npz")
    assert load_statistics(tmp_path / "a.npz", lenet).count == 0

    other = SimpleNamespace(name="lenet4", num_features=4, record={**EXTRACTOR, "sha256": "xyz", "new": 1})
    with pytest.raises(StatisticsError, match=r"lenet4 \(sha256: abc there, xyz here; new: None there, 1 here\)"):
        load_statistics(path, other)
    large = SimpleNamespace(name="lenet8", num_features=8, record=EXTRACTOR)
    for file in (path, tmp_path / "a.npz"):
        with pytest.raises(StatisticsError, match="statistics of 4 features, but lenet8 gives 8"):
            load_statistics(file, large)


# -- the cache --------------------------------------------------------------------------------------------------------


class Compute:
    """Counts its calls."""

    def __init__(self, statistics):
        self.statistics, self.calls = statistics, 0

    def __call__(self):
        self.calls += 1
        return self.statistics


def ask(folder, record=RECORD, seed=0):
    """What the cache gives, whether it had to be computed, and the warnings."""
    compute = Compute(make(seed, record))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        given = cached(record, compute, folder)
    return bits(given), bool(compute.calls), [str(warning.message) for warning in caught]


def files(folder):
    return [folder / "statistics" / name for name in names(folder / "statistics")]


def test_statistics_are_computed_once_for_each_record(tmp_path):
    expected = bits(make())
    assert ask(tmp_path) == (expected, True, [])
    assert ask(tmp_path, seed=1) == (expected, False, [])
    for i, change in enumerate(({"pictures": "9"}, {"split": "val"}, {"extractor": {**EXTRACTOR, "sha256": "x"}}), 2):
        assert ask(tmp_path, {**RECORD, **change})[1:] == (True, [])
        assert len(files(tmp_path)) == i
    assert ask(tmp_path) == (expected, False, [])


def test_the_file_tells_what_it_is_of(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path))
    ask(None)
    assert [path.name for path in files(tmp_path)] == [f"MNIST-train-lenet4-{make().fingerprint[:16]}.pt"]
    ask(tmp_path, {**RECORD, "data": "../../my data/" + 200 * "x"})
    assert len(files(tmp_path)) == 2
    assert names(tmp_path) == ["statistics"]


def test_a_damaged_file_is_replaced_with_a_message(tmp_path):
    ask(tmp_path)
    (path,) = files(tmp_path)
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], b"", data.replace(make().features.numpy().tobytes()[:8], 8 * b"x")):
        assert broken != data
        path.write_bytes(broken)
        given, computed, (message,) = ask(tmp_path)
        assert (given, computed) == (bits(make()), True)
        assert re.fullmatch(rf"{path} is (cut short, )?damaged.*\. They are computed anew\.", message)
        assert ask(tmp_path)[1:] == (False, [])
        assert files(tmp_path) == [path]


def test_a_file_of_another_record_is_never_trusted(tmp_path):
    ask(tmp_path)
    (path,) = files(tmp_path)
    other = {**RECORD, "count": 61}
    make(7, other).save(path)
    given, computed, (message,) = ask(tmp_path)
    assert (given, computed) == (bits(make()), True)
    assert "of other pictures than its name says" in message
    assert ask(tmp_path)[1:] == (False, [])


def test_a_folder_that_cannot_be_written_costs_one_warning(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        given, computed, (message,) = ask(folder)
        assert (given, computed) == (bits(make()), True)
        assert re.search(r"could not be kept \(.*\); the next run computes them again", message)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "statistics").touch()
    assert len(ask(tmp_path / "cache")[2]) == 1


def ask_on_rank(own_rank, folders):
    compute = Compute(make())
    given = cached(RECORD, compute, folders[own_rank])
    return given and bits(given), compute.calls


@pytest.mark.parametrize("known_to", [(), (0,), (1,), (0, 1)])
def test_rank_zero_decides_for_all(on_ranks, tmp_path, known_to):
    """As on two machines with a disk each."""
    folders = [tmp_path / "zero", tmp_path / "one"]
    for known in known_to:
        ask(folders[known])
    expected = int(0 not in known_to)
    assert on_ranks(ask_on_rank, folders) == [(bits(make()), expected), (None, expected)]
    assert [folder.exists() for folder in folders] == [True, 1 in known_to]


def fail_on_rank_zero(own_rank, folder):
    cached({} if own_rank == 0 else RECORD, Compute(None), folder)


def test_a_failure_of_rank_zero_is_one_of_all(on_ranks, tmp_path):
    zero, one = on_ranks(fail_on_rank_zero, tmp_path)
    assert "KeyError: 'data'" in str(zero)
    assert "Rank 0 failed" in str(one)
