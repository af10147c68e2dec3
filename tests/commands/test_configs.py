import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from lightning_gen.commands import configs
from lightning_gen.commands.configs import config_folder, find_config, shipped_configs

REPOSITORY = Path(__file__).parents[2]
NAMES = [
    *("classifier", "cyclegan", "dcgan", "fgan", "gan", "kde", "lsgan", "pix2pix", "sngan", "wgan", "wgan_gp"),
    *("paper/cyclegan_horse2zebra", "paper/dcgan_celeba", "paper/dcgan_mnist", "paper/fgan_mnist", "paper/gan_mnist"),
    *("paper/lsgan_celeba", "paper/pix2pix_facades", "paper/sngan_cifar10", "paper/sngan_cifar10_conditional"),
    *("paper/sngan_mnist", "paper/wgan_gp_cifar10", "paper/wgan_gp_mnist", "paper/wgan_lsun"),
]


def test_names_of_what_is_shipped():
    assert shipped_configs() == sorted(shipped_configs())
    assert set(NAMES) <= set(shipped_configs())
    assert all((config_folder() / f"{name}.yaml").is_file() for name in shipped_configs())


@pytest.mark.parametrize("form", ["{}", "{}.yaml", "configs/{}", "configs/{}.yaml"])
@pytest.mark.parametrize("name", NAMES)
def test_found_by_name_from_anywhere(tmp_path, monkeypatch, form, name):
    monkeypatch.chdir(tmp_path)
    assert Path(find_config(form.format(name))).read_text() == (REPOSITORY / "configs" / f"{name}.yaml").read_text()


def test_a_file_of_the_users_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cyclegan.yaml").write_text("")
    Path("pix2pix").mkdir()
    assert find_config("cyclegan.yaml") == "cyclegan.yaml"
    assert find_config("cyclegan") == str(config_folder() / "cyclegan.yaml")
    assert find_config("pix2pix") == str(config_folder() / "pix2pix.yaml")


@pytest.mark.parametrize("name", ["cycelgan", "../pyproject", "paper", "", "/cyclegan", "cyclegan.yml"])
def test_what_is_not_there_is_said_with_what_is(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        find_config(name)
    assert repr(name) in str(error.value)
    if name in ("cycelgan", "/cyclegan", "cyclegan.yml"):
        assert str(error.value).endswith(" Did you mean cyclegan?")
    else:
        assert all(shipped in str(error.value) for shipped in NAMES)


def test_an_installed_package_finds_them_within_itself(tmp_path, monkeypatch):
    """As the wheel is laid out by pyproject.toml."""
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    wheel = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["lightning_gen"]
    installed = tmp_path / "site-packages"
    for source, target in wheel["force-include"].items():
        shutil.copytree(REPOSITORY / source, installed / target)
    monkeypatch.setattr(configs, "__file__", str(installed / "lightning_gen" / "commands" / "configs.py"))
    monkeypatch.chdir(tmp_path)
    assert config_folder() == installed / "lightning_gen" / "configs"
    assert set(NAMES) <= set(shipped_configs())
    assert find_config("paper/pix2pix_facades") == str(config_folder() / "paper" / "pix2pix_facades.yaml")


def test_the_wheel_holds_them(tmp_path):
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(tmp_path), str(REPOSITORY)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        files = archive.namelist()
        (metadata,) = (archive.read(name).decode() for name in files if name.endswith(".dist-info/METADATA"))
    # What a package index shows has neither pictures nor links of this repository, and is all there.
    links = re.findall(r"\]\(([^)]*)\)", metadata)
    assert links
    assert all(link.startswith("https://") for link in links)
    assert "![" not in metadata
    assert "`PixelCNN`" in metadata
    assert "docs/results.md has what was measured" in metadata
    assert {f"lightning_gen/configs/{name}.yaml" for name in NAMES} <= set(files)
    assert {"lightning_gen/py.typed", "lightning_gen/runs/page.html", "lightning_gen/__main__.py"} <= set(files)
