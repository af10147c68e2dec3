"""Callbacks: they know Lightning and the contract, never a model."""

from lightning_gen.callbacks.caption_metrics import CaptionMetrics
from lightning_gen.callbacks.checkpoint import LastCheckpoint
from lightning_gen.callbacks.color_mapping import ColorMappingBaseline
from lightning_gen.callbacks.early_warning import EarlyWarning
from lightning_gen.callbacks.ema import EMA, averaged_weights
from lightning_gen.callbacks.generative_metrics import GenerativeMetrics
from lightning_gen.callbacks.interruption import Interruption
from lightning_gen.callbacks.pictures import Pictures, PointCloud, SampleGrid, TranslationGrid, log_picture
from lightning_gen.callbacks.progress import ProgressBar
from lightning_gen.callbacks.progressive_growing import ProgressiveGrowing
from lightning_gen.callbacks.report import Report
from lightning_gen.callbacks.spectral_norm import SpectralNormPowerIteration, power_iteration_callbacks
from lightning_gen.callbacks.summary import NetworkSummary
from lightning_gen.callbacks.throughput import TrainingMonitor
from lightning_gen.callbacks.toy import PointMetrics
from lightning_gen.data.grids import picture_grid, square_grid
from lightning_gen.runs.folder import find_checkpoint, find_checkpoints, run_folder
from lightning_gen.runs.layout import run_folder_of_checkpoint
from lightning_gen.runs.logger import RunLogger
from lightning_gen.runs.page import write_report

__all__ = [
    "EMA",
    "CaptionMetrics",
    "ColorMappingBaseline",
    "EarlyWarning",
    "GenerativeMetrics",
    "Interruption",
    "LastCheckpoint",
    "NetworkSummary",
    "Pictures",
    "PointCloud",
    "PointMetrics",
    "ProgressBar",
    "ProgressiveGrowing",
    "Report",
    "RunLogger",
    "SampleGrid",
    "SpectralNormPowerIteration",
    "TrainingMonitor",
    "TranslationGrid",
    "averaged_weights",
    "find_checkpoint",
    "find_checkpoints",
    "log_picture",
    "picture_grid",
    "power_iteration_callbacks",
    "run_folder",
    "run_folder_of_checkpoint",
    "square_grid",
    "write_report",
]
