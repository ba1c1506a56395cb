"""How `upload_folder` and `create_commit` write: preupload, LFS batch, commit as NDJSON.

An upload ends as plain files in the branch's folder.
"""

import base64
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradelora.sandbox.hub.repository import LFS_FROM_BYTES, LFS_SUFFIXES, Commit

if TYPE_CHECKING:
    from gradelora.sandbox.hub.routes import HubHandler


def create(handler: "HubHandler", asked: dict[str, Any]) -> None:
    """`/api/repos/create`: an empty folder, 409 where there is one."""
    hub = handler.hub
    repo_id = f"{asked.get('organization') or 'loopback'}/{asked['name']}"
    url = f"{hub.url}/{repo_id}"
    if hub.repositories.exists(repo_id):
        handler.send_json({"error": "You already created this model repo", "url": url}, 409)
        return
    folder = hub.repositories.folder(repo_id)
    if not folder.resolve().is_relative_to(hub.repositories.root.resolve()):
        handler.send_error_code(400, "BadRequest", "Invalid repository name")
        return
    folder.mkdir(parents=True)
    if asked.get("visibility") == "private" or asked.get("private"):
        hub.access[repo_id] = "private"
    handler.send_json({"url": url, "name": repo_id, "id": repo_id})


def preupload(handler: "HubHandler", commit: Commit, asked: dict[str, Any]) -> None:
    """How each file shall be sent, and the oid of the one that it replaces."""
    files = []
    for file in asked["files"]:
        present = commit.blobs.get(file["path"])
        large = file["size"] >= LFS_FROM_BYTES or Path(file["path"]).suffix in LFS_SUFFIXES
        mode = "lfs" if large and handler.hub.uploads == "lfs" else "regular"
        oid = None
        if present is not None and (mode == "lfs") == present.lfs:
            oid = present.etag
        files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    handler.send_json({"files": files})


def batch(handler: "HubHandler", asked: dict[str, Any]) -> None:
    """Git LFS batch API: where to PUT what is not there yet."""
    objects = []
    for wanted in asked["objects"]:
        answer: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
        if not handler.hub.repositories.object(wanted["oid"]).exists():
            answer["actions"] = {"upload": {"href": f"{handler.hub.url}/lfs-upload/{wanted['oid']}"}}
        objects.append(answer)
    handler.send_json({"transfer": "basic", "objects": objects})


def store_object(handler: "HubHandler", sha256: str, body: bytes) -> None:
    """Keep an uploaded file by its hash; 400 where it has another."""
    if hashlib.sha256(body).hexdigest() != sha256:
        handler.send_error_code(400, "BadRequest", "The contents do not have the announced sha256")
        return
    target = handler.hub.repositories.object(sha256)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    part.write_bytes(body)
    part.replace(target)
    handler.send_json({})


def commit(handler: "HubHandler", repo_id: str, branch: str, parent: Commit, body: bytes) -> None:
    """Apply one commit: a header line, then a line a file."""
    repositories = handler.hub.repositories
    folder = repositories.folder(repo_id, branch)
    lines = [json.loads(line) for line in body.splitlines() if line]
    header = lines[0]["value"]
    if header.get("parentCommit") not in (None, parent.id):
        handler.send_error_code(412, "PreconditionFailed", "A commit has happened since. Please refresh and try again.")
        return
    for line in lines[1:]:
        target = folder / line["value"]["path"]
        if not Path(os.path.normpath(target)).is_relative_to(folder):
            handler.send_error_code(400, "BadRequest", f"Invalid path {line['value']['path']}")
            return
    for line in lines[1:]:
        _apply(handler, folder / line["value"]["path"], line)
    made = repositories.commit(repo_id, branch) or parent
    url = f"{handler.hub.url}/{repo_id}/commit/{made.id}"
    handler.send_json({"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""})


def _apply(handler: "HubHandler", target: Path, line: dict[str, Any]) -> None:
    """One line of a commit.  A new file replaces, so that hard links to the old one stay as they were."""
    value = line["value"]
    if line["key"] == "deletedFile":
        target.unlink(missing_ok=True)
    elif line["key"] == "deletedFolder":
        shutil.rmtree(target, ignore_errors=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        if line["key"] == "file":
            part.write_bytes(base64.b64decode(value["content"]))
        else:
            shutil.copyfile(handler.hub.repositories.object(value["oid"]), part)
        part.replace(target)
