"""Atari games as streams of small frames."""

from reuse_tf.atari.games import games, short_name
from reuse_tf.atari.resumable import Episode, ResumableGames, Step
from reuse_tf.atari.single import make, make_only
from reuse_tf.atari.vector import Screen, make_vector

__all__ = [
    "Episode",
    "ResumableGames",
    "Screen",
    "Step",
    "games",
    "make",
    "make_only",
    "make_vector",
    "short_name",
]
