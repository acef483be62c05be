"""Nothing that a recipe, a model folder or data hold is run; nothing is sent anywhere; no token is
left behind.
"""

import ast
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vpretrain
from tests.reliability.runs import language_recipe, vision_recipe
from tests.run.test_train import TINY
from vpretrain.config import recipe as recipes
from vpretrain.config.recipe import load
from vpretrain.language import Language
from vpretrain.run.finished_run import restore_designer
from vpretrain.run.launch import train_one
from vpretrain.run.modalities import SCHEMAS
from vpretrain.system.errors import UserError
from vpretrain.vision import Vision

SOURCES = sorted(Path(vpretrain.__file__).parent.rglob("*.py"))


class Owned:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


# ---- what the source never does


def calls(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield (
                ast.unparse(node.func),
                {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords},
            )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_is_unpickled_and_no_foreign_code_is_run(path):
    imported = {
        name.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in [*node.names, ast.alias(getattr(node, "module", None) or "")]
    }
    assert not imported & {"pickle", "dill", "cloudpickle", "joblib", "shelve"}
    for function, options in calls(path):
        assert options.get("trust_remote_code", "False") == "False", function
        if function == "torch.load":
            assert options.get("weights_only") == "True"
        if function in ("np.load", "numpy.load"):
            assert options.get("allow_pickle") == "False"
        assert function not in (
            "yaml.load",
            "yaml.unsafe_load",
            "yaml.full_load",
            "os.system",
            "eval",
        ), function
        assert options.get("shell", "False") == "False", function


# ---- recipes


@pytest.mark.parametrize(
    "tag", ["python/object/apply:os.mkdir", "python/object/new:os.mkdir", "python/name:os.mkdir"]
)
def test_a_tag_makes_nothing(tmp_path, tag):
    marker = tmp_path / "owned"
    (tmp_path / "tagged.yaml").write_text(f"modality: language\ndescription: !!{tag} [{marker}]\n")
    for source, overrides in (
        (tmp_path / "tagged.yaml", []),
        ("demo-language", [f"description=!!{tag} [{marker}]"]),
    ):
        with pytest.raises(UserError, match="not valid YAML"):
            load(source, overrides, schemas=SCHEMAS)
    assert not marker.exists()


def test_a_run_folder_with_a_tag_in_its_recipe_is_refused(tmp_path):
    marker = tmp_path / "owned"
    (tmp_path / "result.json").write_text("{}")
    (tmp_path / "recipe.yaml").write_text(
        f"description: !!python/object/apply:os.mkdir [{marker}]\n"
    )
    with pytest.raises(UserError, match=r"recipe\.yaml:1"):
        train_one(language_recipe(), tmp_path, lambda record, fraction: None)
    assert not marker.exists()


# ---- model folders


def folder_with_code(folder, marker, kind):
    """A model that names its own code, in every place where it can."""
    code = {
        "AutoConfig": "evil.Config",
        "AutoModel": "evil.Model",
        "AutoModelForCausalLM": "evil.Model",
    }
    folder.mkdir()
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n")
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "auto_map": code}))
    tokenizer = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


def test_a_model_folder_with_code_is_refused_and_nobody_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("asked on the terminal"))
    marker = tmp_path / "owned"
    folder = folder_with_code(tmp_path / "model", marker, "evil")
    for modality, recipe in ((Language(), language_recipe), (Vision(), vision_recipe)):
        problems = modality.check(recipe("learner.config=null", f"learner.model={folder}")).problems
        assert "learner.model" in {problem.where for problem in problems}
    problems = Language().check(language_recipe(f"learner.tokenizer={folder}")).problems
    assert "learner.tokenizer" in {problem.where for problem in problems}
    assert not marker.exists()


def test_pickled_weights_are_not_unpickled(tmp_path):
    marker, folder = tmp_path / "owned", tmp_path / "model"
    recipe = language_recipe()
    Language().build(recipe, Language().load(recipe)).save(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(
        pickle.dumps({"model.embed_tokens.weight": Owned(marker)})
    )
    problems = (
        Language().check(language_recipe("learner.config=null", f"learner.model={folder}")).problems
    )
    assert [problem.where for problem in problems] == ["learner.model"]
    assert not marker.exists()


def test_a_designer_is_not_unpickled(tmp_path):
    marker = tmp_path / "owned"
    recipe = language_recipe("arm=field")
    parts = Language().build(recipe, Language().load(recipe))
    (tmp_path / "designer").mkdir()
    torch.save({"network": Owned(marker)}, tmp_path / "designer" / "state.pt")
    with pytest.raises(UserError, match=r"state\.pt"):
        restore_designer(parts, tmp_path)
    assert not marker.exists()


# ---- a whole run in a process of its own

TOKEN = "hf_" + "Secret0123456789" * 2
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=owned()>"
ALONE = """
import json, socket, sys
asked = []

def refuse(self, address, *rest):
    asked.append(str(address))
    raise OSError("no network here")

socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = lambda host, *rest, **options: refuse(None, host)
from vpretrain import cli

for arguments in json.loads(sys.argv[1]):
    sys.argv = ["vpretrain", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code:
            sys.exit(f"{arguments}: {ended.code}")
print("ASKED", asked)
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """check, train, explain and report on local files, without network, with a token in the
    environment.
    """
    folder = tmp_path_factory.mktemp("alone")
    rows = [
        {"text": f"{word} {HOSTILE} {number}"}
        for number, word in enumerate(["John has apples ."] * 40)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Language().build(recipe := language_recipe(), Language().load(recipe)).save(folder / "base")
    tiny = recipes.load(
        "demo-language",
        [
            *TINY,
            "arm=field",
            "budget.steps=2",
            "evaluate.every=0",
            "threads=1",
            "learner.config=null",
            "learner.model=base",
            f"data.stream.1={json.dumps({'name': HOSTILE, 'rows': {'kind': 'jsonl', 'path': 'rows.jsonl', 'text': 'text'}})}",
            f"description={json.dumps(HOSTILE)}",
        ],
        schemas=SCHEMAS,
    )
    (folder / "tiny.yaml").write_text(recipes.dump(tiny))
    commands = [
        ["check", "tiny.yaml"],
        ["train", "tiny.yaml", "--out", "run"],
        ["explain", "run", "--documents", "3"],
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_TOKEN": TOKEN, "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, json.dumps(commands)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout + done.stderr


def test_no_network_where_no_hub_id_is_named(alone):
    assert "ASKED []" in alone[1]


def test_tokens_are_in_no_log_and_no_file(alone):
    folder, said = alone
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10 and TOKEN not in said
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


@pytest.mark.parametrize("page", ["run/report.html", "run/explain.html"])
def test_pages_show_data_as_text(alone, page):
    text = (alone[0] / page).read_text(encoding="utf-8")
    assert "<script>document" not in text and "<img" not in text
    assert "&lt;script&gt;document" in text


def test_the_card_shows_data_as_text(alone):
    prose = (
        (alone[0] / "run" / "model" / "README.md").read_text(encoding="utf-8").split("## Recipe")[0]
    )
    assert "<script" not in prose and "<img" not in prose and "&lt;script" in prose
