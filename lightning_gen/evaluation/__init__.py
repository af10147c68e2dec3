"""A figure and all that it depends on: protocol, reference, engine, sources, entries."""

from lightning_gen.evaluation.protocol import EvaluationProtocol
from lightning_gen.evaluation.reference import Reference
from lightning_gen.evaluation.statistics import ReferenceStatistics, load_statistics

__all__ = ["EvaluationProtocol", "Reference", "ReferenceStatistics", "load_statistics"]
