"""Uploads a finished run's model, with its card, to the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from vpretrain.run.finished_run import read_run
from vpretrain.run.manifest import MODEL as MANIFEST
from vpretrain.run.manifest import Damaged, verify
from vpretrain.system.errors import Fault, brief, user_error

CARD = "README.md"


@dataclass(frozen=True)
class Upload:
    """Files to upload, and their destination.

    Args:
        folder: the model folder.
        repo: ``OWNER/NAME``.
        private: whether only the owner sees it.
        files: size in bytes by file name, relative to ``folder``.
        paths: absolute paths of this machine that the card mentions.
    """

    folder: Path
    repo: str
    private: bool
    files: dict[str, int]
    paths: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Total size of all files."""
        return sum(self.files.values())


def upload_of(run: Path, repo: str, *, private: bool = True) -> Upload:
    """Returns the upload for a run; sends nothing, and does not use the network.

    Args:
        run: a folder that ``train`` finished.
        repo: ``OWNER/NAME``.
        private: whether only the owner will see it.

    Raises:
        UserError: the run is not finished, its model was modified or has no card, or the hub does
            not accept the repository's name.
    """
    if repo.count("/") != 1:
        message = "say whose repository this is"
        raise user_error("--to", message, value=repo, accepted="OWNER/NAME")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise user_error("--to", brief(error), value=repo) from None
    read_run(run)
    model = run / "model"
    try:
        if (run / MANIFEST).is_file():
            verify(model, run / MANIFEST)
    except Damaged as error:
        message = f"{error}; the same train command writes it again from the last checkpoint"
        raise user_error(str(model), message) from None
    if not (model / CARD).is_file():
        message = "a model without a card is of no use to anybody; write one"
        raise user_error(str(model / CARD), message, accepted="text, with the hub's YAML header")
    files = {
        path.relative_to(model).as_posix(): path.stat().st_size
        for path in sorted(model.rglob("*"))
        if path.is_file()
    }
    card = (model / CARD).read_text(encoding="utf-8", errors="replace")
    return Upload(model, repo, private, files, tuple(_absolute(card)))


def push(upload: Upload) -> str:
    """Uploads the model: creates the repository if missing, and replaces files of the same names.

    The token is taken from ``HF_TOKEN`` or ``hf auth login``.

    Returns:
        The URL of the model.

    Raises:
        UserError: there is no token, the hub rejects it, or the repository is there already and
            not as ``private`` says.
        Fault: the hub cannot be reached, or rejected the upload.
    """
    if get_token() is None:
        message = "the hub asks for a token; make one with write access at hf.co/settings/tokens"
        raise user_error("HF_TOKEN", message, accepted="HF_TOKEN=hf_..., or `hf auth login`")
    api = HfApi()
    with _explained(upload.repo):
        try:
            private = bool(api.model_info(upload.repo).private)
        except RepositoryNotFoundError:
            private = upload.private
        if private != upload.private:  # creating it again would not change who sees it
            who = "only its owner sees" if private else "everybody sees"
            message = f"this repository is there already, and {who} it"
            accepted = f"another name, or {'no ' if private else ''}--public"
            raise user_error("--to", message, value=upload.repo, accepted=accepted)
        api.create_repo(upload.repo, private=upload.private, exist_ok=True)
        return str(
            api.upload_folder(
                repo_id=upload.repo,
                folder_path=upload.folder,
                commit_message="Continued pretraining by vpretrain",
            ).repo_url
        )


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    """Context manager that turns errors of the hub into messages that say what to do."""
    try:
        yield
    except OfflineModeIsEnabled:
        message = "the hub is switched off; unset it"
        raise user_error("HF_HUB_OFFLINE", message, value="1") from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", 0)
        if status == 401:
            message = "the hub does not know this token; make another at hf.co/settings/tokens"
            raise user_error("HF_TOKEN", message) from None
        if status == 403:
            message = f"this token may not write to {repo}; take one with write access"
            raise user_error("HF_TOKEN", message, accepted="write access, to this owner") from None
        raise Fault(f"the hub did not take {repo}: {brief(error)}") from error
    except (HTTPError, ConnectionError) as error:
        raise Fault(f"the hub cannot be reached ({error}); run the same command again") from error


def _absolute(text: str) -> Iterator[str]:
    """Yields absolute paths of this machine that occur in a text; URLs are skipped."""
    yield from dict.fromkeys(re.findall(r"(?<![\w.:/])/(?:[\w.@+-]+/)+[\w.@+-]+", text))
