"""The Hub's own addresses, as huggingface_hub 2.4 calls them (hf_api.py, file_download.py, lfs.py)."""

# ruff: noqa: N802, N815 - http.server names its methods do_GET and so on.
import json
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, quote

from gradelora.sandbox.hub import uploads
from gradelora.sandbox.hub.faults import Place
from gradelora.sandbox.hub.handler import Handler
from gradelora.sandbox.hub.repository import Blob, Commit, lfs_pointer

EPOCH = "1970-01-01T00:00:00.000Z"


class HubHandler(Handler):
    """Information, trees, files, and uploads."""

    side = "hub"

    def do_GET(self) -> None:
        """Whatever only reads."""
        match self.route:
            case ["api", "whoami-v2"]:
                self._whoami()
            case ["api", "models", owner, name]:
                self._with_commit(f"{owner}/{name}", "main", self._info)
            case ["api", "models", owner, name, "revision", revision]:
                self._with_commit(f"{owner}/{name}", revision, self._info)
            case ["api", "models", owner, name, "tree", revision, *folder]:
                self._with_commit(f"{owner}/{name}", revision, lambda r, c: self._tree(c, "/".join(folder)))
            case ["api", "models", owner, name, "refs"]:
                self._with_commit(f"{owner}/{name}", "main", self._refs)
            case [owner, name, "resolve", revision, *path] if path:
                self._with_commit(f"{owner}/{name}", revision, lambda r, c: self._file(c, "/".join(path)))
            case _:
                self.send_error_code(404, "NotFound", f"Nothing is served at {self.path}")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Paths-info, and what an upload asks before it sends."""
        body = self.read_body()
        match self.route:
            case ["api", "models", owner, name, "paths-info", revision]:
                self._with_commit(f"{owner}/{name}", revision, lambda r, c: self._paths_info(c, body))
            case ["api", "validate-yaml"]:
                self.send_json({"warnings": [], "errors": []})
            case ["api", "repos", "create"]:
                self._writing(lambda: uploads.create(self, json.loads(body)))
            case ["api", "models", owner, name, "preupload", revision]:
                answer = lambda r, c: uploads.preupload(self, c, json.loads(body))  # noqa: E731
                self._writing(lambda: self._with_commit(f"{owner}/{name}", revision, answer))
            case ["api", "models", owner, name, "commit", revision]:
                answer = lambda r, c: uploads.commit(self, r, revision, c, body)  # noqa: E731
                self._writing(lambda: self._with_commit(f"{owner}/{name}", revision, answer))
            case [_, name, "info", "lfs", "objects", "batch"] if name.endswith(".git"):
                self._writing(lambda: uploads.batch(self, json.loads(body)))
            case _:
                self.send_error_code(404, "NotFound", f"Nothing is served at {self.path}")

    def do_PUT(self) -> None:
        """The contents of a large file."""
        match self.route:
            case ["lfs-upload", sha256]:
                body = self.read_upload()
                if body is not None:
                    uploads.store_object(self, sha256, body)
            case _:
                self.read_body()
                self.send_error_code(404, "NotFound", f"Nothing is served at {self.path}")

    def _authenticated(self) -> bool:
        return self.hub.token is not None and self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _writing(self, answer: Callable[[], None]) -> None:
        if self.hub.token is not None and not self._authenticated():
            self.send_error_code(401, "Unauthorized", "Invalid credentials in Authorization header")
        else:
            answer()

    def _whoami(self) -> None:
        if self._authenticated() or (self.hub.token is None and self.headers.get("Authorization")):
            self.send_json({"type": "user", "id": "0", "name": "loopback", "orgs": [], "auth": {}})
        else:
            self.send_error_code(401, "Unauthorized", "Invalid credentials in Authorization header")

    def _with_commit(self, repo_id: str, revision: str, answer: Callable[[str, Commit], None]) -> None:
        """Answer for a repository's commit, or say as the Hub does why not."""
        access = self.hub.access.get(repo_id)
        if not self.hub.repositories.exists(repo_id) or (access == "private" and not self._authenticated()):
            # The Hub hides what a token may not see: 401 without one, 404 with another's.
            status = 404 if self.headers.get("Authorization") else 401
            self.send_error_code(status, "RepoNotFound", "Repository not found")
            return
        # A gated repository's description is public; its files are not.
        if access == "gated" and self.route[0] != "api" and not self._authenticated():
            status = 403 if self.headers.get("Authorization") else 401
            self.send_error_code(status, "GatedRepo", f"Access to model {repo_id} is restricted.")
            return
        commit = self.hub.repositories.commit(repo_id, revision)
        if commit is None:
            self.send_error_code(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        answer(repo_id, commit)

    def _shown(self, name: str) -> str:
        return self.hub.spoofed.get(name, name)

    def _info(self, repo_id: str, commit: Commit) -> None:
        with_blobs = "blobs" in self.query
        siblings = [self._sibling(blob) if with_blobs else {"rfilename": name} for name, blob in commit.blobs.items()]
        access = self.hub.access.get(repo_id)
        facts = {
            "_id": commit.id[:24],
            "id": repo_id,
            "modelId": repo_id,
            "author": repo_id.split("/")[0],
            "sha": commit.id,
            "private": access == "private",
            "gated": "manual" if access == "gated" else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "createdAt": EPOCH,
            "lastModified": EPOCH,
            "siblings": siblings,
        }
        self.send_json(facts)

    def _sibling(self, blob: Blob) -> dict[str, Any]:
        sibling = {"rfilename": self._shown(blob.name), "size": blob.size, "blobId": blob.git_sha1}
        if blob.lfs:
            pointer = len(lfs_pointer(blob.sha256, blob.size))
            sibling["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": pointer}
        return sibling

    def _entry(self, blob: Blob) -> dict[str, Any]:
        entry = {"type": "file", "path": self._shown(blob.name), "size": blob.size, "oid": blob.git_sha1}
        if blob.lfs:
            pointer = len(lfs_pointer(blob.sha256, blob.size))
            entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": pointer}
        return entry

    def _tree(self, commit: Commit, folder: str) -> None:
        """Files and folders below `folder`, a page at a time (Link: rel=next)."""
        recursive = self.query.get("recursive", "").lower() in ("true", "1")
        inside = [b for b in commit.blobs.values() if not folder or b.name.startswith(f"{folder}/")]
        depth = len(PurePosixPath(folder).parts) if folder else 0
        entries: dict[str, dict[str, Any]] = {}
        for blob in inside:
            parts = PurePosixPath(blob.name).parts
            deepest = len(parts) if recursive else min(len(parts), depth + 2)
            for end in range(depth + 1, min(deepest, len(parts) - 1) + 1):
                path = "/".join(parts[:end])
                entries.setdefault(path, {"type": "directory", "path": path, "size": 0, "oid": commit.id})
            if recursive or len(parts) == depth + 1:
                entries[blob.name] = self._entry(blob)
        if folder and not inside:
            self.send_error_code(404, "EntryNotFound", f"{folder} does not exist")
            return
        first = int(self.query.get("cursor", "0"))
        page = list(entries.values())[first : first + self.hub.page_entries]
        headers = {}
        if first + len(page) < len(entries):
            path, _, _ = self.path.partition("?")
            more = f"recursive={recursive}&cursor={first + len(page)}"
            headers["Link"] = f'<{self.hub.url}{path}?{more}>; rel="next"'
        self.send_json(page, headers=headers)

    def _paths_info(self, commit: Commit, body: bytes) -> None:
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode()).get("paths", [])
        self.send_json([self._entry(commit.blobs[p]) for p in paths if p in commit.blobs])

    def _refs(self, repo_id: str, commit: Commit) -> None:
        branches = []
        for name in self.hub.repositories.branches(repo_id):
            found = self.hub.repositories.commit(repo_id, name) or commit
            branches.append({"name": name, "ref": f"refs/heads/{name}", "targetCommit": found.id})
        self.send_json({"branches": branches, "converts": [], "tags": [], "pullRequests": []})

    def _file(self, commit: Commit, path: str) -> None:
        """A small file itself; for a large one a signed link to the CDN."""
        headers = {"X-Repo-Commit": commit.id}
        true_names = {shown: name for name, shown in self.hub.spoofed.items()}
        blob = commit.blobs.get(true_names.get(path, path))
        if blob is None:
            self.send_error_code(404, "EntryNotFound", f"{path} does not exist", headers)
            return
        headers["ETag"] = f'"{blob.etag}"'
        headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(PurePosixPath(path).name)}"
        if blob.lfs:
            linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
            self.send_redirect(self.hub.signed_link(blob.sha256), {**headers, **linked})
        else:
            place: Place = "head" if self.command == "HEAD" else "resolve"
            self.send_blob(place, blob, self.hub.repositories.object(blob.sha256), headers)
