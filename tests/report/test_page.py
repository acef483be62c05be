from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

import vpretrain.report
from tests.conftest import Called
from tests.report.synthetic import comparison, run_folder
from vpretrain.report import drawing, write_report
from vpretrain.system.errors import UserError

HOSTILE = "<script>document.title='owned'</script>"


class Reader(HTMLParser):
    """Collects elements, attributes, and the text beside them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def blank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every drawing is made up to its rendering, which takes most of the time."""
    empty = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    monkeypatch.setattr(drawing, "_saved", lambda canvas, kind: empty)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = comparison(tmp_path_factory.mktemp("page") / "c")
    return write_report([folder], folder / "report.html")


def test_the_parts_come_in_order_and_the_table_opens_with_step_0(made: Path) -> None:
    page = made.read_text()
    page = html.unescape(page[page.index('class="verdict"') :].replace("</h2>", "."))
    parts = [
        'class="verdict"',
        ">Results.",
        'class="step0"',
        "What each arm used",
        ">Curves.",
        "test/nll during the runs",
        "Training loss",
        "until the baseline's score.",
        "Steering over time.",
        ">Cost.",
        "How it was made.",
        "Stream digests",
        "Recipe, every value",
    ]
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    body = page[page.index("<tbody>") :]
    assert body.index("step 0") < body.index("onehot")
    for fact in (
        "made up",
        "4a119e1a7d25",
        "0000000000000002",
        "torch 2.13.0+cpu",
        "--arms onehot,closed_form",
        "p (Holm)",
    ):
        assert fact in page


def test_the_page_asks_nothing_of_the_network_and_runs_nothing(made: Path) -> None:
    page = made.read_text()
    reader = Reader(page)
    assert not {"script", "iframe", "object", "img", "video", "form", "base"} & set(reader.tags)
    named = [
        value
        for name, value in reader.attributes
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert all(value.startswith("#") or value == "data:," for value in named)
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert (
        "http://" not in page
        and "https://" not in page
        and "@import" not in page
        and "url(" not in page
    )
    assert any("default-src 'none'" in value for _, value in reader.attributes)


def test_the_same_results_give_the_same_bytes(made: Path) -> None:
    before = {path: path.read_bytes() for path in [made, *made.parent.joinpath("plots").iterdir()]}
    write_report([made.parent], made)
    assert {path: path.read_bytes() for path in before} == before


def test_plots_are_written_as_svg_and_png(made: Path) -> None:
    result = {path.name for path in (made.parent / "plots").iterdir()}
    stems = (
        "differences",
        "evaluation-test-nll",
        "evaluation-test-pass-1",
        "loss",
        "steering",
        "throughput",
        "bought",
    )
    assert result == {f"{stem}.{kind}" for stem in stems for kind in ("svg", "png")}
    for path in (made.parent / "plots").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    for path in (made.parent / "plots").glob("*.svg"):
        assert "<svg" in path.read_text()


def test_what_comes_from_data_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vpretrain.report, "write_plots", lambda *given: [])
    arms = ["onehot", HOSTILE, "_$x$ \x07'\""]
    metrics = {f"test/{HOSTILE}": True, 'test/"><svg onload=alert(1)>': False}
    folder = comparison(
        tmp_path / "c",
        arms=arms,
        metrics=metrics,
        description=f"{HOSTILE}<img src=x onerror=alert(1)>",
    )
    table = json.loads((folder / "compare.json").read_text())
    table["environment"] = {
        "command": HOSTILE,
        "<b>": ["<i>"],
        "versions": {"<u>": "<s>"},
        "surrogate": "\ud800",
    }
    table["runs"][0]["stream_digest"] = "<del>"
    (folder / "compare.json").write_text(json.dumps(table))
    lines = folder / "runs" / "onehot-0.metrics.jsonl"
    lines.write_text(lines.read_text().replace('"gradient_norm"', '"<marquee>"'))
    page = write_report([folder], tmp_path / "report.html").read_text(encoding="utf-8")
    reader = Reader(page)
    assert not {"script", "img", "b", "u", "s", "del", "marquee"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert reader.text.count(HOSTILE) > 10
    for text in (
        "<img src=x onerror=alert(1)>",
        'test/"><svg onload=alert(1)>',
        "<i>",
        "<u> <s>",
        "<del>",
        "<marquee>",
    ):
        assert text in reader.text


@pytest.mark.usefixtures("no_plots")
def test_without_evaluations_it_says_how_to_get_them(tmp_path: Path) -> None:
    page = write_report([comparison(tmp_path / "c", every=0)], tmp_path / "report.html").read_text()
    assert "evaluate.every=N" in page
    assert "during the runs" not in page.replace("evaluated during the runs", "")


@pytest.mark.usefixtures("blank")
def test_a_pareto_front_only_for_several_tasks(tmp_path: Path, made: Path) -> None:
    assert "Trade-offs" not in made.read_text()
    two = {"gsm8k/pass@1": True, "mbpp/pass@1": True}
    page = write_report(
        [comparison(tmp_path / "c", metrics=two)], tmp_path / "report.html"
    ).read_text()
    assert "Trade-offs" in page and "Pareto" in page
    assert (tmp_path / "plots" / "pareto-gsm8k-pass-1-mbpp-pass-1.png").is_file()


@pytest.mark.usefixtures("blank")
def test_several_folders_have_a_section_each(tmp_path: Path) -> None:
    a, b, r = (
        comparison(tmp_path / "a"),
        comparison(tmp_path / "b", arms=["onehot", "field"]),
        run_folder(tmp_path / "r"),
    )
    page = write_report([a, b, r], tmp_path / "report.html").read_text()
    assert page.count("<article>") == 3
    assert page.count('class="verdict"') == 3
    identifiers = re.findall(r' id="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert {re.sub("#", "", link) for link in re.findall(r'href="(#[^"]+)"', page)} == set(
        identifiers
    )
    assert (tmp_path / "plots" / "2-loss.svg").is_file()


@pytest.mark.usefixtures("no_plots")
def test_notes_about_gaps_are_on_the_page(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "r", finished=False)
    with (folder / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": 61')
    page = write_report([folder], tmp_path / "report.html").read_text()
    assert "was cut off" in page and "no result.json" in page


@pytest.mark.usefixtures("no_plots")
def test_runs_without_any_metrics_have_tables_alone(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c")
    for path in (folder / "runs").glob("*.jsonl"):
        path.unlink()
    page = write_report([folder], tmp_path / "report.html").read_text()
    assert ">Curves<" not in page and ">Cost<" not in page and "onehot" in page


@pytest.mark.usefixtures("no_plots")
def test_images_are_called_images(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c", metrics={"test/miou": True}, unit="images")
    page = write_report([folder], tmp_path / "report.html").read_text()
    assert "Images until the baseline" in page and ">images<" in page


def test_a_place_that_can_be_no_file_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    folder = comparison(tmp_path / "c")
    before = sorted(folder.iterdir())
    with pytest.raises(UserError, match="this is a folder"):
        write_report([folder], folder)
    with pytest.raises(UserError, match="is a file; name a place"):
        write_report([folder], folder / "compare.json" / "report.html")
    assert sorted(folder.iterdir()) == before


def test_the_package_imports_no_model_code() -> None:
    allowed = {
        "vpretrain.report",
        "vpretrain.system.errors",
        "vpretrain.system.files",
        "vpretrain.system.html",
        "vpretrain.studies.statistics",
        "vpretrain.config.arms",
        "vpretrain.config.yaml_places",
    }
    for path in Path(vpretrain.report.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                assert module.partition(".")[0] not in {"torch", "transformers", "peft"}, path
                if module.startswith("vpretrain"):
                    assert any(
                        module == name or module.startswith(name + ".") for name in allowed
                    ), (path, module)


def test_the_verb_prints_the_pages_place(tmp_path: Path, command: Callable[..., Called]) -> None:
    folder = comparison(tmp_path / "c", steps=12, every=6)
    done = command("report", folder, "--json")
    assert done.code == 0, done.err
    assert done.document == {"page": str(folder / "report.html")}
    assert (folder / "report.html").is_file()

    (folder / "compare.json").write_text("{")
    done = command("report", folder, "--json", "--out", tmp_path / "other.html")
    assert done.code == 2
    assert "compare.json:1" in done.err and done.out == ""
    assert not (tmp_path / "other.html").exists()
