"""The evaluations of a run's checkpoints on its page."""

import json
import re

import pytest

from lightning_gen.files import write_atomically
from lightning_gen.runs.evaluations import MOST, evaluations_of, facts_in, figures_in
from lightning_gen.runs.page import write_report


def entry(step=1200, **more):
    return {
        "samples": {"checkpoint": f"elsewhere/run/checkpoints/best/step={step}.ckpt", "global_step": step},
        "figures": {
            "kid-a": {"value": 0.5, "samples": 10_000, "reference": 10_000},
            "fid-a": {"value": 7.25, "samples": 50_000, "reference": 60_000, "std": 0.125, "by_seed": [7.0, 7.5]},
        },
        "reference": {"data": "MNIST", "split": "train", "count": 60_000},
        "protocol": {},
        "seeds": [0, 1],
        **more,
    }


@pytest.fixture
def found(tmp_path):
    """Writes evaluations of a run, and reads them."""

    def write(*entries):
        write_atomically(tmp_path / "evaluations.json", json.dumps({"evaluations": entries}))
        return evaluations_of(tmp_path)

    return write


def test_figures_stand_with_all_that_they_depend_on(found):
    sampling = {"sampling": {"temperature": 0.5, "top_k": 3}}
    (one,) = found(entry(protocol=sampling, floor={"fid-a": {"value": 1.5}}, finished="2026-01-02T03:04:05+00:00"))
    assert (one.of, one.step) == ("best/step=1200.ckpt", 1200)
    assert one.figures == {"fid-a": "7.25 \u00b1 0.12", "kid-a": "0.5"}
    assert one.floors == {"fid-a": "1.5"}
    assert one.fewer == {"kid-a": "10\u2009000"}
    assert one.facts == {
        "samples": "50\u2009000",
        "compared with": "60\u2009000 training pictures of MNIST",
        "seeds": "0, 1",
        "sampling": "temperature 0.5, top k 3",
        "measured": "2026-01-02 03:04",
    }
    assert [figure.base for figure in figures_in([one])] == ["fid", "kid"], "what says most first"


def test_reconstructions_and_likelihoods_are_of_test_pictures(found):
    figures = {
        "psnr": {"value": 26.514, "samples": 100, "reference": 100, "split": "test"},
        "nll": {"value": 88.25, "samples": None, "reference": 100, "split": "test"},
        "nll_stderr": {"value": 0.5, "samples": None, "reference": 100, "split": "test"},
        "ssim": {"value": None, "samples": 100, "reference": 100, "split": "test"},
    }
    (one,) = found(
        entry(figures=figures, reference={"data": "none"}, reconstructed={"data": "Scenes", "split": "test"})
    )
    assert one.figures == {"psnr": "26.51 dB", "nll": "88.25 \u00b1 0.5 nats", "ssim": "no number"}
    assert one.facts == {"compared with": "100 test pictures of Scenes", "seeds": "0, 1"}


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        ({"file": "cifar10.npz"}, "cifar10.npz"),
        ({"data": "folder", "split": "my/pictures"}, "60\u2009000 pictures of my/pictures"),
        ({"data": "MNIST", "split": "val"}, "60\u2009000 validation pictures of MNIST"),
    ],
)
def test_what_is_compared_with_has_a_name(found, reference, words):
    assert found(entry(reference=reference))[0].facts["compared with"] == words


def test_pictures_of_a_folder_have_no_step(found):
    (one,) = found(entry(samples={"images": "out/samples"}))
    assert (one.of, one.step) == ("samples", None)


def test_the_newest_come_first_and_what_cannot_be_read_is_left_out(found):
    odd = [7, None, {}, entry(figures=[]), entry(figures={"fid": 3}), entry(finished="soon"), entry(samples={})]
    steps = [one.step for one in found(entry(1), *odd, entry(2))]
    assert steps == [2, 1]
    assert [one.step for one in found(*map(entry, range(40)))] == [*range(39, 39 - MOST, -1)]
    assert found() == []


def test_the_page_has_a_column_of_each(found, tmp_path):
    write_atomically(tmp_path / "history.jsonl", '{"step": 1, "train/a": 1.0}\n')
    other = entry(900, figures={"fid-a": {"value": 9.0, "samples": 100, "reference": 60_000}})
    assert facts_in(found(other, entry())) == ["samples", "compared with", "seeds"]
    page = write_report(tmp_path).read_text()
    table = re.search(r"(?s)<h2>Evaluations</h2>.*?</table>", page)[0]
    rows = [
        [re.sub(r"<[^>]*>", " ", cell).strip() for cell in re.findall(r"(?s)<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"(?s)<tr.*?</tr>", table)
    ]
    assert rows[0] == ["", "best/step=1200.ckpt step 1\u2009200", "best/step=900.ckpt step 900"]
    assert [" ".join(cell.split()) for cell in rows[1]] == ["FID (a) \u2193", "7.25 \u00b1 0.12", "9"]
    assert [" ".join(cell.split()) for cell in rows[2]] == ["KID (a) \u2193", "0.5 of 10 000", ""]
    assert rows[3] == ["samples", "50\u2009000", "100"]
