"""Metrics: torchmetrics modules, and what they are compared with."""
