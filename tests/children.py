"""Processes and threads that tests start: with a bound, and known signals."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time

# Seconds that suffice on a slow machine with much else to do.
LONG = 240


@contextlib.contextmanager
def default_signals():
    """The context in which to start a process that is to have default signals.

    Under nohup, or in a script's background, some are ignored from the start,
    and a process that is started inherits that. What has a handler, whatever
    it does, has none in the new process.
    """
    ignored = [
        number
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
        if signal.getsignal(number) is signal.SIG_IGN
    ]
    for number in ignored:
        signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)


def environment(**changes):
    """Ours, without what would make a program verbose, and with changes."""
    kept = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    return {**kept, **changes}


def run(*command, **arguments):
    """Runs a command to its end; returns its `subprocess.CompletedProcess`."""
    arguments = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "encoding": "utf-8",
        "timeout": LONG,
        "env": environment(),
        **arguments,
    }
    with default_signals():
        return subprocess.run(
            [str(part) for part in command], check=False, **arguments
        )


@contextlib.contextmanager
def started(*command, **arguments):
    """Starts a command, and kills it at the end if it is still there."""
    with default_signals():
        process = subprocess.Popen(
            [str(part) for part in command],
            **{"env": environment(), **arguments},
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(LONG)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def wait_until(condition, process):
    """Waits until a condition holds, or a process has ended."""
    end = time.monotonic() + LONG
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "It takes too long."
        time.sleep(0.02)


def read(descriptor):
    """Reads what a descriptor has next; nothing at its end."""
    ready, _, _ = select.select([descriptor], [], [], LONG)
    assert ready, "It takes too long."
    with contextlib.suppress(OSError):  # The end of a terminal's output.
        return os.read(descriptor, 4096)
    return b""


def in_threads(call, *cases):
    """Calls a function in a thread for each case, all at once.

    Python changes between them as often as it can, so that they meet wherever
    they may. Raises what one of them raised.
    """
    errors = []
    start = threading.Barrier(len(cases))

    def run(case):
        try:
            start.wait(LONG)
            call(*case)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=[case], daemon=True) for case in cases
    ]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
            assert not thread.is_alive(), "It takes too long."
    finally:
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]
