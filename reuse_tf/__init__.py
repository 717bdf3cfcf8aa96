"""Convolutional networks that are cheap on frames that resemble each other."""

import importlib.metadata

from reuse_tf.callbacks import StatsLogger
from reuse_tf.convert import convert
from reuse_tf.coverage import Coverage, CoverageTable, coverage
from reuse_tf.layers import IncrementalConv2D, IncrementalDense, Stats
from reuse_tf.ops import changed_positions, sparse_gather, sparse_scatter
from reuse_tf.runner import LayerStats, Runner, RunnerStats
from reuse_tf.structure import Structure
from reuse_tf.thresholds import (
    FoundThresholds,
    find_thresholds,
    relative_error,
)

try:
    __version__ = importlib.metadata.version("reuse-tf")
except importlib.metadata.PackageNotFoundError:  # As Bazel builds it.
    __version__ = "0+unknown"

__all__ = [
    "Coverage",
    "CoverageTable",
    "FoundThresholds",
    "IncrementalConv2D",
    "IncrementalDense",
    "LayerStats",
    "Runner",
    "RunnerStats",
    "Stats",
    "StatsLogger",
    "Structure",
    "changed_positions",
    "convert",
    "coverage",
    "find_thresholds",
    "relative_error",
    "sparse_gather",
    "sparse_scatter",
]
