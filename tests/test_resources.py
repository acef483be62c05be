import shutil

import pytest
import torch

from vpretrain import resources
from vpretrain.resources import available_memory_bytes, out_of_memory, shortages


@pytest.fixture
def machine(monkeypatch):
    def machine(memory, disk):
        monkeypatch.setattr(resources, "available_memory_bytes", lambda: memory)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(disk, 0, disk))

    return machine


def test_a_model_that_just_fits_and_one_that_just_does_not(machine):
    model = torch.nn.Linear(9, 10, device="meta")  # 100 parameters
    machine(1600, 1200)
    assert shortages(model) == []
    machine(1599, 1199)
    assert [problem.where for problem in shortages(model)] == ["memory", "disk"]
    model.bias.requires_grad_(False)  # neither gradient nor moments
    machine(1480, 1200)
    assert shortages(model) == []
    machine(None, 1200)
    assert shortages(model) == [], "a system that does not say is not accused"


def test_available_memory(monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 10 kB\nMemAvailable:       7 kB\n")
    monkeypatch.setattr(resources, "_MEMORY_INFO", tmp_path / "meminfo")
    assert available_memory_bytes() == 7168
    monkeypatch.setattr(resources, "_MEMORY_INFO", tmp_path / "none")
    assert available_memory_bytes() is None


def test_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    assert out_of_memory(torch.OutOfMemoryError()) and out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("shapes do not match"))
