"""Metrics: torchmetrics modules, and what they are compared with."""

from lightning_gen.metrics.toy import ModeCoverage, ToyMetrics, mode_coverage, wasserstein_1

__all__ = ["ModeCoverage", "ToyMetrics", "mode_coverage", "wasserstein_1"]
