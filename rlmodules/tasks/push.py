"""``task=push``: an exported model onto the Hugging Face hub, by ``huggingface_hub``.

All files travel in one commit: a hub that fails, or is lost on the way, keeps what it had.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
    get_token,
)
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

EXPORT = "model"
"""Where in its folder a run exports to."""
KINDS = (
    ("config.json", "model*.safetensors"),
    ("adapter_config.json", "adapter_model.safetensors"),
)
"""Of a whole model, and of an adapter."""
BOOKKEEPING = {"README.md", ".gitattributes"}
"""What a repository may hold that has no model yet."""


def push(
    repo: str,
    *,
    run: str | None = None,
    private: bool | None = None,
    exist_ok: bool = False,
    revision: str | None = None,
    commit_message: str = "Upload a model trained with rlmodules",
) -> str:
    """Upload what a run exported, as it lies there, in one commit.

    The hub is ``HF_ENDPOINT``'s, the token ``HF_TOKEN``'s or that of ``hf auth login``.

    Args:
        repo: ``user/name``; it is made if there is none.
        run: a run's folder, whose ``model/`` is taken, or an exported folder itself.
        private: of a new repository; null as ``push_to_hub``: public, unless the organisation's
            default is private.
        exist_ok: replace the files of a repository that holds a model; its history keeps them.
        revision: branch that is written to; null for the main one.
        commit_message: of the commit.

    Raises:
        ValueError: ``run`` is not given, or holds no export, or an adapter whose base nobody else
            can load; there is no token; the repository holds a model; or the hub did not take it.
    """
    if run is None:
        raise ValueError("what was chosen leaves open: run=... (a run's folder, or its export's)")
    folder = exported(Path(run))
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"repo={repo!r} is no name on a hub: {error}") from error
    if repo.count("/") != 1:
        raise ValueError(f"repo={repo!r}: say whose it is, repo=user/name")
    if get_token() is None:
        raise ValueError(
            "task=push needs a token of the hub that may write: `hf auth login`, or set HF_TOKEN"
        )
    api = HfApi()
    with _naming(folder, repo):
        held = _models_of(api, repo, revision)
    if held and not exist_ok:
        raise ValueError(
            f"repo={repo} holds a model already ({held[0]}): name another, or task.exist_ok=true to"
            " replace its files, which its history keeps"
        )
    with _naming(folder, repo):
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        # Not upload_folder, which may make several commits: what is half there would be loaded.
        api.create_commit(
            repo,
            operations=operations(folder, held),
            revision=revision,
            commit_message=commit_message,
        )
        visible = "private" if api.model_info(repo).private else "public"
    return f"Uploaded {folder} to {constants.ENDPOINT}/{repo}, which is {visible}"


def operations(
    folder: Path, held: Iterable[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """What makes of a repository that ``held`` these files one that has those of ``folder``."""
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    stale = sorted(set(held) - set(files))  # shards of what was there
    add = [CommitOperationAdd(name, path) for name, path in sorted(files.items())]
    return [*(CommitOperationDelete(name) for name in stale), *add]


@contextmanager
def _naming(folder: Path, repo: str) -> Iterator[None]:
    """Have what goes wrong with the hub be a sentence.

    Raises:
        ValueError: it does.
    """
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"{constants.ENDPOINT} did not take {folder} as {repo}: {reason(error)}. The files"
            " travel in one commit: it has all of them or none, and the same command tries again"
        ) from error


def exported(run: Path) -> Path:
    """The export that ``run`` is or has.

    Raises:
        ValueError: there is none that others could load.
    """
    folder = run / EXPORT if (run / EXPORT).is_dir() else run
    whole, adapter = (
        (folder / config).is_file() and any(folder.glob(weights)) for config, weights in KINDS
    )
    if not (whole or adapter):
        raise ValueError(
            f"run={run}: {folder} holds no exported model (config.json and model*.safetensors, or"
            " those of an adapter): name a run that came to its end, or the folder of an export"
        )
    if not (folder / "README.md").is_file():
        raise ValueError(f"run={run}: {folder} has no model card, README.md: it is no export of"
                         " rlmodules, write one that says what it is")  # fmt: skip
    try:
        ModelCard.load(folder / "README.md")
    except ValueError as error:
        raise ValueError(f"{folder / 'README.md'}: its metadata are not valid: {error}") from error
    if adapter:
        base = json.loads((folder / KINDS[1][0]).read_text()).get("base_model_name_or_path") or ""
        if base.count("/") != 1 or base.startswith(("/", ".")) or ":" in base:
            raise ValueError(
                f"run={run}: {folder} is an adapter on {base!r}, which is on no hub, so that nobody"
                " else could load it: export the whole model (export.merge=true)"
            )
    return folder


def _models_of(api: HfApi, repo: str, revision: str | None) -> list[str]:
    """Files of ``repo`` that are more than a new one's; none if there is no such repository."""
    try:
        siblings = api.model_info(repo, revision=revision).siblings or ()
    except HfHubHTTPError as error:
        if error.response.status_code == 404:  # of the repository, or of a branch that is new
            return []
        raise
    return sorted(file.rfilename for file in siblings if file.rfilename not in BOOKKEEPING)


def reason(error: Any) -> str:
    """Why an upload failed, in a line."""
    response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
    if response is not None and response.status_code in (401, 403):
        said = "it refused the token, which may not write there"
        return f"{said} (status {response.status_code})"
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    line = next(iter(str(cause).strip().splitlines()), "")
    return f"{type(cause).__name__}: {line}".rstrip(". ")
