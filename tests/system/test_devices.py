"""Where models live, and what is said of narrow arithmetic."""

from __future__ import annotations

import logging

import pytest
import torch

from vpretrain.system import devices


@pytest.mark.parametrize(
    ("capabilities", "slow"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_bfloat16_on_a_cpu_without_it_is_warned_of_once(
    capabilities: dict[str, object],
    slow: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    devices.autocast_dtype.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert devices.autocast_dtype("bfloat16") is torch.bfloat16
        assert devices.autocast_dtype("float32") is None
    assert [record.message for record in caplog.records] == [devices.SLOW] * slow
    devices.autocast_dtype.cache_clear()
