"""Lightning's training loop, where going on begins with what was still due, and epochs may differ in length."""

from __future__ import annotations

import math
from typing import Any, cast

import lightning.pytorch as pl
from lightning.fabric.utilities.data import _set_sampler_epoch, sized_len
from lightning.pytorch.loops.evaluation_loop import RestartStage as ValidationRestart
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.fit_loop import RestartStage as FitRestart
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.progress import _ProcessedTracker
from lightning.pytorch.loops.training_epoch_loop import RestartStage as EpochRestart
from lightning.pytorch.loops.utilities import _is_max_limit_reached
from lightning.pytorch.trainer.connectors.data_connector import _parse_num_batches
from lightning.pytorch.trainer.states import RunningStage


class FitLoop(_FitLoop):
    """Goes on from a checkpoint as if the run had never stopped, wherever in a step the checkpoint was written.

    Lightning goes on with the next batch. So what comes after a checkpoint in the step it belongs to is lost: the
    validation that falls on it, the end of the epoch, the end of the run; and its counters come out differently. This
    loop does first what comes after

    * the end of a batch (`LastCheckpoint`, `ModelCheckpoint(every_n_train_steps=...)`): validation, if one is due, and
      the end of the epoch, if the batch was its last;
    * a validation or the end of an epoch (other `ModelCheckpoint`s): the end of the epoch, or the next epoch;
    * the end of a run, which is prolonged: the next batch, even where Lightning had called the epoch over.

    And it asks at the beginning of each epoch how many batches there are; Lightning asks once in a run, and before it
    has told the loader where to go on.
    """

    rest_is_due = False  # whether something is left to do even where all steps are made
    ended_inside = False  # whether the run that is prolonged had ended inside an epoch

    @property
    def done(self) -> bool:
        """Whether the run is over; Lightning looks at the numbers of steps and epochs alone."""
        return not self.rest_is_due and super().done

    def load_state_dict(self, state_dict: dict[str, Any], prefix: str = "") -> None:
        """Tell apart whether the checkpoint was written inside an epoch, between epochs or at the end of a run."""
        super().load_state_dict(state_dict, prefix)
        epochs, batches = self._epochs[0], self.epoch_loop.batch_progress
        self.rest_is_due = epochs.completed < epochs.started
        self.ended_inside = not self.rest_is_due and batches.current.ready > 0 and not batches.is_last_batch
        if self.ended_inside:  # Lightning calls the epoch over where a run ends
            self._set_completed_epochs(epochs.started - 1)
        # Between epochs Lightning would not, and leave the loader's place in the checkpoint.
        self._restarting = self.epoch_loop.restarting = True
        if self._data_fetcher is not None:
            # A schedule has asked how many batches there are, and so the loader was made before this.
            self._load_combined_loader_states()
            iter(self._data_fetcher)

    def on_advance_start(self) -> None:
        """Tell loaders of the epoch before their batches are counted."""
        for loader in self._combined_loader.flattened if self._combined_loader is not None else ():
            _set_sampler_epoch(loader, self._epochs[1].processed)
        super().on_advance_start()

    def setup_data(self) -> None:
        """Make the loader where there is none, and count its batches."""
        super().setup_data()
        trainer, combined = self.trainer, self._combined_loader
        if combined is None or self._data_fetcher is None:
            return
        lengths = [math.inf if (length := sized_len(loader)) is None else length for loader in combined.flattened]
        limit = trainer.limit_train_batches
        limits = [_parse_num_batches(RunningStage.TRAINING, length, limit) for length in lengths]
        if limits == combined.limits:
            return
        combined.limits = limits
        iter(self._data_fetcher)  # which has taken over the limits of before
        self.max_batches = len(combined)
        if isinstance(trainer.val_check_interval, float) and trainer.val_check_batch is not None:
            trainer.val_check_batch = max(1, int(self.max_batches * trainer.val_check_interval))

    def reset(self) -> None:
        """Begin with what comes after the place at which the checkpoint was written."""
        super().reset()
        if self.is_resuming:
            self._take_up()

    def advance(self) -> None:
        """Run an epoch, or the rest of one."""
        super().advance()
        self.rest_is_due = False
        if self.epoch_loop.val_loop._has_run:
            self._restarting = False  # the metrics are there by which schedulers may go at the end of the epoch

    def _take_up(self) -> None:
        loop, batches, epochs = self.epoch_loop, self.epoch_loop.batch_progress, self._epochs[0]
        fetcher = cast(_DataFetcher, self._data_fetcher)
        if self.ended_inside:
            # What was due at the step had been done; it is passed over, and the step counted again on the way.
            loop._batches_that_stepped -= loop._should_check_val_fx(fetcher)
        elif loop.restarted_on_train_batch_end:
            self._set_completed_epochs(epochs.started - 1)  # after an epoch's last batch Lightning has called it over
            due = loop._should_check_val_fx(fetcher)
            was_last = batches.is_last_batch or batches.current.ready >= self.max_batches
            if not (due or was_last or _is_max_limit_reached(loop.global_step, self.max_steps)):
                return  # nothing but the next batch comes after it
            batches.increment_completed()
            loop._restart_stage = EpochRestart.RESTARTED_ON_LAST
            if due:
                loop.val_loop.restarting = False
                loop.val_loop._restart_stage = ValidationRestart.RESTARTED_MID_EVALUATION
            else:
                loop._batches_that_stepped += not loop._should_accumulate()
                fetcher.done = True  # no further batch is asked for
        elif epochs.processed == epochs.started:
            self._set_completed_epochs(epochs.started)
            self._restart_stage = FitRestart.NONE
            loop.restarting = False  # the next epoch begins with its first batch
            self.rest_is_due = False

    @property
    def _epochs(self) -> tuple[_ProcessedTracker, _ProcessedTracker]:
        """Their numbers, of all runs together and of this one."""
        progress = self.epoch_progress
        return cast(_ProcessedTracker, progress.total), cast(_ProcessedTracker, progress.current)

    def _set_completed_epochs(self, number: int) -> None:
        total, current = self._epochs
        current.processed = current.completed = number - (total.started - current.started)
        total.processed = total.completed = number


def use_own_loop(trainer: pl.Trainer) -> None:
    """Let a trainer that is about to train do so by `FitLoop`."""
    if type(trainer.fit_loop) is _FitLoop:
        trainer.fit_loop.__class__ = FitLoop
