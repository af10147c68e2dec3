"""Whether pictures show what was said: the share of attributes that a reader finds as they were asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gen.data.batches import as_floats
from lightning_gen.data.scene_captions import ATTRIBUTES
from lightning_gen.extractors.scene_reader import scene_reader
from lightning_gen.metrics.base import FullPrecision


class AttributeAccuracy(FullPrecision):
    """The share of attributes that pictures show as asked for, over all pictures of all ranks.

    Beside it stands what is reached without listening: by showing any value, each as likely as another (`chance`); by
    always showing what is asked for most often (`marginal`); and by these very pictures, dealt to the requests at
    random (`shuffled`). A reader makes mistakes, too: what it finds in true pictures is the most that can be reached.

    Args:
        reader: Gives int64 `[N, A]`, the value of each attribute, of float pictures `[N, C, H, W]` in `[-1, 1]`; None
            takes the one of the built-in scenes, of the size of the first pictures.
        attributes: Those that it reads, by name, and the values of each; None for those of the built-in scenes.
        domain: Of the built-in scenes.
        **kwargs: Those of every `torchmetrics.Metric`, which refuses others.

    Raises:
        ValueError: If there is a reader without attributes, or the reverse.
    """

    higher_is_better = True
    counts: Tensor
    whole: Tensor

    def __init__(
        self,
        reader: nn.Module | None = None,
        attributes: Mapping[str, Sequence[str]] | None = None,
        *,
        domain: str = "day",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if (reader is None) != (attributes is None):
            raise ValueError("AttributeAccuracy needs both, a reader and the attributes that it reads, or neither.")
        self.attributes = {name: tuple(values) for name, values in (attributes or ATTRIBUTES).items()}
        self.domain = domain
        self._reader = (reader,)  # no part: its weights belong in no checkpoint of a model
        most = max(len(values) for values in self.attributes.values())
        # Asked for by found, for each attribute, of pictures of which [all, held-out] combinations.
        shape = (2, len(self.attributes), most, most)
        self.add_state("counts", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("whole", torch.zeros(2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: Tensor, asked: Tensor, held_out: Tensor | None = None) -> None:
        """Read pictures.

        Args:
            images: `[N, C, H, W]`, uint8 or floats in `[-1, 1]`.
            asked: int64 `[N, A]`, which value of each attribute was asked for, as `CaptionedScenes` has them under
                "attributes".
            held_out: Bool `[N]`, whether this combination was never seen in training.

        Raises:
            ValueError: If shapes do not fit, or a value is out of range.
        """
        widths = torch.tensor([len(values) for values in self.attributes.values()])
        asked = asked.cpu()
        if asked.shape != (len(images), len(widths)) or asked.dtype != torch.int64:
            raise ValueError(
                f"asked must be int64 [{len(images)}, {len(widths)}] for these pictures and attributes, got "
                f"{asked.dtype} {list(asked.shape)}."
            )
        if len(asked) and not (asked.min() >= 0 and (asked < widths).all()):
            raise ValueError("A value that was asked for is out of range; attributes have these: " + self._values())
        reader = self._reader_for(images)
        found = reader(as_floats(images, "AttributeAccuracy").float()).cpu()
        chosen = torch.ones(len(images), 2, dtype=torch.bool)
        chosen[:, 1] = False if held_out is None else held_out.cpu()
        counts, whole = torch.zeros_like(self.counts, device="cpu"), []
        for which, rows in enumerate(chosen.unbind(1)):
            for i, table in enumerate(counts[which]):
                places = asked[rows, i] * len(table) + found[rows, i]
                table += torch.bincount(places, minlength=table.numel()).view_as(table)
            whole.append((asked[rows] == found[rows]).all(1).sum())
        self.counts = self.counts + counts.to(self.counts.device)
        self.whole = self.whole + torch.stack(whole).to(self.whole.device)

    def compute(self) -> dict[str, Tensor]:
        """The figures, each float64 in [0, 1].

        Returns:
            `overall`, the share of attributes that are right; the same by the name of each attribute; `pictures`, the
            share of pictures in which all are; where there were held-out combinations, `held_out` and
            `held_out_pictures`, the same of these alone; and `chance`, `marginal` and `shuffled`.

        Raises:
            ValueError: If there were no pictures on any rank.
        """
        counts = self.counts.double()
        number, held_out = counts[:, 0].sum((1, 2))
        if number == 0:
            raise ValueError("AttributeAccuracy has seen no pictures on any rank; update it before compute.")
        right = counts[0].diagonal(dim1=1, dim2=2).sum(1) / number
        asked, found = counts[0].sum(2) / number, counts[0].sum(1) / number
        widths = torch.tensor([len(values) for values in self.attributes.values()], device=counts.device)
        figures = {
            "overall": right.mean(),
            **dict(zip(self.attributes, right, strict=True)),
            "pictures": self.whole[0].double() / number,
            "chance": (1 / widths.double()).mean(),
            "marginal": asked.amax(1).mean(),
            "shuffled": (asked * found).sum(1).mean(),
        }
        if held_out:
            figures["held_out"] = (counts[1].diagonal(dim1=1, dim2=2).sum(1) / held_out).mean()
            figures["held_out_pictures"] = self.whole[1].double() / held_out
        return figures

    def _reader_for(self, images: Tensor) -> nn.Module:
        (reader,) = self._reader
        if reader is None:
            reader = scene_reader((images.shape[2], images.shape[3]), self.domain)
        self._reader = (reader.to(images.device),)
        return self._reader[0]

    def _values(self) -> str:
        return "; ".join(f"{name}: {', '.join(values)}" for name, values in self.attributes.items())
