"""Convolutional networks that are cheap on frames that resemble each other."""

from reuse_tf.layers import IncrementalConv2D, IncrementalDense, Stats, convert
from reuse_tf.ops import changed_positions, sparse_gather, sparse_scatter

__all__ = [
    "IncrementalConv2D",
    "IncrementalDense",
    "Stats",
    "changed_positions",
    "convert",
    "sparse_gather",
    "sparse_scatter",
]
