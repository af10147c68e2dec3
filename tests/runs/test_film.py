"""Films of the pictures of a run."""

import sys
from types import ModuleType, SimpleNamespace

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


class Container:
    """What a film is written through, which keeps what it is given: the part of PyAV that is used."""

    def __init__(self, file):
        self.file, self.frames, self.ended = file, [], False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        assert self.ended, "the encoder has been asked for what it held back"
        self.file.write(b"film")

    def add_stream(self, codec, rate):
        self.codec, self.rate, self.stream = codec, rate, SimpleNamespace(encode=self.encode)
        return self.stream

    def encode(self, frame=None):
        return [] if frame is None else [frame]

    def mux(self, packets):
        self.frames += packets
        self.ended = not packets


def test_a_film_can_be_an_mp4(tmp_path, monkeypatch):
    made, library = [], ModuleType("av")
    library.open = lambda file, mode, format: made.append(Container(file)) or made[-1]
    library.VideoFrame = SimpleNamespace(from_image=lambda image: image)
    monkeypatch.setitem(sys.modules, "av", library)
    for step, colour in ((0, (250, 0, 0)), (5, (0, 250, 0)), (10, (0, 0, 250))):
        draw(tmp_path, "samples", step, colour, (41, 31))
    (film,) = write_films(tmp_path, "mp4")
    assert film == tmp_path / "films" / "samples.mp4"
    assert film.read_bytes() == b"film"
    (container,) = made
    stream = container.stream
    assert (container.codec, stream.pix_fmt, stream.width, stream.height) == ("h264", "yuv420p", 42, 32 + 26)
    assert {frame.size for frame in container.frames} == {(42, 58)}
    shown = [frame.getpixel((20, 40)) for frame in container.frames]
    half, last = container.rate // 2, 2 * container.rate
    assert shown == [(250, 0, 0)] * half + [(0, 250, 0)] * half + [(0, 0, 250)] * last


def test_without_pyav_an_mp4_is_refused_before_a_picture_is_read(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    for step in (0, 1):
        draw(tmp_path, "samples", step, (1, 2, 3))
        (tmp_path / "images" / "samples" / f"step_{step:08d}.png").write_bytes(b"")
    with pytest.raises(ModuleNotFoundError, match="pip install av"):
        write_films(tmp_path, "mp4")
    assert not (tmp_path / "films").exists()
