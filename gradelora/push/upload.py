"""A folder to a Hub repository: private unless said otherwise, in one commit, resumed by calling it again.

Contents go ahead of the commit that names them, so a half-sent model is none, and one that is
replaced is never mixed with its successor.  What the Hub holds already is not sent twice.
"""

import fnmatch
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelInfo

from gradelora.artifacts import Frozen
from gradelora.config import Runtime
from gradelora.errors import BadConfig, GatedRepo, NotCached, RepoNotFound
from gradelora.hub import HubClient
from gradelora.hub.names import SMALL

# Either names the weights beside it: transformers, PEFT and vLLM begin with one of them.
HEADS = ("config.json", "adapter_config.json")
# What an earlier push may have left; whatever else lies in a repository is somebody's own.
REPLACED = (*SMALL, "*.safetensors", "adapter_config.json", "history.json", "delta_survival.jsonl")


class Pushed(Frozen):
    """Where a hand-over lies now: `repo_id` at `commit` of the Hub; `removed` is what an earlier one had more."""

    repo_id: str
    commit: str
    url: str
    private: bool
    files: int
    removed: tuple[str, ...]


def check_target(client: HubClient, repo_id: str, *, public: bool) -> HfApi:
    """Create the repository where there is none; the first request of a push.

    Raises BadConfig without a token that may write there, or where the repository is public
    and should not be; HubUnavailable.
    """
    if not client.token:
        raise BadConfig(f"push: set HF_TOKEN to a token that may write to {repo_id}")
    api = HfApi(endpoint=client.endpoint, token=client.token)
    try:
        client.call(f"{repo_id} creation", lambda: api.create_repo(repo_id, private=not public, exist_ok=True))
        info = client.call(repo_id, lambda: api.model_info(repo_id, timeout=client.timeout_s))
    except NotCached as error:
        raise BadConfig("push: HF_HUB_OFFLINE is set; unset it, or write a folder with --to-folder") from error
    except (GatedRepo, RepoNotFound) as error:
        raise BadConfig(
            f"push: {client.endpoint} refused to write {repo_id}; set HF_TOKEN to a token that may"
        ) from error
    if not info.private and not public:
        raise BadConfig(f"push: {repo_id} is public; say --public if that is meant, or name another --repo")
    return api


def upload(folder: Path, repo_id: str, *, public: bool, runtime: Runtime) -> Pushed:
    """Send all of `folder`, then commit it in one piece with the removal of what an earlier push had more.

    Raises BadConfig, HubUnavailable, HubRefused.
    """
    client = HubClient(runtime)
    api = check_target(client, repo_id, public=public)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    # The same objects in every attempt: they hold the hashes of 65 GB.
    additions = [CommitOperationAdd(name, folder / name) for name in names]
    _there(client, api, repo_id, names)
    client.call(f"{repo_id} upload", lambda: api.preupload_lfs_files(repo_id, additions))

    def commit() -> tuple[CommitInfo, ModelInfo, list[str]]:
        # Asked anew in each attempt: the one before may have arrived, and only its answer was lost.
        info = _there(client, api, repo_id, names)
        strays = sorted(name for name in _listed(info) - set(names) if _is_replaced(name))
        operations = [*additions, *(CommitOperationDelete(name, is_folder=False) for name in strays)]
        made = api.create_commit(repo_id, operations, commit_message="Upload model", parent_commit=info.sha)
        return made, info, strays

    made, info, strays = client.call(f"{repo_id} commit", commit)
    return Pushed(
        repo_id=repo_id,
        commit=made.oid,
        url=f"{client.endpoint}/{repo_id}",
        private=bool(info.private),
        files=len(names),
        removed=tuple(strays),
    )


def _there(client: HubClient, api: HfApi, repo_id: str, names: list[str]) -> ModelInfo:
    """What the repository holds.  Raises BadConfig for a model of another kind: loaders would take either."""
    info = client.call(repo_id, lambda: api.model_info(repo_id, timeout=client.timeout_s))
    for other in HEADS:
        if other in _listed(info) - set(names):
            raise BadConfig(f"push: {repo_id} holds {other} already, of another kind of model; name another --repo")
    return info


def _listed(info: ModelInfo) -> set[str]:
    return {sibling.rfilename for sibling in info.siblings or ()}


def _is_replaced(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in REPLACED)
