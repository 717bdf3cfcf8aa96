"""The process that a program plays, trains or measures in."""

import contextlib
import gc
import os
import signal
import sys
import threading

from absl import flags

from reuse_tf import files

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


def run(name, main):
    """Runs a program, and ends it in one line if something goes wrong.

    Args:
        name: The program, which the line begins with.
        main: A function without arguments.
    """
    if sys.stdout is not None:
        # The units of a table are no reason to fail.
        with contextlib.suppress(AttributeError):
            sys.stdout.reconfigure(errors="replace")
    try:
        try:
            main()
        finally:
            _write_out()
    except KeyboardInterrupt:
        text = "interrupted"
    except flags.Error as error:
        text = " ".join(str(error).split())
    except (ImportError, OSError, ValueError) as error:
        text = files.explain(error)
        # Errors of files name them; that of a print, which may not be
        # buffered, does not.
        if isinstance(error, OSError) and error.errno and not error.filename:
            text = f"cannot write to the standard output: {text}"
    else:
        return
    sys.exit(f"{name}: {text}")


def _write_out():
    """Writes what was printed; raises an `OSError` if that is impossible."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        # Python tries again at its end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        raise
