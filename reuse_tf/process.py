"""The process that a program plays, trains or measures in."""

import gc
import signal
import threading

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def settle():
    """Readies the process for its main job, once all is imported.

    TensorFlow leaves a third of a million Python objects, which live as long
    as the process: they are taken out of the garbage collector's sight, which
    would visit them for 0.2 seconds at a time.
    """
    gc.collect()
    gc.freeze()


class Stop:
    """Lets Ctrl-C, SIGTERM and SIGHUP ask for an end, as a context.

    Within it they interrupt nothing, however often they come: whoever works
    looks at `requested` between two steps. One context may stand within
    another, and asks the outer one too. Signals that are ignored, or have a
    handler of somebody else, are left alone, as are all of them outside the
    main thread.

    Attributes:
        requested: Whether one of the signals has come.
    """

    def __init__(self):
        self.requested = False
        self._replaced = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if handler in (
                    signal.SIG_DFL,
                    signal.default_int_handler,
                ) or _is_ours(handler):
                    self._replaced[number] = handler
                    signal.signal(number, self._ask)
        return self

    def __exit__(self, *_):
        for number, handler in self._replaced.items():
            signal.signal(number, handler)
        self._replaced.clear()

    def _ask(self, number, frame):
        self.requested = True
        outer = self._replaced.get(number)
        if _is_ours(outer):
            outer(number, frame)


def _is_ours(handler):
    return isinstance(getattr(handler, "__self__", None), Stop)
