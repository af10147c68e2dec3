"""Films of the pictures of a run."""

import pytest
from PIL import Image

from lightning_gen.runs.film import MAX_WIDTH, write_films


def draw(folder, panel, step, colour, size=(40, 30)):
    path = folder / "images" / panel / f"step_{step:08d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_a_film_shows_each_picture_in_order_and_stays_on_the_last(tmp_path):
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    for step, colour in zip((900, 1000, 10000), colours, strict=True):
        draw(tmp_path, "val/samples", step, colour)
    draw(tmp_path, "real", 0, (9, 9, 9))
    (film,) = write_films(tmp_path)
    assert film == tmp_path / "films" / "val" / "samples.gif"
    with Image.open(film) as shown:
        assert (shown.n_frames, shown.info["loop"]) == (3, 0)
        lasting = []
        for frame, colour in enumerate(colours):
            shown.seek(frame)
            lasting.append(shown.info["duration"])
            assert shown.convert("RGB").getpixel((20, 40)) == colour
            assert len(shown.convert("RGB").crop((0, 0, 40, 26)).getcolors()) > 1, "the step stands above"
    assert lasting == [500, 500, 2000]


def test_long_films_take_ten_seconds_and_wide_pictures_get_narrower(tmp_path):
    for step in range(40):
        draw(tmp_path, "samples", step, (6 * step, 0, 0), (2 * MAX_WIDTH, 100))
    (film,) = write_films(tmp_path)
    with Image.open(film) as shown:
        assert shown.size == (MAX_WIDTH, 50 + 26)
        lasting = 0
        for frame in range(shown.n_frames):
            shown.seek(frame)
            lasting += shown.info["duration"]
    assert lasting == 39 * 250 + 2000


def test_without_several_pictures_there_is_no_film(tmp_path):
    draw(tmp_path, "samples", 0, (1, 2, 3))
    with pytest.raises(FileNotFoundError, match="has no pictures of several steps in images/"):
        write_films(tmp_path)
