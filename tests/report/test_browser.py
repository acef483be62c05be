"""The page in a real browser; skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import vpretrain.report
from tests.report.browser import Browser, started
from tests.report.synthetic import comparison, run_folder
from vpretrain.report import write_report

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="This test opens the report in a browser; install chromium and chromedriver (Debian: "
    "chromium chromium-driver).",
)

HOSTILE = "<script>document.title='owned'</script>"
LONG = "a_very_long_arm_name_that_somebody_gave_in_a_hurry_" * 3


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    assert CHROMIUM and DRIVER
    with started(DRIVER, CHROMIUM, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    arms = ["onehot", "field", "closed_form", "random_feedback"]
    two = {"gsm8k/pass@1": True, "mbpp/pass@1": True}
    folders = {
        "plain": comparison(root / "plain", arms=arms),
        "tasks": comparison(root / "tasks", metrics=two),
        "hostile": comparison(
            root / "hostile",
            arms=["onehot", HOSTILE, LONG],
            metrics={f"t/{HOSTILE}": True},
            description=HOSTILE,
        ),
        "run": run_folder(root / "run"),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vpretrain.report, "write_plots", lambda *given: [])
        return {
            name: write_report([folder], root / name / "report.html")
            for name, folder in folders.items()
        }


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("name", ["plain", "tasks", "hostile", "run"])
def test_no_error_no_request_and_no_sideways_scroll(
    browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.open(pages[name], width=width, dark=dark)
    assert browser.ask("window.innerWidth") == width
    assert browser.ask("document.documentElement.scrollWidth") <= width
    assert browser.console() == []
    assert browser.ask("performance.getEntriesByType('resource').length") == 0
    paper = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") is not dark
    out_of_sight = (
        "[...document.querySelectorAll('svg.chart text')].filter(t => {const b = "
        "t.getBoundingClientRect(), "
        "p = t.closest('svg').getBoundingClientRect(); return b.left < p.left - 3 || b.right "
        "> p.right + 3}).length"
    )
    if name != "hostile":
        assert browser.ask(out_of_sight) == 0


def test_tables_of_a_usual_comparison_fit_on_a_phone(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["plain"], width=400, dark=False)
    wide = (
        "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth + "
        "1).length"
    )
    assert browser.ask(wide) == 0


def test_a_script_in_the_data_is_shown_and_not_run(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["hostile"], width=1400, dark=False)
    assert browser.ask("document.title") == f"{HOSTILE} · vpretrain"
    assert browser.ask("document.scripts.length") == 0
    assert HOSTILE in browser.ask("document.querySelector('h1').textContent")
    assert HOSTILE in browser.ask("document.querySelector('table').textContent")
    assert HOSTILE in browser.ask("document.querySelector('.verdict').textContent")
    assert HOSTILE in browser.ask("document.querySelector('svg.chart .label text').textContent")
