"""Long phases are named and show how far they are; short ones are silent."""

import pytest

from vpretrain.system import phases


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass with every item."""
    now = [0.0]

    def wait(seconds):
        now[0] += seconds

    monkeypatch.setattr(phases.time, "monotonic", lambda: now[0])
    return wait


def test_a_short_phase_is_silent(clock, capsys):
    for _ in phases.phase("reading pictures", range(19), 19):
        clock(0.1)
    assert capsys.readouterr().err == ""


def test_a_long_phase_is_named_after_two_seconds_then_every_ten(clock, capsys):
    seen = []
    for item in phases.phase("head warm-up", iter(range(100)), 100):
        seen.append(item)
        clock(0.25)
    assert seen == list(range(100))
    assert capsys.readouterr().err.splitlines() == [
        "head warm-up: 8 of 100",
        "head warm-up: 48 of 100",
        "head warm-up: 88 of 100",
        "head warm-up: 100 of 100 in 25 s",
    ]


def test_only_the_main_process_writes(clock, capsys, monkeypatch):
    monkeypatch.setattr(phases.distributed, "is_main_process", lambda: False)
    for _ in phases.phase("head warm-up", range(50), 50):
        clock(1)
    assert capsys.readouterr().err == ""
