from __future__ import annotations

from threading import Thread

import pytest

from vpretrain.system.timing import Clock, Pace, clocked, current_clock, section, timed


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_only_the_block_is_charged_also_when_it_fails() -> None:
    now, charged = Hand(), []
    with timed(charged.append, now):
        now.time += 2.0
    now.time += 50.0
    with pytest.raises(KeyError), timed(charged.append, now):
        now.time += 1.5
        raise KeyError
    assert charged == [2.0, 1.5]


def test_a_section_within_another_is_not_in_the_other_s() -> None:
    now = Hand()
    clock = Clock(now=now)
    for _ in range(2):
        with clock("learner"):
            now.time += 1.0
            with clock("loss"):
                now.time += 3.0
            now.time += 0.5
        now.time += 9.0
    assert clock.seconds == {"learner": 3.0, "loss": 6.0}


def test_sections_count_where_somebody_asks_and_in_this_thread_alone() -> None:
    now = Hand()
    clock = Clock(now=now)

    def elsewhere() -> None:
        assert current_clock() is None
        with section("data"):
            pass

    with section("loss"):
        now.time += 1.0
    with clocked(clock):
        with section("loss"):
            now.time += 2.0
        with clocked(None), section("loss"):
            now.time += 4.0
        thread = Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert clock.seconds == {"loss": 2.0}
    assert current_clock() is None


def test_a_word_is_due_at_once_and_then_every_so_often() -> None:
    now = Hand()
    pace = Pace(30.0, now)
    assert pace.due() and not pace.due()
    now.time += 29.0
    assert not pace.due()
    now.time += 2.0
    assert pace.due() and not pace.due()
