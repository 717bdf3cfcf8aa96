"""Timing functions in alternation."""

import gc
import time
from typing import NamedTuple

import numpy as np


class Turns(NamedTuple):
    """What functions took, and what they returned, by name.

    Attributes:
        seconds: The time of each round: arrays `[rounds]`.
        processor: The same of the whole process's time on all processors.
        results: What the last call returned.
    """

    seconds: dict
    processor: dict
    results: dict


def alternate(functions, rounds, warm_up=1, turn=1):
    """Times functions that are to be compared, in turns.

    Whatever else the machine does meanwhile then meets all of them alike. The
    order rotates from round to round, so that none always finds the caches
    as another one left them. As in a program that uses what it computes,
    each result is held until the next one is there.

    Args:
        functions: By name, functions of the number of the round, each of
            which returns when its work is done.
        rounds: How often to time each function.
        warm_up: Rounds before those, which are not timed. Numbers begin with
            0 in both.
        turn: Rounds of one function before it is the next one's turn.

    Returns:
        `Turns`.
    """
    names = list(functions)
    turns = Turns(
        {name: np.empty(rounds) for name in names},
        {name: np.empty(rounds) for name in names},
        {},
    )
    for i in range(warm_up):
        for name in names:
            turns.results[name] = functions[name](i)
    collects = gc.isenabled()
    gc.disable()
    try:
        for begin in range(0, rounds, turn):
            for name in rotated(names, begin // turn):
                for i in range(begin, min(rounds, begin + turn)):
                    _time(name, functions[name], i, turns)
    finally:
        if collects:
            gc.enable()
    return turns


def rotated(names, number):
    """Returns the order of a round of turns, of which each name begins some.

    Args:
        names: A list.
        number: That of the round, from 0 on.
    """
    first = number % len(names)
    return names[first:] + names[:first]


def _time(name, function, i, turns):
    processor, wall = time.process_time(), time.perf_counter()
    turns.results[name] = function(i)
    turns.seconds[name][i] = time.perf_counter() - wall
    turns.processor[name][i] = time.process_time() - processor


def medians(seconds):
    """Returns, by name, the median of times in seconds, in microseconds."""
    return {
        name: 1e6 * float(np.median(times)) for name, times in seconds.items()
    }
