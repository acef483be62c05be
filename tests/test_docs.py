"""The pages: links lead somewhere, commands and files exist, and what is shown as a command runs.

The guide has a test of its own, tests/test_guide.py. Commands that need other machines stand in
blocks marked `text`.
"""

import itertools
import re
import shlex
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import typer

from tests.run.test_train import tiny_recipe
from tests.test_contributing import declared
from vpretrain.cli import app
from vpretrain.config import recipe
from vpretrain.language import Language
from vpretrain.language.steering.arms import ARMS
from vpretrain.studies import compare
from vpretrain.system.errors import UserError

ROOT = Path(__file__).parent.parent
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
TEXTS = {page.name: page.read_text(encoding="utf-8") for page in PAGES}
VERBS = typer.main.get_command(app).commands

names = pytest.mark.parametrize("name", list(TEXTS))


def anchors(text):
    """Of a page's headings, as the site and GitHub make them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE
    )
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings]
    return {re.sub(r"[\s]+", "-", heading) for heading in kept}


@names
def test_links_lead_somewhere(name):
    folder = ROOT if name in ("README.md", "CONTRIBUTING.md") else ROOT / "docs"
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        page = folder / path if path else folder / name
        assert page.exists(), f"{name}: {target}"
        if anchor:
            assert anchor in anchors(page.read_text(encoding="utf-8")), f"{name}: {target}"


@names
def test_files_that_are_named_exist(name):
    for path in re.findall(
        r"(?<![\w/.])(?:benchmarks|tests|recipes|src|examples|docs)/[\w./-]+\.(?:py|yaml|md)",
        TEXTS[name],
    ):
        assert (ROOT / path).is_file(), f"{name}: {path}"
    for module in re.findall(r"python -m (tests[\w.]+)", TEXTS[name]):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file(), f"{name}: {module}"


@names
def test_commands_and_their_options_exist(name):
    text = TEXTS[name]
    lines = re.findall(
        r"^\s*(?:\S+/)?vpretrain ([^\n]+)",
        "\n".join(re.findall(r"```(?:bash|text)\n(.*?)```", text, re.DOTALL)),
        re.MULTILINE,
    )
    lines += re.findall(r"`vpretrain ([^`\n]+)`", text)
    for line in lines:
        verb = line.split()[0]
        if verb.startswith(("-", "VERB")):
            continue
        assert verb in VERBS, f"{name}: vpretrain {line}"
        options = {
            option for each in VERBS[verb].params for option in (*each.opts, *each.secondary_opts)
        } | {"--help"}
        assert set(re.findall(r"(?<!\S)--[\w-]+", line)) <= options, f"{name}: vpretrain {line}"


BLOCKS = [
    (name, text)
    for name in TEXTS
    if name not in ("guide.md", "README.md", "CONTRIBUTING.md")
    for text in re.findall(r"```bash\n(.*?)```", TEXTS[name], re.DOTALL)
]
FEWER = (
    "data.batch_size=2 data.stream.0.rows.rows=400 data.stream.1.rows.rows=400 "
    "data.feedback.batch_size=4 data.feedback.rows.rows=64 value.settle_steps=1 "
    "data.evaluation.dev.rows=8 data.evaluation.test.rows=8"
)
SHORTER = {
    "probe": f"--draws 4 {FEWER}",
    "profile": FEWER,
    "doctor": FEWER,
    "compare": f"budget.steps=2 {FEWER} --seeds 1 --jobs 1",
    "train": FEWER,
}
"""What is added to a command, which it has to take: the test is about whether it runs."""


@pytest.mark.parametrize(
    ("name", "block"), BLOCKS, ids=[f"{name}-{at}" for at, (name, _) in enumerate(BLOCKS)]
)
def test_blocks_run(name, block, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in block.strip().splitlines():
        program, verb, *words = shlex.split(line)
        assert program == "vpretrain", f"{name}: {line}"
        called = command(verb, *words, *SHORTER.get(verb, "").split())
        assert called.code == 0, f"{name}: {line}\n{called.out[-1000:]}\n{called.err[-1500:]}"


def test_one_step_without_a_recipe():
    """The block of docs/your-own.md, for the parts of a small run and two batches."""
    section = TEXTS["your-own.md"].split("## One step without a recipe")[1]
    parts = Language().build(tiny_recipe(), Language().load(tiny_recipe()))
    names = {
        "learner": parts.learner,
        "designer": parts.designer,
        "feedback": parts.feedback,
        "optimizer": torch.optim.AdamW(parts.learner.model.parameters()),
        "stream": itertools.islice(parts.stream, 2),
    }
    exec(re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1), names)
    assert names["step"].count == 2 and names["metrics"]["loss"] > 0


class ReadsData(Exception):
    """The comparison was accepted, and would read data next."""


def test_an_arm_declared_from_a_script(tmp_path, monkeypatch):
    """The script of docs/your-own.md; `tests/test_contributing.py` trains its arm."""
    monkeypatch.chdir(tmp_path)
    Path("steer.yaml").write_text(recipe.dump(tiny_recipe()), encoding="utf-8")
    section = TEXTS["your-own.md"].split("## Designer")[1]
    script = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1)
    monkeypatch.setattr(compare, "_Worker", Mock(side_effect=ReadsData))
    with pytest.raises(UserError, match="below_mean is not an arm"):
        exec(script.replace("import below_mean", ""), {"__name__": "__main__"})
    arm = declared(tmp_path, "below_mean", "Add a designer", most_lines=60, kinds=ARMS.kinds)
    with arm, pytest.raises(ReadsData):
        exec(script, {"__name__": "__main__"})
