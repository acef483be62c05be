"""Signals ask a run to stop, inside and in the main thread alone."""

import os
import signal
import threading

import pytest

from vpretrain.system.signals import Interruption


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
        with Interruption() as heard:
            names.append(heard.by)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert names == [None]
