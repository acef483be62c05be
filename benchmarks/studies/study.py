"""What a study is: rows side by side, from which starts, with which seeds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from vpretrain.config import recipe as recipes
from vpretrain.run.modalities import MODALITIES, SCHEMAS


@dataclass(frozen=True)
class Start:
    """A warm checkpoint, and the seeds that are run from it.

    Args:
        name: in the results.
        recipe: whose `learner.prepare` makes it, in words that `vpretrain prepare` takes.
        prepare_seed: of its weights and of the order of its text; None: the checkpoint that the
            recipe names.
        seeds: of the runs.
        folder: of a checkpoint that is at hand, below `--models`; then nothing is made.
        command: what made that folder.
    """

    name: str
    recipe: str
    prepare_seed: int | None
    seeds: tuple[int, ...]
    prepared_with: tuple[str, ...] = ()
    folder: str = ""
    command: str = ""

    def overrides(self, root: Path, rooted: list[str], models: Path) -> list[str]:
        """What a recipe needs so that it starts here."""
        if self.folder:
            return [f"learner.model={models / self.folder}"]
        return [f"learner.model={_location(self, str(root), tuple(rooted))}"]

    def description(self) -> str:
        """The command that makes it."""
        if self.folder:
            return self.command
        if self.prepare_seed is None:
            return f"the checkpoint of {self.recipe}"
        words = [f"learner.prepare.seed={self.prepare_seed}", *self.prepared_with]
        return f"vpretrain prepare {self.recipe} {' '.join(words)}"


@cache
def _location(start: Start, root: str, rooted: tuple[str, ...]) -> str:
    is_file = start.recipe.endswith(".yaml")
    source, rooted = (str(Path(root) / start.recipe), rooted) if is_file else (start.recipe, ())
    words = (
        []
        if start.prepare_seed is None
        else ["learner.model=null", f"learner.prepare.seed={start.prepare_seed}"]
    )
    made = recipes.load(source, [*words, *start.prepared_with, *rooted], schemas=SCHEMAS)
    result = made.learner.model_dump()["model"] or MODALITIES[made.modality]().load(made).location
    return str(result)


@dataclass(frozen=True)
class Study:
    """Rows side by side; the first is the baseline.

    Args:
        name: of `results/NAME.json`.
        description: the question.
        recipe: packaged name, or path from the repository's root.
        starts: warm checkpoints with their seeds.
        rows: overrides of each row, by its label.
        overrides: of all rows.
    """

    name: str
    description: str
    recipe: str
    starts: tuple[Start, ...]
    rows: dict[str, tuple[str, ...]]
    overrides: tuple[str, ...] = field(default=())


STUDIES: dict[str, Study] = {}


def add(
    name: str,
    description: str,
    recipe: str,
    starts: tuple[Start, ...],
    rows: dict[str, str],
    *overrides: str,
) -> None:
    """Declares a study; a row's overrides stand in one line, with spaces between them."""
    split = {row: tuple(words.split()) for row, words in rows.items()}
    STUDIES[name] = Study(name, description, recipe, starts, split, overrides)


def once(starts: tuple[Start, ...]) -> tuple[Start, ...]:
    """Each start with its first seed."""
    return tuple(replace(start, seeds=start.seeds[:1]) for start in starts)


def arms(*names: str) -> dict[str, str]:
    """A row an arm, at the recipe's settings."""
    return {name: f"arm={name}" for name in names}
