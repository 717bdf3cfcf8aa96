"""Timing functions in alternation."""

import gc
import time

import numpy as np


def alternate(functions, rounds, warm_up=1):
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

    Returns:
        A tuple `(seconds, results)`: by name, the `rounds` times in seconds,
        and what the last call returned.
    """
    names = list(functions)
    results = {}
    for i in range(warm_up):
        for name in names:
            results[name] = functions[name](i)
    seconds = {name: np.empty(rounds) for name in names}
    collects = gc.isenabled()
    gc.disable()
    try:
        for i in range(rounds):
            first = i % len(names)
            for name in names[first:] + names[:first]:
                function = functions[name]
                begin = time.perf_counter()
                results[name] = function(i)
                seconds[name][i] = time.perf_counter() - begin
    finally:
        if collects:
            gc.enable()
    return seconds, results


def medians(seconds):
    """Returns, by name, the median of times in seconds, in microseconds."""
    return {
        name: 1e6 * float(np.median(times)) for name, times in seconds.items()
    }
