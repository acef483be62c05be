"""What every test shares: no network, one thread, and the folder of real inputs where
there is one.
"""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it once, when it is imported

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


def find_shared_data() -> Path:
    """The folder of real inputs; skips the calling test where it is missing."""
    named = os.environ.get("VPRETRAIN_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        origin = "named by $VPRETRAIN_DATA" if named else "$VPRETRAIN_DATA is not set"
        pytest.skip(f"This test reads real inputs, and there is no folder {folder} ({origin}).")
    return folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("data"):
        find_shared_data()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder that holds ``gsm8k/``, ``mathematics/``, ``prose/`` and ``camvid/``."""
    return find_shared_data()
