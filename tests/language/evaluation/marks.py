"""What some tests of evaluation need."""

import importlib.util

import pytest

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="the eval extra is not installed"
)
