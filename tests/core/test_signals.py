"""Ctrl-C and SIGTERM: noted, answered, and acted on where a loop asks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from polopt.core import signals

BOTH = (signal.SIGINT, signal.SIGTERM)


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.001)  # the handler runs between two instructions


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_the_first_is_noted_and_answered_and_the_second_raises(number, name, capsys, monkeypatch):
    monkeypatch.setattr(signals, "ECHO", 0.0)
    before = [signal.getsignal(each) for each in BOTH]
    with signals.watched() as watch:
        assert not watch.heard
        send(number)
        assert watch.heard
        said = capsys.readouterr().err.splitlines()
        assert said == [f"polopt: {name}: {signals.SAID}"]
        signals.check()  # an update goes on
        with pytest.raises(KeyboardInterrupt):
            send(number)
    assert [signal.getsignal(each) for each in BOTH] == before


def test_sigterm_that_comes_with_a_signal_is_the_same(capsys):
    """`timeout` sends it to a process and to its group."""
    with signals.watched() as watch:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert watch.heard
        with pytest.raises(KeyboardInterrupt):  # nobody presses Ctrl-C by chance
            send(signal.SIGINT)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_sigterm_that_comes_again_when_the_run_has_just_ended_is_the_same(capsys, monkeypatch):
    with signals.raising():
        with signals.watched() as watch:
            send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert watch.heard
        monkeypatch.setattr(signals, "ECHO", 0.0)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGTERM)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_worker_leaves_both_to_its_parent_and_what_it_starts_does_not():
    before = [signal.getsignal(each) for each in BOTH]
    try:
        signals.leave_to_parent()
        for number in BOTH:
            send(number)
        code = "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "True\n"
    finally:
        for number, handler in zip(BOTH, before):
            signal.signal(number, handler)


def test_it_is_acted_on_where_nothing_is_lost(capsys):
    with signals.watched():
        with signals.breakable():
            signals.check()
            send(signal.SIGTERM)
            with pytest.raises(signals.Stopped):
                signals.check()
        signals.check()
        with pytest.raises(signals.Stopped), signals.breakable():  # one that came before
            pytest.fail("begun")
    signals.check()
    with signals.breakable():  # nothing is watched
        signals.check()


def test_what_is_breakable_within_what_is_breakable_ends_with_the_outer_one(capsys):
    with signals.watched(), signals.breakable():
        with signals.breakable():
            pass
        send(signal.SIGTERM)
        with pytest.raises(signals.Stopped):
            signals.check()


def test_an_update_that_takes_too_long_is_broken_off(monkeypatch):
    with signals.watched():
        send(signal.SIGINT)
        signals.check()
        monkeypatch.setattr(signals, "PATIENCE", 0.0)
        with pytest.raises(signals.Stopped):
            signals.check()


def test_a_watch_inside_a_watch_hears_for_itself():
    with signals.watched() as outer:
        with signals.watched() as inner:
            send(signal.SIGINT)
        assert inner.heard
        assert not outer.heard
        send(signal.SIGINT)
        assert outer.heard
        with pytest.raises(signals.Stopped), signals.breakable():
            pytest.fail("the outer one is asked again")


def test_other_threads_are_not_stopped(monkeypatch):
    monkeypatch.setattr(signals, "PATIENCE", 0.0)
    heard, raised = [], []

    def work() -> None:
        with signals.watched() as watch:  # Python gives signals to the main thread only
            heard.append(watch.heard)
        try:
            with signals.breakable():
                signals.check()
                heard.append(watch_of_main.breakable)
        except BaseException as error:
            raised.append(error)

    with signals.watched() as watch_of_main:
        send(signal.SIGTERM)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert (heard, raised) == ([False, False], [])


def test_sigterm_raises_as_ctrl_c_does():
    with signals.watched():
        send(signal.SIGTERM)  # of what ran before
    with pytest.raises(KeyboardInterrupt), signals.raising():
        send(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    mine = lambda number, frame: None  # noqa: E731
    signal.signal(signal.SIGTERM, mine)
    try:
        with signals.raising():  # whoever has a handler keeps it
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
