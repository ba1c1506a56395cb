"""What the launching process tells the ranks, and what rank 0 tells it back."""

from pathlib import Path

from gradelora.artifacts import Frozen, canonical_json, sha256_text
from gradelora.config import TrainConfig

RESULT = "result.json"
FAILURE = "rank-failure.json"
PROGRESS = "progress.jsonl"
HISTORY = "history.json"


class Job(Frozen):
    """One training run; `out` is the stage's folder, `launcher_pid` the process without which it is pointless."""

    config: TrainConfig
    snapshot: Path
    repo_id: str
    commit: str
    data: Path
    data_digest: str
    pad_token_id: int
    out: Path
    dataloader_workers: int
    launcher_pid: int

    @property
    def identity(self) -> str:
        """What a checkpoint must agree on to be resumed from."""
        facts = [self.config.model_dump(mode="json"), self.repo_id, self.commit, self.data_digest]
        return sha256_text(canonical_json(facts))


class Result(Frozen):
    """The facts of the finished adapter."""

    trainable_parameters: int
    total_parameters: int
    steps: int
    final_loss: float
