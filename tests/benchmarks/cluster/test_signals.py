"""Teardown is done when told to end, and not cut short."""

import signal

import pytest

from benchmarks.cluster.signals import leave_on_signals, undisturbed


def test_sigterm_unwinds_and_the_old_handler_comes_back() -> None:
    with pytest.raises(SystemExit) as caught, leave_on_signals(), leave_on_signals():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_that_is_there_stays() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with leave_on_signals():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


def test_signals_wait_for_the_end_of_a_teardown() -> None:
    done: list[str] = []

    def tear_down() -> None:
        with undisturbed():
            signal.raise_signal(signal.SIGINT)
            done.append("after the signal")

    with pytest.raises(KeyboardInterrupt):
        tear_down()
    assert done == ["after the signal"]
