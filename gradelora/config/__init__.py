"""RunConfig: one YAML file is one frozen model, checked at construction.

A stage is keyed by its own section.  `runtime` holds what cannot change a result (paths,
workers, timeouts) and is part of no key.
"""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from gradelora.artifacts import Frozen, Split
from gradelora.config.runtime import Runtime, StoreConfig
from gradelora.config.train import LoraSettings, TrainConfig


class BaseModelConfig(Frozen):
    """The base model on the Hub."""

    repo_id: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name on the Hub")
    revision: str = Field("main", min_length=1, description="branch, tag or commit; resolved to a commit first")


class FetchConfig(Frozen):
    """Which files of the commit: the small ones that encoding needs come first, alone."""

    part: Literal["tokenizer", "everything"]


class DataConfig(Frozen):
    """Where the graded answers are."""

    files: tuple[str, ...] = Field(min_length=1, description="paths or globs of .json, .jsonl and .gz files")

    @field_validator("files", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class SplitConfig(Frozen):
    """Shares by question and by student, or by answer without one; appended data never change an item's side."""

    seed: int = 0
    validation_share: float = Field(0.1, ge=0, lt=0.5, description="of the students or answers: checkpoint choice")
    unseen_answers_share: float = Field(0.2, gt=0, lt=0.5, description="of the students or answers: the gate")
    unseen_questions_share: float = Field(0.0, ge=0, lt=0.5, description="of the questions, with all their answers")
    validation_files: tuple[str, ...] = Field((), description="globs of data file names; instead of the share")
    unseen_answers_files: tuple[str, ...] = Field((), description="globs of data file names; instead of the share")
    unseen_questions_files: tuple[str, ...] = Field((), description="globs of data file names; instead of the share")
    on_leak: Literal["withhold", "block"] = Field(
        "withhold",
        description="an answer on two sides: the less protected one takes no part, or the run is blocked",
    )


class ValidateConfig(Frozen):
    """What blocks the run and what is set aside."""

    max_quarantined_share: float = Field(0.05, ge=0, le=1, description="of all items; more blocks the run")
    max_file_bytes: int = Field(2**31, gt=0, description="a larger file is refused before it is read")
    complete_alignment: bool = Field(False, description="items must add up to the record's score")
    long_answer_chars: int = Field(4000, gt=0, description="a longer answer is warned of: about 1,000 tokens")
    split: SplitConfig = SplitConfig()


class EncodeConfig(Frozen):
    """How an item becomes tokens."""

    layout: Literal["harmony", "chat_template"] = Field(
        description="harmony for gpt-oss; else the model's own template"
    )
    instructions: str = Field(
        "You score a student's answer against the question's rubric as a trained human rater would.",
        min_length=1,
        description="the same for every item",
    )
    conversation_date: str = Field(
        "2025-08-05", pattern=r"^\d{4}-\d\d-\d\d$", description="pinned: ids must not change"
    )
    reasoning_effort: Literal["low", "medium", "high"] = "low"
    target: Literal["score", "score_and_feedback"] = "score"
    max_length: int = Field(1024, ge=64, le=131072, description="tokens of one item, target included")
    over_length: Literal["shorten", "quarantine"] = Field("shorten", description="an answer that does not fit")


class EvaluateConfig(Frozen):
    """Scoring by likelihood and agreement with the human raters."""

    splits: tuple[Split, ...] = Field(("unseen_answers", "unseen_questions"), min_length=1)
    device: Literal["cuda", "cpu"] = "cuda"
    weights: Literal["packed", "bf16"] = "packed"
    precision: Literal["bf16", "fp32"] = "bf16"
    resamples: int = Field(2000, ge=100, le=100_000, description="bootstrap, clustered by question")
    confidence_level: float = Field(0.95, gt=0.5, lt=1)
    seed: int = 0


class ScoreConfig(Frozen):
    """New answers, asked as those that the adapter was trained on (see gradelora.score.chosen)."""

    encode: EncodeConfig
    weights: Literal["packed", "bf16"]
    precision: Literal["bf16", "fp32"]
    device: Literal["cuda", "cpu"]
    threshold: float = Field(ge=0, le=1, description="probability below which a human should look")


class GateConfig(Frozen):
    """Promote only what is shown to agree better than the champion, or the base when there is none."""

    split: Split = "unseen_answers"
    margin: float = Field(0.0, ge=0, lt=1, description="the gain's lower bound must lie above this QWK")
    max_question_loss: float = Field(
        0.3, gt=0, le=2, description="QWK that a question or group of ten items may be shown to lose at most"
    )
    family_error: float = Field(
        0.1, gt=0, lt=0.5, description="chance that any question, or any group, refuses though none loses (Holm)"
    )
    expected_gain: float = Field(
        0.1, gt=0, le=1, description="QWK; the verdict says how surely it would pass; above the margin, decides nothing"
    )

    @model_validator(mode="after")
    def _worth_asking(self) -> Self:
        if self.expected_gain <= self.margin:
            raise ValueError(
                f"gate.expected_gain={self.expected_gain:g} can never pass gate.margin={self.margin:g}; raise it above"
            )
        return self


class MergeConfig(Frozen):
    """The optional merge, by default into the base's own format."""

    enabled: bool = False
    dtype: Literal["base", "bf16"] = Field("base", description="bf16: MXFP4 experts are written dequantised")
    min_delta_survival: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="what each expert's matrix must keep of its update when it is rounded to MXFP4 again:"
        " 1 all, 0 nothing; none: that is refused",
    )
    verify_items: int = Field(32, ge=0, description="evaluated items that the merged model scores again; 0 is none")
    max_shift: float = Field(
        0.1, gt=0, le=1, description="of log-probabilities, as a share of what the adapter changed in them"
    )
    max_changed_scores: float = Field(0.05, ge=0, le=1, description="share of the verified items with another score")


class MergeStageConfig(MergeConfig):
    """What keys the merge: its own section, and how evaluate loads the models that are compared."""

    device: Literal["cuda", "cpu"]
    weights: Literal["packed", "bf16"]
    precision: Literal["bf16", "fp32"]


class ReportConfig(Frozen):
    """What the HTML page shows."""

    show_student_text: bool = Field(False, description="the worst items with text; else by id alone")


class RunConfig(Frozen):
    """Everything that one run needs to know."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="of the deployment; the champion is kept by it")
    base: BaseModelConfig
    data: DataConfig
    validation: ValidateConfig = ValidateConfig()
    encode: EncodeConfig
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    gate: GateConfig = GateConfig()
    merge: MergeConfig = MergeConfig()
    report: ReportConfig = ReportConfig()
    store: StoreConfig
    runtime: Runtime = Runtime()

    @property
    def merging(self) -> MergeStageConfig:
        """The merge stage's settings: verified as evaluate scores, for its predictions are what is compared."""
        weights = "bf16" if self.merge.dtype == "bf16" else self.evaluate.weights
        as_evaluated = {"device": self.evaluate.device, "precision": self.evaluate.precision, "weights": weights}
        # Whether a run asks for it changes nothing in what comes out.
        return MergeStageConfig.model_validate(self.merge.model_dump() | as_evaluated | {"enabled": True})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.gate.split not in self.evaluate.splits:
            raise ValueError(f"gate.split={self.gate.split} is not evaluated; add it to evaluate.splits")
        if self.train.lora.target_parameters and self.evaluate.weights == "packed":
            raise ValueError("train.lora.target_parameters cannot be put on packed experts; set evaluate.weights=bf16")
        sides = self.validation.split
        if self.gate.split == "unseen_questions" and not (sides.unseen_questions_share or sides.unseen_questions_files):
            raise ValueError("gate.split=unseen_questions needs validation.split.unseen_questions_share above 0")
        if self.encode.max_length > self.train.tokens_per_row:
            raise ValueError(
                f"encode.max_length={self.encode.max_length} does not fit into "
                f"train.tokens_per_row={self.train.tokens_per_row}; raise the latter or lower the former"
            )
        if self.train.best != "last" and not (sides.validation_share or sides.validation_files):
            raise ValueError(
                f"train.best={self.train.best} needs validation items; "
                "set validation.split.validation_share above 0, or train.best=last"
            )
        if self.gate.split == "train":
            raise ValueError("gate.split=train would judge the adapter on what it learned; set unseen_answers")
        return self


__all__ = [
    "BaseModelConfig",
    "DataConfig",
    "EncodeConfig",
    "EvaluateConfig",
    "FetchConfig",
    "GateConfig",
    "LoraSettings",
    "MergeConfig",
    "MergeStageConfig",
    "ReportConfig",
    "RunConfig",
    "Runtime",
    "ScoreConfig",
    "SplitConfig",
    "StoreConfig",
    "TrainConfig",
    "ValidateConfig",
]
