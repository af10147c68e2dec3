"""A run's folder and what is kept in it."""

from lightning_gen.runs.logger import RunLogger

__all__ = ["RunLogger"]
