"""Convolutional networks that are cheap on frames that resemble each other."""

from reuse_tf.layers import IncrementalConv2D, IncrementalDense, Stats, convert
from reuse_tf.ops import changed_positions, sparse_gather, sparse_scatter
from reuse_tf.runner import LayerStats, Runner, RunnerStats, Structure

__all__ = [
    "IncrementalConv2D",
    "IncrementalDense",
    "LayerStats",
    "Runner",
    "RunnerStats",
    "Stats",
    "Structure",
    "changed_positions",
    "convert",
    "sparse_gather",
    "sparse_scatter",
]
