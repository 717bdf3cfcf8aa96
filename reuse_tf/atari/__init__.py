"""Atari games as streams of small one-channel frames."""

from reuse_tf.atari.games import games, make, short_name
from reuse_tf.atari.vector import make_vector

__all__ = ["games", "make", "make_vector", "short_name"]
