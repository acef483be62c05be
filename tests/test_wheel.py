"""What is published: an sdist, the wheel that it makes, and the program in an empty environment,
outside the repository.
"""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from vpretrain import __version__

REPOSITORY = Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built as for an index: the sdist first, the wheel from it. pip gets hatchling for it, from
    its cache or the network.
    """
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--outdir", folder, REPOSITORY],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-1500:]
    (source,) = folder.glob("*.tar.gz")
    (result,) = folder.glob("*.whl")
    assert {source.name, result.name} == {
        f"vpretrain-{__version__}.tar.gz",
        f"vpretrain-{__version__}-py3-none-any.whl",
    }
    return result


def test_the_wheel_holds_everything_under_src_and_nothing_else(wheel):
    """Files that git knows, or would take: recipes, checkpoints, py.typed, the report's style
    sheet.
    """
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "src/vpretrain"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    there = {
        name.removeprefix("src/") for name in listed.stdout.split() if (REPOSITORY / name).is_file()
    }
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = [
            archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA")
        ]
    assert inside == there and "vpretrain/py.typed" in inside
    assert "License-Expression: Apache-2.0" in metadata and "Provides-Extra: sweep" in metadata


@pytest.fixture(scope="module")
def program(wheel, tmp_path_factory):
    """``vpretrain`` in a fresh environment: the wheel itself, with the libraries of the environment
    of the tests.
    """
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", wheel], check=True
    )
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    # A path in a .pth file is not itself searched for .pth files: an editable install beside the
    # libraries stays out.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "vpretrain"


def run(program, folder, *arguments):
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VPRETRAIN"))
    }
    done = subprocess.run(
        [program, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env={**environment, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_program_runs_outside_the_repository(program, tmp_path):
    where = [program.parent / "python", "-c", "import vpretrain; print(vpretrain.__file__)"]
    file = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert Path(file.strip()).is_relative_to(program.parent.parent)
    assert run(program, tmp_path, "--version") == f"vpretrain {__version__}\n"
    listed = json.loads(run(program, tmp_path, "recipes", "--json"))
    assert {"demo-language", "demo-vision"} <= {row["name"] for row in listed}
    small = [
        "budget.steps=2",
        "data.evaluation.test.rows=8",
        "value.settle_steps=1",
        "evaluate.every=0",
    ]
    result = json.loads(run(program, tmp_path, "train", "demo-language", *small, "--json"))
    assert (
        result["steps"] == 2
        and (tmp_path / result["run_dir"] / "model" / "model.safetensors").is_file()
    )
    assert (tmp_path / result["run_dir"] / "report.html").is_file()
    assert json.loads(run(program, tmp_path, "check", "demo-vision", "--json")) == {"problems": []}
