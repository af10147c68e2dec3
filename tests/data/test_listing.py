import itertools
import os

import pytest
from PIL import Image

from lightning_gen.data.images import ImageError, open_image
from lightning_gen.data.listing import faults_of, find_images, search_images


def test_find_images_is_recursive_sorted_and_blind_to_case(tmp_path):
    for name in ("b.PNG", "a/z.jpeg", "a/b/c.TiF", "a.webp", "notes.txt", ".hidden.png", ".thumbs/x.png", "a/._b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a.webp", "a/b/c.TiF", "a/z.jpeg", "b.PNG"]


def test_find_images_follows_links_but_not_in_circles(tmp_path):
    (tmp_path / "real/inner").mkdir(parents=True)
    (tmp_path / "real/inner/x.png").touch()
    (tmp_path / "real/inner/back").symlink_to(tmp_path / "real")
    (tmp_path / "given").symlink_to(tmp_path / "real")
    (tmp_path / "outer").mkdir()
    (tmp_path / "outer/link").symlink_to(tmp_path / "real/inner")
    assert find_images(tmp_path / "given") == [tmp_path / "given/inner/x.png"]
    assert find_images(tmp_path / "outer") == [tmp_path / "outer/link/x.png"]


def test_folders_that_link_to_each_other_are_searched_once(tmp_path):
    for name in "abcd":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").touch()
    for here, there in itertools.permutations("abcd", 2):
        for i in range(2):
            (tmp_path / here / f"to_{there}{i}").symlink_to(tmp_path / there)
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep/x.png").touch()
    for name in ("one", "two"):
        (tmp_path / "b" / name).symlink_to(outside)
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path / "b")]
    # Of b alone: the others by the first links that lead to them, each once.
    assert found == ["b/b.png", "b/one/deep/x.png", "b/to_a0/a.png", "b/to_c0/c.png", "b/to_d0/d.png"]
    # Where a folder has a place of its own, that counts.
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a/a.png", "b/b.png", "c/c.png", "d/d.png", "outside/deep/x.png"]


def test_a_search_tells_pictures_from_other_files(tmp_path):
    for name in ("a/x.JFIF", "a/y.avif", "b/z.heic", "b/notes.txt", "c/d/README", "w.eps"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = search_images(tmp_path)
    assert [path.name for path in found.images] == ["x.JFIF", "y.avif"]
    assert sorted(path.name for path in found.others) == ["README", "notes.txt", "w.eps", "z.heic"]
    assert [path.name for path in found.folders] == ["a", "b", "c"]
    with pytest.raises(FileNotFoundError, match=r"b holds no pictures \(jpg, .*\), only 1 .heic, 1 .txt\."):
        find_images(tmp_path / "b")


def test_what_is_wrong_with_files_is_known_from_status_and_first_bytes(tmp_path):
    picture = Image.new("RGB", (5, 6), "orange")
    for ending in ("png", "jpg", "tga", "pcx", "qoi"):
        picture.save(tmp_path / f"good.{ending}")
    picture.save(tmp_path / "jpeg", format="JPEG")
    (tmp_path / "jpeg").rename(tmp_path / "other_name.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html>")
    (tmp_path / "p.ppm").write_text("P")
    found = {path.name: fault for path, fault in faults_of(find_images(tmp_path)).items()}
    assert found == {
        "empty.png": "empty",
        "gone.png": "a link to nothing",
        "p.ppm": "no picture by its first bytes",
        "page.jpg": "no picture by its first bytes",
        "pipe.png": "not a file",
    }
    for name in found:  # and reading waits for none of them
        with pytest.raises(ImageError, match=name):
            open_image(tmp_path / name)


def test_find_images_names_the_folder_at_fault(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"empty holds no pictures \(jpg, png, .*\)\.$"):
        find_images(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"file is not a folder"):
        find_images(tmp_path / "file")
