"""A Python that programs of a model may be run by, on whatever machine the tests run."""

import functools
import os
import sys

import pytest

from vpretrain.language.evaluation import sandbox
from vpretrain.system.errors import UserError


@functools.cache
def private():
    """Whether nobody but this user, who has every right, can read the Python of these tests."""
    try:
        sandbox.passes("")
    except UserError:
        return True
    return False


@pytest.fixture
def public_python(monkeypatch):
    """Sets the system's Python, which every user can read, in the place of this one."""

    def use():
        if not os.access("/usr/bin/python3", os.X_OK):
            pytest.skip("there is no /usr/bin/python3")
        monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
        monkeypatch.setattr(sys, "prefix", "/usr")
        monkeypatch.setattr(sys, "base_prefix", "/usr")

    return use


@pytest.fixture
def runs_programs(public_python):
    """Where this Python is private and no box hides the rest, the system's stands in for it."""
    if private():
        public_python()
