"""A folder to a Hub repository: private unless said otherwise, resumed by calling it again.

huggingface_hub skips what the repository holds already, file by file, whichever way it sends.
What makes a repository loadable is committed last, so a half-sent model is none.
"""

from pathlib import Path

from huggingface_hub import CommitInfo, HfApi

from gradelora.artifacts import Frozen
from gradelora.config import Runtime
from gradelora.errors import BadConfig, GatedRepo, NotCached, RepoNotFound
from gradelora.hub import HubClient
from gradelora.push.folder import CARD

# Either names the weights beside it: transformers, PEFT and vLLM begin with one of them.
HEADS = ("config.json", "adapter_config.json")


class Pushed(Frozen):
    """Where a hand-over lies now: `repo_id` at `commit` of the Hub."""

    repo_id: str
    commit: str
    url: str
    private: bool
    files: int


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
    """Send all of `folder`; weights in commits of their own, before what names them.

    Raises BadConfig, HubUnavailable.
    """
    client = HubClient(runtime)
    api = check_target(client, repo_id, public=public)
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    head = next((name for name in HEADS[::-1] if name in names), None)
    _refuse_mixture(client, api, repo_id, head)
    _send(client, api, repo_id, folder, "Upload weights", left_out=[*HEADS, CARD])
    made = _send(client, api, repo_id, folder, "Upload model", left_out=[])
    return Pushed(
        repo_id=repo_id,
        commit=made,
        url=f"{client.endpoint}/{repo_id}",
        private=not public,
        files=len(names),
    )


def _send(client: HubClient, api: HfApi, repo_id: str, folder: Path, message: str, *, left_out: list[str]) -> str:
    """One pass over the folder; returns the commit."""

    def ask() -> CommitInfo:
        return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message, ignore_patterns=left_out)

    return client.call(f"{repo_id} upload", ask).oid


def _refuse_mixture(client: HubClient, api: HfApi, repo_id: str, head: str | None) -> None:
    """Raise BadConfig for a merged model over an adapter or the other way round: loaders would take either."""
    there = set(client.call(repo_id, lambda: api.list_repo_files(repo_id)))
    for other in HEADS:
        if other != head and other in there:
            raise BadConfig(f"push: {repo_id} holds {other} already, of another kind of model; name another --repo")
