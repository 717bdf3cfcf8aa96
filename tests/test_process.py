"""What signals ask for."""

import signal
import sys
import threading

import children
import pytest

from reuse_tf.process import Stop

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def _default_signals():
    """Also where the tests run in the background, under nohup."""
    old = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in SIGNALS[1:]:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in old.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_and_does_not_interrupt(number):
    before = signal.getsignal(number)
    with Stop() as stop:
        assert not stop.requested
        for _ in range(3):
            signal.raise_signal(number)
            assert stop.requested
    assert signal.getsignal(number) is before


def test_a_context_within_another_asks_both():
    with Stop() as outer:
        with Stop() as inner:
            signal.raise_signal(signal.SIGTERM)
        assert inner.requested and outer.requested
        with Stop() as second:
            assert not second.requested
    with Stop() as outer:
        with Stop() as inner:
            pass
        signal.raise_signal(signal.SIGINT)
        assert outer.requested and not inner.requested
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_what_others_have_set_is_left_alone():
    seen = []
    signal.signal(signal.SIGTERM, lambda *_: seen.append("theirs"))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Stop() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert seen == ["theirs"]
    assert not stop.requested


def test_other_threads_have_no_signals():
    stops = []

    def work():
        with Stop() as stop:
            stops.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert len(stops) == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_processes_of_the_tests_start_with_default_signals():
    """Also where the tests run in the background, under nohup."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    program = """
import signal
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
"""
    result = children.run(sys.executable, "-c", program)
    assert result.returncode == 0, result.stderr
    for number in SIGNALS:
        assert signal.getsignal(number) is signal.SIG_IGN
