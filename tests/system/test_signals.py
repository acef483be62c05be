"""Signals ask a run to stop, inside and in the main thread alone; a limit ends what takes longer."""

import contextlib
import os
import signal
import threading
import time

import pytest

from vpretrain.system.signals import Interruption, TimeUp, time_limit


def test_signals_are_heard_only_inside_and_never_outside_of_the_main_thread():
    before = signal.getsignal(signal.SIGTERM)
    with Interruption() as asked:
        os.kill(os.getpid(), signal.SIGUSR1)
        assert asked.by == "SIGUSR1"
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
    names = []

    def elsewhere():
        with Interruption() as stop:
            names.append(stop.by)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert names == [None]


def test_a_time_limit_ends_what_catches_everything_and_leaves_other_timers_alone():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: rung.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.4)
        began = time.monotonic()
        with pytest.raises(TimeUp, match=r"longer than 0\.1 seconds"), time_limit(0.1):
            while True:
                with contextlib.suppress(Exception):
                    time.sleep(5)
        assert time.monotonic() - began < 0.4 and not rung
        time.sleep(1)
        assert rung == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, before)
