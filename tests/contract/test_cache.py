"""A run on files and one from their cache are the same run."""

# ruff: noqa: F811  (fixtures that are imported stand as arguments, too)

import json

import pytest
import yaml

from tests.contract.test_configs import (  # noqa: F401  (fixtures)
    SETTINGS,
    config,
    first_stages,
    firsts,
    last_checkpoint,
    load,
    pictures,
    run,
    trained_first,
)
from tests.shared import differences


def folder(settings):
    """The kind of folder that a configuration reads, if it is one."""
    name = settings["data"]["class_path"]
    return {name} if name.endswith("Folder") else set()


@pytest.mark.parametrize("config", firsts(folder), indirect=True)
def test_a_run_from_the_cache_has_the_digits_of_one_from_files(config, tmp_path, monkeypatch, fresh_process):
    monkeypatch.setenv("LIGHTNING_GEN_CACHE", str(tmp_path / "cache"))
    settings = yaml.safe_load(config.read_text())
    found = []
    for name, cache, workers in (("files", False, 0), ("cached", True, 0), ("again", True, 2)):
        settings["trainer"]["default_root_dir"] = str(tmp_path / name)
        settings["data"]["init_args"] |= {"cache": cache, "num_workers": workers}
        config.write_text(yaml.safe_dump(settings))
        fresh_process(run, "fit", "--config", config)
        path = last_checkpoint(tmp_path / name)
        rows = [json.loads(line) for line in (path.parent.parent / "history.jsonl").read_text().splitlines()]
        figures = [{key: value for key, value in row.items() if "/" in key} for row in rows]
        found.append((load(path)["state_dict"], figures))
    measures = any("fid" in key for row in found[0][1] for key in row)
    assert measures == ("GenerativeMetrics" in str(settings))
    assert not differences(found[0], found[1])
    assert not differences(found[0], found[2])
    assert [*(tmp_path / "cache" / "pictures").glob("*.pictures")]
    # The reference of what is measured is of the pictures, wherever they are from.
    kept = [*(tmp_path / "cache" / "statistics").glob("*.pt")]
    assert len(kept) == measures
