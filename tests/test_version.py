"""One version, wherever it is said; and what the package is before anything of it is used."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import vpretrain
from vpretrain import __version__

REPOSITORY = Path(__file__).parent.parent


def test_the_installed_package_has_it():
    assert version("vpretrain") == __version__


def test_the_citation_has_it_and_names_nobody_who_is_not_there():
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert (
        cited["version"] == __version__
        and cited["cff-version"] == "1.2.0"
        and cited["license"] == "Apache-2.0"
    )
    assert cited["authors"] == [{"name": "vpretrain contributors"}]
    (paper,) = cited["references"]
    assert {author["family-names"] for author in paper["authors"]} == {"Ke", "Fanti"}


def test_the_changelog_says_what_is_new():
    """Until a version is released its changes stand under Unreleased; after that it has a heading
    of its own.
    """
    headings = [
        line
        for line in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("## ")
    ]
    assert headings[0] == "## [Unreleased]"
    assert len(headings) == 1 or headings[1].startswith(f"## [{__version__}]")


def test_public_names_come_on_first_use():
    assert {name for name in vpretrain.__all__ if getattr(vpretrain, name) is not None} <= set(
        dir(vpretrain)
    )
    assert {name for names in vpretrain._IN.values() for name in names} == set(vpretrain.__all__)
    with pytest.raises(AttributeError, match="Trainer"):
        _ = vpretrain.Trainer


def test_help_needs_no_torch():
    code = "import sys, vpretrain.cli; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
        == "False\n"
    )
