"""A finished run on the hub: private unless said otherwise, and errors in words. No network."""

import re
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError, HTTPError, RepositoryNotFoundError

from tests.run.test_train import tiny_recipe
from vpretrain.config.recipe import dump
from vpretrain.run import hub
from vpretrain.run.manifest import MODEL, write_manifest

REPO = "someone/steered"


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    for name, text in (
        ("recipe.yaml", dump(tiny_recipe())),
        ("model/config.json", "{}"),
        ("model/model.safetensors", "weights"),
        (
            "model/README.md",
            "---\nlicense: mit\n---\nfrom /home/me/notes/a.jsonl, see https://a.b/c/d\n",
        ),
        ("result.json", "{}"),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "designer").mkdir()
    torch.save({}, folder / "designer" / "state.pt")
    write_manifest(folder / "model", folder / MODEL)
    return folder


class Hub:
    """Stands in for ``HfApi``: repositories by name and whether they are private, and what came."""

    def __init__(self, there=(), failing=None):
        self.there, self.failing, self.sent = dict(there), failing, []

    def __call__(self):
        return self

    def model_info(self, repo):
        if repo not in self.there:
            raise RepositoryNotFoundError("404", response=answer(404))
        return SimpleNamespace(private=self.there[repo])

    def create_repo(self, repo, *, private, exist_ok):
        if self.failing is not None:
            raise self.failing
        self.there.setdefault(repo, private)

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.sent.append((repo_id, sorted(path.name for path in folder_path.iterdir())))
        return SimpleNamespace(repo_url=f"https://hub/{repo_id}")


def answer(status):
    return SimpleNamespace(status_code=status, headers={}, request=None)


@pytest.fixture
def given(monkeypatch):
    def give(there, token="hf_secret"):
        monkeypatch.setattr(hub, "HfApi", there)
        monkeypatch.setattr(hub, "get_token", lambda: token)
        return there

    return give


def test_a_dry_run_says_what_would_be_sent_and_asks_nobody(command, run, given):
    given(lambda: pytest.fail("a dry run asked the hub"), token=None)
    called = command("push", run, "--to", REPO, "--dry-run", "--json")
    assert called.code == 0, called.err
    assert called.document["private"] and called.document["url"] is None
    assert [file["path"] for file in called.document["files"]] == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert "(private): 3 files" in called.err and "nothing was sent" in called.err
    assert "paths of this machine: /home/me/notes/a.jsonl\n" in called.err


def test_it_is_private_unless_said_otherwise(command, run, given):
    there = given(Hub())
    called = command("push", run, "--to", REPO, "--json")
    assert called.code == 0 and called.document["url"] == f"https://hub/{REPO}"
    assert there.there == {REPO: True}
    assert there.sent == [(REPO, ["README.md", "config.json", "model.safetensors"])]
    assert "hf_secret" not in called.out + called.err
    public = given(Hub())
    assert command("push", run, "--to", REPO, "--public").code == 0
    assert public.there == {REPO: False}


def test_a_private_repository_does_not_become_public_unsaid(command, run, given):
    there = given(Hub({REPO: True}))
    called = command("push", run, "--to", REPO, "--public")
    assert called.code == 2 and not there.sent
    assert "only its owner sees it" in " ".join(called.err.split())
    assert command("push", run, "--to", REPO).code == 0 and there.sent


@pytest.mark.parametrize(
    ("there", "token", "code", "said"),
    [
        (Hub(), None, 2, "HF_TOKEN: the hub asks for a token"),
        (Hub({REPO: False}), "t", 2, "--to: this repository is there already, and everybody sees"),
        (Hub(failing=HfHubHTTPError("no", response=answer(401))), "t", 2, "does not know this"),
        (Hub(failing=HfHubHTTPError("no", response=answer(403))), "t", 2, "may not write to"),
        (Hub(failing=HfHubHTTPError("busy", response=answer(500))), "t", 4, "did not take .* busy"),
        (Hub(failing=HTTPError("no route")), "t", 4, r"cannot be reached \(no route\)"),
    ],
)
def test_what_the_hub_refuses_is_said_in_words(there, token, code, said, command, run, given):
    given(there, token)
    called = command("push", run, "--to", REPO)
    assert called.code == code and not there.sent
    assert re.search(said, " ".join(called.err.split()))


def test_what_is_no_finished_run_is_not_sent(command, run, given):
    given(Hub())
    for to in ("steered", "a/b/c", "some one/steered"):
        assert "--to: " in command("push", run, "--to", to).err
    (run / "model" / "model.safetensors").write_text("other")
    assert "model.safetensors is not as it was written" in command("push", run, "--to", REPO).err
    (run / "model" / "model.safetensors").write_text("weights")
    (run / "model" / "README.md").unlink()
    called = command("push", run, "--to", REPO)
    assert called.code == 2 and "a model without a card" in called.err
    (run / "designer" / "state.pt").unlink()
    assert "the run did not finish" in command("push", run, "--to", REPO).err
