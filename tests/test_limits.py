import io
import struct
import zipfile

import pytest
import torch
import yaml

from lightning_gen.checkpoints import CheckpointError, read_checkpoint
from lightning_gen.limits import LimitError, check_inflation, limit_of, load_tensors, load_yaml

WEIGHTS = {"state_dict": {"w": torch.zeros(250_000)}}  # 1 MB


def compressed(path, content=WEIGHTS):
    """A file as `torch.save` writes it, but with compressed records."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as stored, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as deflated:
        for record in stored.infolist():
            deflated.writestr(record.filename, stored.read(record))
    return path


def test_a_file_that_inflates_is_refused_unless_allowed(tmp_path, monkeypatch):
    path = compressed(tmp_path / "small.ckpt")
    assert path.stat().st_size < 10_000
    with pytest.raises(CheckpointError, match=r"small.ckpt is a file of 0.00\d+ MB that becomes 1 MB in memory.*_GB"):
        read_checkpoint(path)
    monkeypatch.setenv("LIGHTNING_GEN_MAX_INFLATED_GB", "0.002")
    assert torch.equal(read_checkpoint(path)["state_dict"]["w"], torch.zeros(250_000))


def test_what_pytorch_writes_is_within_the_limit(tmp_path):
    for name, content in (("whole", WEIGHTS), ("empty", {}), ("tiny", {"a": torch.tensor(1)})):
        torch.save(content, tmp_path / name)
        check_inflation(tmp_path / name)
    torch.save(WEIGHTS, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    assert torch.equal(load_tensors(tmp_path / "legacy")["state_dict"]["w"], WEIGHTS["state_dict"]["w"])


def test_records_that_lie_over_one_another_count_each(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save(WEIGHTS, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist += archive.filelist * 2
        archive.comment = b" "  # so that the directory is written again
    with pytest.raises(LimitError):
        check_inflation(path)


def test_a_second_directory_is_refused(tmp_path):
    """PyTorch goes where the end of the file says the directory is; Python takes the one that lies before the end."""
    path = compressed(tmp_path / "x.ckpt")
    bomb = path.read_bytes()
    harmless = io.BytesIO()
    torch.save({"state_dict": {}}, harmless)
    end = bytearray(harmless.getvalue()[-22:])
    end[16:20] = struct.pack("<L", zipfile.ZipFile(path).start_dir)
    path.write_bytes(bomb[:-22] + harmless.getvalue()[:-22] + bytes(end))
    with zipfile.ZipFile(path) as archive:
        assert sum(record.file_size for record in archive.infolist()) < 10_000
    with pytest.raises(CheckpointError, match="is cut short or not a checkpoint"):
        read_checkpoint(path)


@pytest.mark.parametrize("text", ["much", "-1", "nan"])
def test_limits_that_are_no_numbers_are_named(monkeypatch, text):
    monkeypatch.setenv("LIGHTNING_GEN_MAX_X", text)
    with pytest.raises(ValueError, match=rf"LIGHTNING_GEN_MAX_X must be a number of 0 or more, got '{text}'"):
        limit_of("LIGHTNING_GEN_MAX_X", 1)
    monkeypatch.setenv("LIGHTNING_GEN_MAX_X", "")
    assert limit_of("LIGHTNING_GEN_MAX_X", 1) == 1


def laughs(levels, width=10):
    """Each level is ten times the one before it."""
    lines = [f"a0: &a0 [{', '.join(['ha'] * width)}]"]
    return "\n".join(lines + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * width)}]" for i in range(1, levels)])


@pytest.mark.parametrize("text", [laughs(9), laughs(5), "a: &a {b: *a}", "a: &a [1, *a]", "a: &a\n  <<: *a\n"])
def test_yaml_that_is_large_by_its_aliases_alone_is_refused(text):
    with pytest.raises(LimitError, match=r"more than 100,000 values when .* LIGHTNING_GEN_MAX_CONFIG_VALUES"):
        load_yaml(text)


def test_the_limit_of_yaml_can_be_raised(monkeypatch):
    monkeypatch.setenv("LIGHTNING_GEN_MAX_CONFIG_VALUES", "130000")
    assert len(load_yaml(laughs(5))["a4"]) == 10
    monkeypatch.setenv("LIGHTNING_GEN_MAX_CONFIG_VALUES", "120000")
    with pytest.raises(LimitError, match="more than 120,000"):
        load_yaml(laughs(5))


def test_usual_aliases_are_read():
    text = "base: &base {x: 1, y: [2, 3]}\nsame: *base\nmore: {<<: *base, x: 4}\nwords: a & b * c\n"
    base = {"x": 1, "y": [2, 3]}
    assert load_yaml(text) == {"base": base, "same": base, "more": base | {"x": 4}, "words": "a & b * c"}
    with pytest.raises(yaml.YAMLError, match="undefined alias"):
        load_yaml("a: &b 1\nc: *d\n")
