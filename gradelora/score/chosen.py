"""Which adapter scores: the champion of a deployment, or one that is named; and what it was trained on.

Prompts must be those of its training, so how answers are encoded is read from the receipt of
the data that it was trained on, not from today's configuration.
"""

import json
from pathlib import Path

from gradelora.artifacts import Adapter, FileEntry, Frozen
from gradelora.champion import champion_of
from gradelora.config import BaseModelConfig, EncodeConfig, RunConfig, ScoreConfig
from gradelora.errors import BadConfig
from gradelora.mirror import champion_shared
from gradelora.receipt import RECEIPT, read_receipt, restored, verify
from gradelora.score.scored import KnownQuestions
from gradelora.store import Store
from gradelora.trained_on import trained_on

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


class Chosen(Frozen):
    """An adapter, the base that it belongs to, and how its prompts are made; `why` says how it was chosen."""

    adapter: Adapter
    base: BaseModelConfig
    encode: EncodeConfig
    known: KnownQuestions
    why: str

    def config(self, run: RunConfig, threshold: float) -> ScoreConfig:
        """What the score stage is keyed by.  Raises BadConfig."""
        if not 0 <= threshold <= 1:
            raise BadConfig(f"threshold={threshold:g} is no probability; give one from 0 to 1, e.g. 0.7")
        held = run.evaluate
        return ScoreConfig(
            encode=self.encode, weights=held.weights, precision=held.precision, device=held.device, threshold=threshold
        )


def choose(run: RunConfig, folder: Path | None) -> Chosen:
    """The adapter in `folder`, or else the champion of the deployment.

    Raises BadConfig where there is no champion or no adapter of this base, Damaged where its files are.
    """
    if folder is not None:
        adapter, data_digest = _named(folder, run)
        return _chosen(run, adapter, data_digest, f"the adapter in {folder}")
    with champion_shared(run.store, run.name):
        champion = champion_of(Store(run.store.root).root, run.name)
    if champion is None:
        raise BadConfig(f"{run.name} has no champion; run its finetune deployment, or name an adapter's folder")
    if not champion.adapter.path.is_dir():
        raise BadConfig(
            f"{champion.adapter.path}: the champion's adapter is not here; bring it with `gradelora mirror pull train`"
        )
    why = f"the champion of {run.name} since {champion.promoted}"
    return _chosen(run, champion.adapter, champion.data_digest, why)


def _chosen(run: RunConfig, adapter: Adapter, data_digest: str, why: str) -> Chosen:
    verify(adapter.path, adapter.files, deep=False)
    if adapter.repo_id != run.base.repo_id:
        raise BadConfig(f"{why} belongs to {adapter.repo_id}, not to base.repo_id={run.base.repo_id}; set that")
    base = BaseModelConfig(repo_id=adapter.repo_id, revision=adapter.commit)
    found = trained_on(Store(run.store.root).root, data_digest)
    if found is None:
        why += "; its training data are not in the store: prompts as configured now, whole points"
        return Chosen(adapter=adapter, base=base, encode=run.encode, known=KnownQuestions.of(None), why=why)
    data, encode = found
    return Chosen(adapter=adapter, base=base, encode=encode, known=KnownQuestions.of(data), why=why)


def _named(folder: Path, run: RunConfig) -> tuple[Adapter, str]:
    """A sealed adapter of a store, or a folder as PEFT writes it (only training knows its facts: they are 0)."""
    folder = folder.absolute()
    if (folder / RECEIPT).is_file():
        receipt = read_receipt(folder)
        return restored(receipt, folder, Adapter), receipt.inputs.get("data", "")
    try:
        settings = json.loads((folder / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
        files = tuple(FileEntry.of(folder / name, name) for name in ADAPTER_FILES)
    except (OSError, ValueError) as error:
        raise BadConfig(f"{folder}: no {' with '.join(ADAPTER_FILES)}; name the folder of an adapter") from error
    facts = {"trainable_parameters": 0, "total_parameters": 0, "steps": 0, "final_loss": 0.0}
    commit = settings.get("revision") or run.base.revision
    repo_id = settings.get("base_model_name_or_path") or run.base.repo_id
    return Adapter(path=folder, files=files, repo_id=repo_id, commit=commit, **facts), ""
