"""Callbacks: they know Lightning and the contract, never a model."""

from lightning_gen.callbacks.checkpoint import LastCheckpoint
from lightning_gen.callbacks.color_mapping import ColorMappingBaseline
from lightning_gen.callbacks.ema import EMA, averaged_weights
from lightning_gen.callbacks.pictures import TranslationGrid, log_picture
from lightning_gen.callbacks.progress import ProgressBar
from lightning_gen.callbacks.report import Report, write_report
from lightning_gen.callbacks.run_folder import run_folder, run_folder_of_checkpoint
from lightning_gen.callbacks.run_logger import RunLogger

__all__ = [
    "EMA",
    "ColorMappingBaseline",
    "LastCheckpoint",
    "ProgressBar",
    "Report",
    "RunLogger",
    "TranslationGrid",
    "averaged_weights",
    "log_picture",
    "run_folder",
    "run_folder_of_checkpoint",
    "write_report",
]
