"""Rules of thumb of training on few or many pictures: numbers in, numbers and their reasons out.

They are those of StyleGAN2-ADA's authors (2006.06676 and its code) where they have one, and say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, NamedTuple, TypeAlias

FEW = 100
"""Training pictures below which samples will be little else than these pictures."""
AUGMENT_BELOW = 20_000
"""Training pictures below which a discriminator learns them by heart (2006.06676, figure 1)."""
KERNEL_BELOW = 5_000
"""Real pictures below which the bias of a Fréchet distance, which falls as 1 / N, is of the order of the distance."""
_ENLARGED = 0.05  # share of the pictures that may be smaller than what is trained
_UNSEEN = 40.0  # dB above which nothing can be seen of what is lost
_LOSES_LITTLE = 0.15  # of a picture's area, below which a square is chosen
_MEMORY = 0.8  # of the memory at hand, which a run may take


class Advice(NamedTuple):
    """A value of a setting, and why it is this one, in a line."""

    value: Any
    reason: str


def resolution(
    sizes: Sequence[tuple[int, int]], detail: Mapping[int, float], most: int, choices: Sequence[int]
) -> Advice:
    """The rows of the shorter side of training pictures that lose least.

    It is the largest of which hardly a picture is enlarged, unless a smaller one has all that can be seen.

    Args:
        sizes: (height, width) of the pictures.
        detail: What is lost at each resolution, in dB, as `Survey.detail`.
        most: That the machine trains in time.
        choices: In order.
    """
    shorter = [min(size) for size in sizes]
    share = {r: sum(side < r for side in shorter) / len(shorter) for r in choices}
    large_enough = [r for r in choices if share[r] <= _ENLARGED] or [choices[0]]
    within = [r for r in large_enough if r <= most] or [large_enough[0]]
    best = within[-1]
    for enough in within:
        if enough < large_enough[-1] and detail.get(enough, 0.0) >= _UNSEEN:
            lost = f"brought to it and back they keep {detail[enough]:.0f} dB, of which nobody sees more than 40"
            return Advice(enough, f"no more is in the pictures: {lost}")
    if best < large_enough[-1]:
        return Advice(
            best, f"the pictures have {large_enough[-1]}, and this machine trains no more than {most} in time"
        )
    larger = next((r for r in choices if r > best), None)
    if share[best] > _ENLARGED:
        return Advice(best, f"the smallest there is, although {share[best]:.0%} of the pictures are enlarged")
    if larger is None:
        return Advice(best, "the largest there is")
    return Advice(best, f"at {larger}, {share[larger]:.0%} of the pictures would be enlarged; here {share[best]:.0%}")


def shape(sizes: Sequence[tuple[int, int]], rows: int) -> Advice:
    """(height, width) whose crop loses least, the shorter side of which has so many rows.

    It is a square unless that loses much. The longer side is then a multiple of a quarter of the shorter one, so that
    networks can halve it as often but for two times.
    """
    lost = {ratio: _lost(sizes, ratio) for ratio in (1.0, *(sign for n in range(5, 13) for sign in (n / 4, 4 / n)))}
    best = min(lost, key=lambda ratio: (lost[ratio], abs(math.log(ratio))))
    if lost[1.0] <= _LOSES_LITTLE or lost[1.0] - lost[best] <= _LOSES_LITTLE / 2:
        return Advice((rows, rows), f"a square crop in the center loses {lost[1.0]:.0%} of a picture (median)")
    size = (rows, round(rows * best)) if best > 1 else (round(rows / best), rows)
    return Advice(size, f"this crop loses {lost[best]:.0%} of a picture (median), and a square {lost[1.0]:.0%}")


def _lost(sizes: Sequence[tuple[int, int]], ratio: float) -> float:
    """The share of a picture's area, a median, that is outside of the largest crop of that width by height."""
    own = [width / height for height, width in sizes]
    return median(1 - min(ratio / each, each / ratio) for each in own)


def batch_size(pictures: int, wanted: int) -> Advice:
    """Pictures of an update: as many as wanted, unless there are not twice as many in all."""
    if pictures >= 2 * wanted:
        return Advice(wanted, "that of the configuration")
    value = max(1, 2 ** int(math.log2(max(1, pictures // 2))))
    return Advice(value, f"of {pictures} pictures, so that an epoch has two batches at least")


def r1_weight(size: tuple[int, int], batch: int) -> Advice:
    """R1's gamma: 0.0002 res^2 / batch, as the code of StyleGAN2-ADA chooses it; of a rectangle by its area."""
    value = float(f"{0.0002 * size[0] * size[1] / batch:.3g}")
    return Advice(value, f"0.0002 x {size[0]} x {size[1]} / {batch} pictures; try a fifth and five times of it")


def fitting_batch(costs: Callable[[int], int | None], wanted: int, memory: int, *, least: int = 1) -> Advice:
    """The largest piece of a batch that fits into memory: the batch itself, or a half, a quarter ... of it.

    Args:
        costs: Bytes that a step with so many pictures takes; None if it does not fit.
        wanted: The batch.
        memory: Bytes at hand. Where a step twice as large would go beyond them, it is not tried.
        least: Pictures of a piece at least, as batch norm needs two.
    """
    sizes = [wanted]
    while sizes[-1] % 2 == 0 and sizes[-1] // 2 >= least:
        sizes.append(sizes[-1] // 2)
    sizes = sizes[:4][::-1]  # the smallest first
    fits, before = 0, 0
    for size in sizes:
        taken = costs(size)
        if taken is None or taken > _MEMORY * memory:
            break
        fits, growth, before = size, taken - before if before else 0, taken
        if taken + 2 * growth > _MEMORY * memory:
            break
    if fits == wanted:
        return Advice(fits, "a step of the whole batch fits into memory")
    if not fits:
        raise MemoryError(
            f"Not even a step of {sizes[0]} pictures fits into the memory of this machine. Lower the resolution, or "
            "choose smaller networks."
        )
    return Advice(fits, f"a step of {fits} pictures fits into memory, one of {2 * fits} would not")


def kimg(wanted: float, rate: float | None, hours: float) -> Advice:
    """How many thousands of pictures to train for.

    Args:
        wanted: If time does not matter.
        rate: Pictures a second; None where it was not measured.
        hours: That there are.
    """
    if rate is None:
        return Advice(wanted, "as recommended; how long that takes was not measured")
    takes = wanted * 1000 / rate / 3600
    speed = f"{rate:,.0f} pictures a second" if rate >= 100 else f"{rate:.3g} pictures a second"
    if takes <= hours:
        return Advice(wanted, f"about {_hours(takes)} at {speed}")
    value = max(1.0, float(f"{rate * hours * 3.6:.3g}"))
    return Advice(value, f"what {_hours(hours)} give at {speed}; {wanted:g} take {_hours(takes)}")


def _hours(hours: float) -> str:
    return (
        f"{hours * 60:.0f} minutes" if hours < 1 else f"{hours:.3g} hours" if hours < 72 else f"{hours / 24:.3g} days"
    )


def figures(pictures: int) -> Advice:
    """Which figures are honest with so many real pictures to compare with."""
    if pictures < KERNEL_BELOW:
        why = f"{pictures} pictures: the bias of a Fréchet distance falls as 1 / N, a kernel distance has none"
        return Advice(["kid", "prdc", "authpct"], why)
    return Advice(["fid", "kid", "prdc"], f"{pictures} pictures are enough for a Fréchet distance; say N beside it")


def num_samples(pictures: int) -> Advice:
    """How many samples to measure at each validation."""
    if pictures < KERNEL_BELOW:
        return Advice(max(pictures, 100), "as many as there are real pictures, for recall and coverage compare equals")
    return Advice(KERNEL_BELOW, "for a curve; measure the end with test_num_samples, and compare equal numbers only")


def augments(pictures: int) -> Advice:
    """Whether to augment what the discriminator sees."""
    if pictures < AUGMENT_BELOW:
        return Advice(True, f"a discriminator learns {pictures} pictures by heart; not above about {AUGMENT_BELOW:,}")
    return Advice(False, f"{pictures} pictures are not learned by heart soon")


# -- all of it together -----------------------------------------------------------------------------------------------

Settings: TypeAlias = dict[tuple[str, ...], Advice]
"""What a configuration should say, by the names that lead to it, as ("data", "init_args", "image_size")."""
_VALIDATIONS = 25  # in a run
_COSTS = 600.0  # seconds that a stop may cost
_EPOCHS = 200  # of the papers on translation (1703.10593, 1611.07004)
_KIMG = 5000  # after which results of 2006.06676's code are reasonable; 25,000 is what its authors train
_JITTER = 286 / 256  # that pictures are larger than random crops of them, in these papers


@dataclass(frozen=True)
class Case:
    """What there is to train, on what, with what.

    Attributes:
        family: What the model plays: "gan", "translation" or "other".
        training: Training pictures, each once; of two domains the fewest.
        epoch: Examples of an epoch.
        sizes: (height, width) of pictures, as they lie.
        detail: As `resolution` takes it.
        gray: Share of pictures without colour.
        most: Rows that the machine trains in time.
        sized: How the data is told its size: by "image_size", by "crop" and "resize", or None where it has its own.
        size: (height, width) that the data has, or was told.
        colours: Whether the data can be told to have one channel.
        excluded: Files to leave out, with a word why, where the data can be told to.
        num_classes: Of data with labels, for a model that takes them; else None.
        batch: Pictures of a batch in the configuration.
        kimg: Thousands of pictures for which the configuration trains; None leaves it to the rules here.
        n_critic: Batches of a step.
        r1: Settings of R1 beside its weight, where R1 is what the model is penalised by; else None.
        augment: What the model can be told to augment by, a class and its settings; None if it cannot, or does already.
        can_accumulate: Whether it can be told to cut batches.
        measures: Whether figures of features can be had on this machine.
        warns: Whether the model has a discriminator that can be watched.
        choices: Resolutions.
    """

    family: Literal["gan", "translation", "other"]
    training: int
    epoch: int
    sizes: Sequence[tuple[int, int]]
    size: tuple[int, int]
    batch: int
    detail: Mapping[int, float] = field(default_factory=dict)
    gray: float = 0.0
    most: int = 256
    sized: Literal["image_size", "crop"] | None = None
    colours: bool = False
    excluded: Mapping[str, str] = field(default_factory=dict)
    num_classes: int | None = None
    kimg: float | None = None
    n_critic: int = 1
    r1: Mapping[str, Any] | None = None
    augment: Mapping[str, Any] | None = None
    can_accumulate: bool = False
    measures: bool = False
    warns: bool = False
    choices: Sequence[int] = (16, 32, 64, 128, 256, 512, 1024)


def warnings_of(case: Case) -> list[str]:
    """What to know before training, a sentence each.

    Raises:
        ValueError: If there is nothing to learn from.
    """
    if case.training < 2:
        raise ValueError(
            f"There is {'one single picture' if case.training else 'no picture'} to train on, without copies of others "
            "and files that cannot be read. A model would learn nothing but that picture: give a hundred or more."
        )
    found = []
    if case.training < FEW:
        found.append(
            f"{case.training} pictures are very few. Samples will resemble them closely; start from another run's "
            "weights (fit --init_from), and look at authpct and at nearest neighbours."
        )
    if 0.01 <= case.gray < 0.99:
        found.append(f"{case.gray:.0%} of the pictures are gray, among pictures in colour. Samples will be so, too.")
    return found


def data_settings(case: Case) -> Settings:
    """How pictures are read, and in which batches."""
    found: dict[str, Advice] = {}
    if case.sized:
        rows = resolution(case.sizes, case.detail, case.most, case.choices)
        wanted = shape(case.sizes, rows.value)
        square = wanted.value[0] == wanted.value[1]
        reason = f"{rows.reason}; {wanted.reason}"
        found[case.sized] = Advice(wanted.value[0] if square else list(wanted.value), reason)
        if case.sized == "crop":
            larger = [round(side * _JITTER) for side in wanted.value]
            found["resize"] = Advice(
                larger[0] if square else larger, "as much larger than the crop as in the papers, 286 for 256"
            )
    if case.colours and case.gray >= 0.99:
        found["channels"] = Advice(1, f"{case.gray:.0%} of the pictures are gray")
    if case.excluded:
        kinds = sorted(set(case.excluded.values()))
        found["exclude"] = Advice(list(case.excluded), " and ".join(kinds))
    found["batch_size"] = batch_size(case.epoch, case.batch)
    return {("data", "init_args", name): each for name, each in found.items()}


def size_in(case: Case, settings: Settings) -> tuple[int, int]:
    """(height, width) of the pictures that such settings give."""
    advice = settings.get(("data", "init_args", case.sized or ""))
    if advice is None:
        return case.size
    value = advice.value
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def model_settings(case: Case, size: tuple[int, int], batch: int, piece: Advice | None) -> Settings:
    """Of a model of pictures of a size, in such batches, of which such a piece fits into memory (None: not tried)."""
    found: dict[str, Advice] = {}
    if case.num_classes is not None:
        found["num_classes"] = Advice(case.num_classes, "those of the data")
    if case.r1 is not None:
        weight = r1_weight(size, batch)
        penalty = {"class_path": "R1", "init_args": {**case.r1, "weight": weight.value}}
        found["penalties"] = Advice([penalty], weight.reason)
    if case.augment is not None and (advice := augments(case.training)).value:
        found["augment"] = Advice(dict(case.augment), advice.reason)
    if piece is not None and piece.value < batch and case.can_accumulate:
        found["micro_batches"] = Advice(batch // piece.value, f"gradients are added up: {piece.reason}")
    return {("model", "init_args", name): each for name, each in found.items()}


def run_settings(case: Case, batch: int, rate: float | None, hours: float) -> Settings:
    """How long to train, and how often to look."""
    wanted = {"gan": float(_KIMG), "translation": _EPOCHS * case.epoch / 1000, "other": float(_KIMG)}[case.family]
    length = kimg(case.kimg or wanted, rate, hours)
    a_step = batch * case.n_critic
    steps = max(1, round(length.value * 1000 / a_step))
    often = max(1, steps // _VALIDATIONS)
    saved = often if rate is None else max(1, min(often, round(_COSTS * rate / a_step)))
    found: Settings = {
        ("trainer", "max_steps"): Advice(steps, f"{length.value:g} kimg in steps of {a_step}: {length.reason}"),
        ("trainer", "val_check_interval"): Advice(
            often * case.n_critic, f"in batches; {_VALIDATIONS} times in the run"
        ),
        ("trainer", "check_val_every_n_epoch"): Advice(None, "epochs are short where pictures are few"),
        ("pictures", "every_n_steps"): Advice(often, "with each validation"),
        ("checkpoint", "every_n_steps"): Advice(saved, "what a stop may cost"),
    }
    if case.measures and case.family != "translation":
        chosen = figures(case.training)
        best = f"val/{chosen.value[0]}"
        found[("checkpoint", "best")] = Advice(best, "keeps the averaged weights that were the best by it, as RUN/best")
    return found


def callbacks(case: Case) -> list[tuple[dict[str, Any], str]]:
    """What watches the run, each with its reason."""
    found: list[tuple[dict[str, Any], str]] = []
    if case.measures and case.family != "translation":
        chosen, number = figures(case.training), num_samples(case.training)
        settings = {"figures": chosen.value, "num_samples": number.value, "test_num_samples": 2 * number.value}
        settings["block_size"] = min(1000, number.value, case.training)
        made = {"class_path": "GenerativeMetrics", "init_args": settings}
        found.append((made, f"{chosen.reason}. {number.value} samples: {number.reason}"))
    if case.warns:
        found.append(
            ({"class_path": "EarlyWarning"}, "says when the discriminator over-fits and when samples collapse")
        )
    return found
