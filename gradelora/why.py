"""Stage by stage: what the next run takes from the store, what it does anew, and why.

A stage whose inputs are all known is looked up as the run itself will look it up.  One that
waits for another's result can only be said to follow it: an earlier stage may run and give the
very bytes that it gave before.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from gradelora.artifacts import Artifact, BaseModel, DataFiles, Frozen
from gradelora.config import FetchConfig, MergeStageConfig, RunConfig, StoreConfig
from gradelora.encode import encode
from gradelora.errors import Damaged, MissingTool
from gradelora.evaluate import evaluate
from gradelora.fetch import fetch
from gradelora.merge import identity_of, merge
from gradelora.merge.journal import held_bytes
from gradelora.store import KEY_LENGTH, Receipt, Store, key_of, read_receipt
from gradelora.train import train
from gradelora.validate import validate

if TYPE_CHECKING:
    from gradelora.mirror import Mirror

SHOWN = 12
DATA = "data files"
GIVE, ABSENT = {DATA: "are those of"}, {DATA: "are not here"}
# Where a stage's settings stand in the configuration.
SECTIONS = {"validate": "validation", "fetch": "fetch"}


class Foreseen(Frozen):
    """One stage of the run to come.

    `follows`: it runs unless the stages that it waits for give again what `unless` names
    (stage -> digest).  `causes` name what differs from the newest artifact of the stage.
    """

    stage: str
    state: Literal["cached", "run", "follows"]
    causes: tuple[str, ...]
    unless: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Result:
    """What a stage will hand on: its digest is known where it is sealed, or was before it was damaged."""

    stage: str
    digest: str | None
    artifact: Artifact | None = None


@dataclass(frozen=True)
class Sealed:
    """A folder of the store with a readable receipt."""

    folder: Path
    receipt: Receipt


@dataclass(frozen=True)
class Foresight:
    """All stages in order, the artifacts that are there already, by label, and bytes of the merge to come."""

    stages: tuple[Foreseen, ...]
    artifacts: Mapping[str, Artifact]
    merged_bytes: int = 0


def foresee(run: RunConfig, base: BaseModel, data: DataFiles | None) -> Foresight:
    """What `Pipeline(run)` and the flow will find.  Nothing is written."""
    chain = _Chain(run.store)
    described = Result("base model", base.digest, base)
    tokenizer = chain.stage(fetch, FetchConfig(part="tokenizer"), base=described)
    snapshot = chain.stage(fetch, FetchConfig(part="everything"), base=described)
    files = Result(DATA, data.digest if data else None, data)
    records = chain.stage(validate, run.validation, data=files)
    encoded = chain.stage(encode, run.encode, records=records, tokenizer=tokenizer)
    adapter = chain.stage(train, run.train, snapshot=snapshot, data=encoded)
    report = chain.stage(evaluate, run.evaluate, snapshot=snapshot, adapter=adapter, data=encoded)
    merged_bytes = 0
    if run.merge.enabled:
        inputs = {"snapshot": snapshot, "adapter": adapter, "report": report, "data": encoded}
        chain.stage(merge, run.merging, **inputs)
        merged_bytes = chain.merged_bytes(run.merging, **inputs)
    return Foresight(tuple(chain.foreseen), chain.artifacts, merged_bytes)


class _Chain:
    """One walk along the stages."""

    def __init__(self, config: StoreConfig) -> None:
        # Store() would make the folder; a plan leaves no trace.
        self.store = Store(config.root) if config.root.is_dir() else None
        self.mirror = _mirror(config)
        self.foreseen: list[Foreseen] = []
        self.artifacts: dict[str, Artifact] = {}

    def stage(self, stage: Callable[..., Any], config: Frozen, **inputs: Result) -> Result:
        """Look one stage up; what it hands on."""
        part = getattr(config, "part", "")
        label = " ".join(filter(None, [stage.__name__, part]))
        sealed = [] if self.store is None else sorted_by_age(self.store.root, stage.__name__, part)
        if any(i.digest is None for i in inputs.values()):
            return self._unknown_inputs(label, stage, config, inputs, sealed)
        return self._known_inputs(label, stage, config, inputs, sealed)

    def merged_bytes(self, config: MergeStageConfig, snapshot: Result, adapter: Result, **judged: Result) -> int:
        """What earlier attempts have left of the merged model, of this key or of another verdict's."""
        if self.store is None or snapshot.digest is None or adapter.digest is None:
            return 0
        inputs = snapshot, adapter, *judged.values()
        known = all(result.digest for result in inputs)
        key = key_of(merge, config, cast("tuple[Artifact, ...]", inputs)) if known else "0" * KEY_LENGTH
        return held_bytes(
            self.store.building(merge.__name__, key), identity_of(config, snapshot.digest, adapter.digest)
        )

    def _known_inputs(
        self,
        label: str,
        stage: Callable[..., Any],
        config: Frozen,
        inputs: Mapping[str, Result],
        sealed: list[Sealed],
    ) -> Result:
        # The store asks an input for its digest alone.
        given = cast("tuple[Artifact, ...]", tuple(inputs.values()))
        digest = None
        try:
            found = self.store.find(stage, config, *given) if self.store else None
        except Damaged as damage:
            causes: tuple[str, ...] = (str(damage),)
            key = key_of(stage, config, given)
            # The stage is deterministic: what it gave once, it gives again.
            digest = next((s.receipt.digest for s in sealed if s.receipt.key == key), None)
        else:
            if found is not None:
                self._say(label, "cached", ("its inputs, settings and version are those of a sealed artifact",))
                self.artifacts[label] = found
                return Result(label, found.digest, found)
            causes = differences(stage, config, inputs, sealed)
        brought = self._mirrored(stage, key_of(stage, config, given))
        if brought is not None and self.mirror is not None:
            self._say(label, "cached", (f"it is brought from {self.mirror.url}",))
            return Result(label, brought)
        self._say(label, "run", causes + self._unfinished(stage, config, given))
        return Result(label, digest)

    def _unknown_inputs(
        self,
        label: str,
        stage: Callable[..., Any],
        config: Frozen,
        inputs: Mapping[str, Result],
        sealed: list[Sealed],
    ) -> Result:
        candidates = [s for s in reversed(sealed) if not _settings(stage, config, s.receipt) and _agrees(inputs, s)]
        if not candidates:
            self._say(label, "run", differences(stage, config, inputs, sealed))
            return Result(label, None)
        newest = candidates[0].receipt
        waits = {name: result for name, result in inputs.items() if result.digest is None}
        unless = tuple((result.stage, newest.inputs[name]) for name, result in waits.items())
        again = " and ".join(f"{name} {GIVE.get(name, 'gives')} {digest[:SHOWN]} again" for name, digest in unless)
        self._say(label, "follows", (f"runs unless {again}",), unless)
        return Result(label, None)

    def _mirrored(self, stage: Callable[..., Any], key: str) -> str | None:
        """The digest of an artifact that only the mirror holds."""
        text = None if self.mirror is None else self.mirror.receipt(stage.__name__, key)
        try:
            return None if text is None else Receipt.model_validate_json(text).digest
        except ValueError:
            return None

    def _unfinished(self, stage: Callable[..., Any], config: Frozen, given: tuple[Artifact, ...]) -> tuple[str, ...]:
        if self.store is None or not getattr(sys.modules[stage.__module__], "RESUMES", False):
            return ()
        folder = self.store.building(stage.__name__, key_of(stage, config, given))
        return ("it goes on from what an earlier attempt left",) if folder.is_dir() else ()

    def _say(
        self,
        label: str,
        state: Literal["cached", "run", "follows"],
        causes: tuple[str, ...],
        unless: tuple[tuple[str, str], ...] = (),
    ) -> None:
        if label == "merge" and state != "cached":
            causes = (*causes, "in the flow only if the gate promotes the adapter")
        self.foreseen.append(Foreseen(stage=label, state=state, causes=causes, unless=unless))


def _mirror(config: StoreConfig) -> "Mirror | None":
    """The mirror of a store; a plan does without one whose package is missing."""
    if config.mirror is None:
        return None
    from gradelora.mirror import mirror_of

    try:
        return mirror_of(config)
    except MissingTool:
        return None


def sorted_by_age(root: Path, stage: str, part: str = "") -> list[Sealed]:
    """Sealed folders of a stage with a readable receipt, the newest last."""
    found = []
    for folder in (root / stage).glob("[0-9a-f]*"):
        if len(folder.name) != KEY_LENGTH:
            continue
        try:
            receipt = read_receipt(folder)
        except Damaged:
            continue
        if receipt.config.get("part", "") == part:
            found.append(Sealed(folder, receipt))
    # `created` counts whole seconds.
    return sorted(found, key=lambda s: (s.receipt.created, (s.folder / "receipt.json").stat().st_mtime_ns))


def differences(
    stage: Callable[..., Any], config: Frozen, inputs: Mapping[str, Result], sealed: list[Sealed]
) -> tuple[str, ...]:
    """What differs from the newest artifact of the stage, each in one phrase."""
    if not sealed:
        return (f"the store holds no {stage.__name__} artifact yet",)
    newest = sealed[-1]
    causes = _settings(stage, config, newest.receipt)
    for name, result in inputs.items():
        before = newest.receipt.inputs.get(name)
        if result.digest is None:
            causes.append(f"{result.stage} {ABSENT.get(result.stage, 'runs first')}")
        elif result.digest != before:
            causes += _input_causes(name, result, newest)
    return tuple(causes) or (f"its artifact {newest.receipt.key[:SHOWN]} is there no more",)


def _settings(stage: Callable[..., Any], config: Frozen, receipt: Receipt) -> list[str]:
    """Version and settings, then and now."""
    causes = []
    version = sys.modules[stage.__module__].VERSION
    if version != receipt.version:
        causes.append(f"VERSION of {stage.__name__}: {receipt.version} -> {version}")
    section = SECTIONS.get(stage.__name__, stage.__name__)
    before, now = dict(_flat(receipt.config)), dict(_flat(config.model_dump(mode="json")))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            causes.append(f"{section}.{name}: {before.get(name)} -> {now.get(name)}")
    return causes


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", inner


def _agrees(inputs: Mapping[str, Result], sealed: Sealed) -> bool:
    return all(r.digest is None or sealed.receipt.inputs.get(name) == r.digest for name, r in inputs.items())


def _input_causes(name: str, result: Result, newest: Sealed) -> list[str]:
    """An input with another digest than the newest artifact had: what of it is another."""
    if isinstance(result.artifact, DataFiles):
        return _data_causes(result.artifact, newest.folder) or ["the data files are named otherwise"]
    if isinstance(result.artifact, BaseModel):
        before = (newest.receipt.artifact.get("repo_id"), newest.receipt.artifact.get("commit"))
        base = result.artifact
        if before[0] != base.repo_id:
            return [f"base.repo_id: {before[0]} -> {base.repo_id}"]
        if before[1] != base.commit:
            return [f"model revision: commit {str(before[1])[:SHOWN]} -> {base.commit[:SHOWN]}"]
        return ["what the Hub says about the same commit differs"]
    return [f"{name}: another result of {result.stage}"]


def _data_causes(data: DataFiles, folder: Path) -> list[str]:
    """The files by bytes, against those that the newest validation read."""
    try:
        findings = json.loads((folder / "findings.json").read_text(encoding="utf-8"))
        before = {source["name"]: source["sha256"] for source in findings["sources"]}
    except (OSError, ValueError, KeyError, TypeError):
        return ["the data files differ"]
    now = {entry.name: entry.sha256 for entry in data.files}
    causes = [f"data file {name}: changed" for name in sorted(now) if name in before and now[name] != before[name]]
    causes += [f"data file {name}: new" for name in sorted(now.keys() - before.keys())]
    return causes + [f"data file {name}: gone" for name in sorted(before.keys() - now.keys())]
