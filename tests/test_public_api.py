"""The public names stay: those that docs/your-own.md lists, and what their functions and classes
are called with.

After a change that is meant: ``python -m tests.test_public_api`` writes them anew, and the change
shows in the diff.
"""

import importlib
import inspect
import json
from pathlib import Path

import pytest

import vpretrain

KEPT = Path(__file__).parent / "public_api.json"
GUIDE = Path(__file__).parent.parent / "docs" / "your-own.md"
MODULES = (
    "method.roles",
    "method.simple",
    "method.exact",
    "method.network",
    "method.step",
    "method.meta_step",
    "method.value_estimator",
    "run.parts",
    "run.scores",
    "run.run",
    "run.build",
    "run.pretrain",
    "method.rules",
    "method.reliability",
    "method.feedback",
    "config.arms",
    "config.kinds",
    "config.recipe",
    "config.section",
    "system.sampling",
    "system.errors",
    "system.contexts",
    "run.controls",
    "run.modalities",
    "run.train",
    "run.launch",
    "studies.statistics",
    "studies.compare",
    "studies.verdicts",
    "studies.sweep",
    "studies.sweep_plan",
    "studies.check",
    "integrations.transformers",
    "integrations.trl",
    "integrations.comparison",
    "language.data.word_problems",
    "language.feedback.signals",
    "language.feedback.gradient",
    "vision.data.scenes",
)


def parameters(called):
    """``{name: whether it has to be given}`` of what is called; None of what is no function."""
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):
        return None
    return {
        name: parameter.default is parameter.empty
        and parameter.kind.name not in ("VAR_POSITIONAL", "VAR_KEYWORD")
        for name, parameter in signature.parameters.items()
        if name != "self"
    }


def names_of(module):
    """Public names of a module that are its own, methods of its classes among them."""
    result = {}
    for name, value in vars(module).items():
        if (
            name.startswith("_")
            or inspect.ismodule(value)
            or getattr(value, "__module__", module.__name__) != module.__name__
        ):
            continue
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            if name.isupper():
                result[name] = None
            continue
        is_protocol = getattr(value, "_is_protocol", False)
        result[name] = None if is_protocol else parameters(value)
        if inspect.isclass(value):
            own = {
                key: each
                for key, each in vars(value).items()
                if inspect.isfunction(each) and not key.startswith("_")
            }
            result |= {f"{name}.{key}": parameters(each) for key, each in own.items()}
    return result


def public():
    """``{module: {name: parameters}}``."""
    result = {"vpretrain": dict.fromkeys(sorted(vpretrain.__all__))}
    for name in MODULES:
        result[f"vpretrain.{name}"] = dict(
            sorted(names_of(importlib.import_module(f"vpretrain.{name}")).items())
        )
    return result


KNOWN = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}


@pytest.mark.parametrize("module", ["vpretrain", *(f"vpretrain.{name}" for name in MODULES)])
def test_what_was_public_still_is_and_is_called_alike(module):
    now = (
        dict.fromkeys(vpretrain.__all__)
        if module == "vpretrain"
        else names_of(importlib.import_module(module))
    )
    gone = sorted(KNOWN[module].keys() - now.keys())
    assert not gone, (
        f"{gone} left {module}: keep them for a minor version, with a DeprecationWarning "
        "(CONTRIBUTING.md)"
    )
    for name, before in KNOWN[module].items():
        if before is None or now[name] is None:
            continue
        lost = sorted(before.keys() - now[name].keys())
        demanded = sorted(
            key for key, needed in now[name].items() if needed and not before.get(key, False)
        )
        assert not lost, f"{module}.{name} no longer takes {lost}"
        assert not demanded, f"{module}.{name} now has to be given {demanded}"


def test_every_name_in_all_is_there_and_has_a_docstring():
    for name in vpretrain.__all__:
        value = getattr(vpretrain, name)
        assert not callable(value) or inspect.getdoc(value), name


def test_the_guide_lists_the_modules():
    section = GUIDE.read_text(encoding="utf-8").partition("## Public names")[2]
    for name in MODULES:
        assert f"`{name}`" in section or f"`vpretrain.{name}`" in section, name


if __name__ == "__main__":
    KEPT.write_text(json.dumps(public(), indent=1) + "\n", encoding="utf-8")
    print(f"{KEPT}: {sum(map(len, public().values()))} names")
