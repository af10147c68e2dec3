"""Pictures in tar shards, in the layout of WebDataset: read by their places in local ones, or as a stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import Dataset

from lightning_gen.data.base import Split
from lightning_gen.data.images import ImageError
from lightning_gen.data.streams import ShardStream, StreamLoader, local_copy
from lightning_gen.data.tables import TableCollection
from lightning_gen.data.tars import Keys, ShardTable, expand, in_words, indices_of, is_remote, split_name

_NAMED = 3  # shards that a message names


class WebDatasetImages(TableCollection):
    """Tar shards in the layout of WebDataset, with class labels or captions if wanted.

    A shard is a tar of files `KEY.ENDING`; those of one key belong together: a picture (`.jpg`, `.png`, `.webp` ...)
    and perhaps its class (`.cls`, a number or a name), its captions (`.txt`, one a line, in UTF-8) or fields of a
    `.json`. A key ends at the first dot of a file's name. What is no picture's is passed over.

    Shards on disks are read by the places of their members, in any order. So all that is promised of folders holds: a
    picture is a function of seed, epoch and place, every one is seen once over all ranks, and a run goes on within an
    epoch. Where the members are is found out once, and kept in the cache folder (`$LIGHTNING_GEN_CACHE`,
    `~/.cache/lightning-gen`) for as long as the shard's size and time of last change stay what they were.

    Without shards of their own to validate and to test with, all pictures are split by a hash of their names in the
    shards: the same split on every machine and with every seed, and the one that `ImageFolder` makes of a folder that
    the shards were packed from. Classes and items are as `HuggingFaceImages` and `Collection` say.

    A fingerprint counts shards by size and time of last change. What goes unnoticed is a change that leaves the size
    and puts the time back, unless it is in one of 64 pictures.

    With `stream`, or where shards have an address (`https://...`), those to train on are read from beginning to end, by
    the library `webdataset` (`pip install 'lightning-gen[shards]'`), compressed ones too. What is promised then:

    * An epoch is as many pictures as `num_pictures` says, whatever the shards hold. Each worker of each process reads
      shards of its own, drawn by seed and epoch, and begins with them again if they are too few. So with shards of one
      size, as many for each worker, and their true number, every picture is seen once in an epoch, and else nearly.
    * Pictures come in an order that is random among `buffer` pictures of a shard and a function of seed, epoch, and the
      numbers of processes and workers; their crops, flips and captions are one of seed, epoch and their place. Shards
      are not mixed with each other, so pictures should be packed in random order.
    * A run goes on within an epoch exactly; each worker reads the shard again that it was at. With other numbers of
      processes or workers, it begins with the epoch's shards again.
    * What needs pictures by number (figures of the training split, `Codes`, `cache`, `overfit_batches`, `growing`) is
      refused.

    Validation and test pictures are numbered always, so a stream needs shards of their own for one of them. Those that
    have an address are copied to the cache folder.

    Args:
        urls: Of the shards to train on: a path, a pattern (`shards/*.tar`, `shards/{000..012}.tar`), or several.
        val_urls: Likewise, to validate with.
        test_urls: Likewise, to test with. One of both may serve for the other.
        image_key: Ending of the pictures, without its first dot, or several (`jpg;png`); may be left out where each key
            has one picture.
        label_key: Of the classes, if they are wanted: `cls`, or `json.FIELD`.
        caption_key: Of the captions, if they are wanted: `txt`, or `json.FIELD`, a string or a list of strings.
        classes: Number or names of the classes; needed for a stream with labels, and else found.
        stream: Whether shards to train on are read as a stream.
        num_pictures: Of an epoch of a stream, over all processes.
        buffer: Pictures among which the order of a stream is random; their files are held in memory.
        val_fraction: Share of the pictures split off for validation, where no shards settle it.
        test_fraction: Share of the pictures split off for testing, where no shards settle it.
        **reading: As `Collection`, `PictureDataModule` and `ImageDataModule`. Shards that end early or hold a name
            twice, and keys without a label or a caption that is asked for, count as broken. With `skip_broken`, what is
            whole and comes first is used.

    Raises:
        ModuleNotFoundError: If `webdataset` is needed, for a stream or for a pattern with braces, and not installed.
        FileNotFoundError: If a shard is missing.
        ValueError: If an argument is out of range, a label is no class, or there are too few pictures to split.
        ImageError: As `PictureDataModule`.
    """

    caption_hint = "Name the ending: caption_key (--data.caption_key txt)."

    def __init__(
        self,
        urls: str | Path | Sequence[str | Path],
        *,
        val_urls: str | Path | Sequence[str | Path] | None = None,
        test_urls: str | Path | Sequence[str | Path] | None = None,
        image_key: str | None = None,
        label_key: str | None = None,
        caption_key: str | None = None,
        classes: int | list[str] | None = None,
        stream: bool = False,
        num_pictures: int | None = None,
        buffer: int = 1000,
        **reading: Any,
    ) -> None:
        super().__init__(**reading)
        self.keys = Keys(image_key, label_key, caption_key)
        self.classes, self.num_pictures, self.buffer = classes, num_pictures, buffer
        wanted = {"train": urls, "val": val_urls, "test": test_urls}
        self.urls = {split: expand(each) for split, each in wanted.items() if each is not None}
        self.stream = stream or any(map(is_remote, self.urls["train"]))
        where = in_words(self.urls["train"])
        if self.stream:
            self._check_stream(where)
        numbered = {split: shards for split, shards in self.urls.items() if split != "train" or not self.stream}
        label = f"the labels in {label_key}" if label_key else ""
        tables = {split: self._table(shards) for split, shards in numbered.items()}
        self.take(tables, where=where, label=label, classes=classes, captions=caption_key is not None)

    def dataset(self, split: Split) -> Dataset[Any]:
        """The pictures of a split; to train on, augmented.

        Raises:
            ValueError: If they are a stream.
        """
        if self.stream and split == "train":
            raise ValueError(
                f"{in_words(self.urls['train'])}: the training pictures are a stream and have no numbers, which is "
                "asked for. Take another split, or shards on disks without stream."
            )
        return super().dataset(split)

    def captions(self) -> Iterator[str]:
        """All captions of training pictures, from which a tokenizer may learn.

        Raises:
            ValueError: If none were asked for, or the pictures are a stream.
        """
        if self.stream:
            raise ValueError(
                f"{in_words(self.urls['train'])}: the captions of a stream are not known beforehand. Give the model a "
                "tokenizer that has learned its vocabulary, or ByteTokenizer, which needs none."
            )
        return super().captions()

    def train_dataloader(self) -> Any:
        """Shuffled loader over the training examples; of a stream, `num_pictures` an epoch.

        Raises:
            ValueError: If a stream has too few pictures or shards, or is to be overfitted.
        """
        if not self.stream:
            return super().train_dataloader()
        world, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        if self.trainer is not None and self.trainer.overfit_batches > 0:  # type: ignore[attr-defined]
            raise ValueError("overfit_batches was asked for, of a stream, whose pictures have no numbers.")
        urls = self.urls["train"]
        if len(urls) < world:
            raise ValueError(
                f"{in_words(urls)}: {len(urls)} shards are too few to read them as a stream in {world} processes. Use "
                "fewer, or shards on disks without stream."
            )
        batches = (self.num_pictures or 0) // (world * self.batch_size)
        if not batches:
            raise ValueError(
                f"num_pictures={self.num_pictures} do not fill one batch of {self.batch_size} in {world} process(es)."
            )
        transform, prepare, is_random = self.reading("train", self.keys.caption is not None)
        stream = ShardStream(
            urls=urls,
            keys=self.keys,
            prepare=prepare,
            transform=transform,
            seed=self.seed,
            batch_size=self.batch_size,
            classes=self.classes,
            is_random=is_random,
            buffer=self.buffer,
            skip_broken=self.skip_broken,
            rank=rank,
            world=world,
        )
        return StreamLoader(stream, batches, min(self.workers(world), len(urls) // world))

    def _check_stream(self, where: str) -> None:
        """Raise a `ValueError` if something is missing that a stream cannot tell, or asked for that it cannot give."""
        if self.num_pictures is None or self.num_pictures < 1:
            raise ValueError(
                f"{where}: how many pictures a stream has is not known beforehand. Say how many make an epoch: "
                f"num_pictures (at least 1), got {self.num_pictures}."
            )
        if not self.urls.keys() & {"val", "test"}:
            raise ValueError(f"{where}: a stream cannot be split. Name shards to evaluate with: val_urls or test_urls.")
        if self.keys.label and self.classes is None:
            raise ValueError(f"{where}: which classes a stream has is not known beforehand. Say it: classes.")
        if refused := [name for name in ("growing", "cache") if getattr(self, name)]:
            raise ValueError(
                f"{where}: {refused[0]} needs numbered pictures, which a stream has not. Leave one out, or read "
                "shards on disks without stream."
            )
        if self.buffer < 1:
            raise ValueError(f"buffer must be at least 1, got {self.buffer}.")

    def _table(self, shards: Sequence[str]) -> ShardTable:
        """The pictures in shards, whose faults are told."""
        paths = [local_copy(shard) if is_remote(shard) else Path(shard) for shard in shards]
        table = ShardTable(paths, indices_of(paths), self.keys)
        if faults := {path: index.fault for path, index in zip(paths, table.indices, strict=True) if index.fault}:
            found = "; ".join(f"{path} {fault}" for path, fault in list(faults.items())[:_NAMED])
            words = (
                f"{len(faults)} of {len(paths)} shards are broken: {found}{'; ...' if len(faults) > _NAMED else ''}."
            )
            if not self.skip_broken:
                raise ImageError(f"{words} Write them anew, or use what is whole of them with skip_broken: true.")
            self.left_out.append(f"{words} What is whole of them and comes first is used.")
            rank_zero_warn(self.left_out[-1])
        if not len(table):
            held = Counter(
                key for index in table.indices for name in index.names for _, key in [split_name(name)] if key
            )
            there = ", ".join(f"{number} .{key}" for key, number in held.most_common(5))
            raise ValueError(
                f"{in_words(shards)}: no key has a picture{f' .{self.keys.image}' if self.keys.image else ''}. "
                f"There are: {there or 'no files KEY.ENDING'}."
            )
        return table
