"""What the launching process tells the ranks, and what rank 0 tells it back."""

from pathlib import Path

from gradelora.artifacts import EncodedDataset, Frozen, canonical_json, sha256_text
from gradelora.config import TrainConfig

RESULT = "result.json"
FAILURE = "rank-failure.json"
PROGRESS = "progress.jsonl"
HISTORY = "history.json"


# A network file system may show another machine's new file late.
PATIENCE_S = 30.0
# Of the time that the others, who see it at once, wait for this process.
PATIENCE_SHARE = 0.3


class Origin(Frozen):
    """What a training is, whoever carries it out."""

    config: TrainConfig
    repo_id: str
    commit: str
    data_digest: str

    @property
    def identity(self) -> str:
        """What a checkpoint must agree on to be resumed from."""
        config = self.config.model_dump(mode="json")
        return sha256_text(canonical_json([config, self.repo_id, self.commit, self.data_digest]))


class Job(Frozen):
    """One training run; `out` is the stage's folder, `launcher_pid` the process without which it is pointless.

    `spent_s` are the seconds of earlier attempts, `started` is this one's start on the machine's
    monotonic clock.

    Each node has a file of its own, which differs in paths and pid alone.
    """

    config: TrainConfig
    snapshot: Path
    repo_id: str
    commit: str
    data: EncodedDataset
    out: Path
    dataloader_workers: int
    evaluate_rows: int
    budget_s: float | None
    spent_s: float
    started: float
    report_to: tuple[str, ...]
    launcher_pid: int
    nodes: int = 1
    collective_timeout_s: float = 600
    seal_every_s: float = 900

    @property
    def origin(self) -> Origin:
        """The training that this job carries out."""
        return Origin(config=self.config, repo_id=self.repo_id, commit=self.commit, data_digest=self.data.digest)

    @property
    def identity(self) -> str:
        """What a checkpoint must agree on to be resumed from."""
        return self.origin.identity

    @property
    def patience_s(self) -> float:
        """How long a rank waits for another machine's file."""
        return min(PATIENCE_S, PATIENCE_SHARE * self.collective_timeout_s)


class Result(Frozen):
    """The facts of the finished adapter."""

    trainable_parameters: int
    total_parameters: int
    steps: int
    final_loss: float
    chosen_step: int | None
