"""RunConfig: one YAML file is one frozen model, checked at construction.

A stage is keyed by its own section.  `runtime` holds what cannot change a result (paths,
workers, timeouts) and is part of no key.
"""

from pathlib import Path
from typing import Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from gradelora.artifacts import Frozen, Split


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


class LoraSettings(Frozen):
    """The adapter: Hu et al. 2021, as PEFT spells it."""

    r: int = Field(8, ge=1, le=1024)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    target_modules: tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj"), description="linear layers, by the last part of their names"
    )
    target_parameters: tuple[str, ...] = Field(
        (), description="expert weights: mlp.experts.gate_up_proj, mlp.experts.down_proj; weights=bf16, dropout=0"
    )
    use_rslora: bool = False

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if not self.target_modules and not self.target_parameters:
            raise ValueError("target_modules and target_parameters are both empty; name what the adapter changes")
        if self.target_parameters and self.dropout:
            raise ValueError(
                f"target_parameters add to a weight itself, where dropout={self.dropout:g} has no place; set dropout=0"
            )
        return self


class TrainConfig(Frozen):
    """DeepSpeed LoRA training.  An optimizer step sees processes x accumulation x rows x answers_per_row answers."""

    weights: Literal["packed", "bf16"] = Field("packed", description="packed: experts stay MXFP4")
    parallel: Literal["zero2", "zero3", "layers"] = "zero2"
    processes: int = Field(2, ge=1, description="ranks of all nodes; one a GPU, or one for all GPUs with layers")
    device: Literal["cuda", "cpu"] = "cuda"
    precision: Literal["bf16", "fp32"] = Field("bf16", description="of activations and dequantised weights")
    lora: LoraSettings = LoraSettings()
    learning_rate: float = Field(2e-4, gt=0, lt=1)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(2, ge=0)
    weight_decay: float = Field(0.0, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    epochs: float = Field(3, gt=0)
    max_steps: int | None = Field(None, ge=1, description="optimizer steps; ends the run before epochs do")
    sharing: Literal["prefix", "off"] = Field("prefix", description="answers to one question share its tokens in a row")
    answers_per_row: int = Field(3, ge=1, le=64)
    tokens_per_row: int = Field(4096, ge=64, description="a row takes no further answer beyond this; bounds memory")
    micro_batch_rows: int = Field(1, ge=1, description="rows a rank and micro-step")
    accumulation: int = Field(4, ge=1, description="micro-steps an optimizer step")
    gradient_checkpointing: bool = False
    expert_chunk: int = Field(0, ge=0, description="packed: experts dequantised at a time; 0 is all of a layer")
    reduce_bucket_elements: int = Field(500_000_000, ge=1000, description="DeepSpeed's reduce and allgather buckets")
    gathered_elements: int = Field(
        1_000_000_000, ge=0, description="zero3: parameters kept gathered beyond the layer at work; speed for memory"
    )
    save_every: float = Field(0.25, gt=0, le=1, description="share of the run between sealed checkpoints")
    evaluate_every: float = Field(0.25, gt=0, le=1, description="share of the run between validation losses")
    best: Literal["last", "validation_loss", "validation_qwk"] = Field(
        "last", description="whose adapter comes out: the last step's, or that of the best evaluation"
    )
    patience: int | None = Field(None, ge=1, description="evaluations without a better one after which training ends")
    keep_checkpoints: int = Field(2, ge=1)
    launcher: Literal["torchrun", "deepspeed"] = "torchrun"
    start_from: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="sha256 of the manifest.json of another world size's checkpoint"
    )
    seed: int = 0

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.weights == "packed" and self.parallel == "zero3":
            raise ValueError("parallel=zero3 cannot shard packed MXFP4 weights; set parallel=zero2 or weights=bf16")
        if self.weights == "packed" and self.lora.target_parameters:
            raise ValueError("lora.target_parameters train on experts that are not packed; set weights=bf16")
        if self.parallel == "layers" and self.processes != 1:
            raise ValueError(f"parallel=layers is one process, not {self.processes}; set processes=1")
        if self.sharing == "off" and self.answers_per_row != 1:
            raise ValueError(f"sharing=off means one answer a row, not {self.answers_per_row}; set answers_per_row=1")
        if self.patience is not None and self.best == "last":
            raise ValueError("patience needs to know what is better; set best=validation_loss or best=validation_qwk")
        if self.best == "validation_qwk" and self.parallel == "zero3":
            raise ValueError(
                "best=validation_qwk scores whole answers, which sharded weights cannot; "
                "set best=validation_loss, or parallel=zero2 or layers"
            )
        return self


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
    threshold: float = Field(ge=0, le=1, description="confidence below which a human should look")


class GateConfig(Frozen):
    """Promote only what is shown to agree better than the champion, or the base when there is none."""

    split: Split = "unseen_answers"
    margin: float = Field(0.0, ge=0, lt=1, description="the gain's lower bound must lie above this QWK")
    max_question_loss: float = Field(0.3, gt=0, le=2, description="QWK that a single question may lose at most")
    expected_gain: float = Field(
        0.1, gt=0, le=1, description="QWK; the verdict says how surely these items would show it; decides nothing"
    )


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


class StoreConfig(Frozen):
    """Where sealed artifacts are kept, and where a copy of them is."""

    root: Path
    mirror: str | None = Field(
        None,
        pattern=r"^(s3|gs|gcs|az|abfs|file)://[^?#\s]+$",
        description="an fsspec URL (s3://, gs://, az://, file://) to which sealed artifacts, checkpoints and the"
        " champion are copied; credentials come from the environment",
    )
    mirror_wait_s: float = Field(600, ge=0, description="how long a run's end waits for uploads")

    @field_validator("mirror")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        if value and urlsplit(value).password is not None:
            raise ValueError("a mirror's URL holds no password; set the backend's environment variables, e.g. AWS_*")
        return value


class Runtime(Frozen):
    """What cannot change a result: part of no key."""

    hub_endpoint: str | None = Field(None, description="default: HF_ENDPOINT, then the Hub")
    hub_cache: Path | None = Field(None, description="default: HF_HUB_CACHE, then HF_HOME/hub")
    hub_timeout_s: float = Field(30, gt=0)
    hub_retries: int = Field(5, ge=0)
    fetch_engine: Literal["auto", "hf_transfer", "http", "xet", "stock"] = Field(
        "auto",
        description="auto: hf_transfer for large files where the cache's file system has holes, else http;"
        " stock: huggingface_hub's own client; xet: the same, refused where hf_xet cannot be used",
    )
    fetch_connections: int = Field(8, ge=1, le=64, description="of hf_transfer and http; hosts cap each one")
    fetch_stall_s: float = Field(30, gt=0, description="a connection that brings nothing for so long is replaced")
    encode_workers: int = Field(1, ge=1)
    dataloader_workers: int = Field(0, ge=0)
    evaluate_rows: int = Field(4, ge=1, description="rows a forward pass; memory, not results")
    evaluate_processes: int | None = Field(
        None,
        ge=1,
        description="each with a copy of the model and its share of the answers; default: one a GPU, 1 on CPU",
    )
    train_deadline_s: float = Field(7 * 24 * 3600, gt=0)
    threads: int | None = Field(None, ge=1, description="CPU threads a process; default cores / processes")
    nodes: int = Field(1, ge=1, description="machines that train together, each running the same command")
    node_rank: int | None = Field(
        None, ge=0, description="of this machine; default: its line of hostfile, SLURM_NODEID or JOB_COMPLETION_INDEX"
    )
    rendezvous: str | None = Field(
        None, pattern=r"^[\w.-]+(:\d+)?$", description="HOST or HOST:PORT of node 0; default: the first of hostfile"
    )
    hostfile: Path | None = Field(None, description="a line `NAME slots=RANKS` a machine, node 0 first; tells nodes")
    node_timeout_s: float = Field(600, gt=0, description="how long the nodes wait for each other at the start")
    collective_timeout_s: float = Field(600, gt=0, description="an exchange between ranks that takes longer has failed")
    start_checkpoint: Path | None = Field(None, description="the folder that train.start_from names by its hash")
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = Field(
        (), description="training's figures also go there; their JSON lines are always in aside/progress.jsonl"
    )
    price_per_hour: float | None = Field(None, ge=0, description="of the whole machine, in your currency")
    budget_hours: float | None = Field(None, gt=0, description="training stops sealed at the last step that fits")
    budget_cost: float | None = Field(None, gt=0, description="the same in your currency; needs price_per_hour")

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if self.budget_cost is not None and not self.price_per_hour:
            raise ValueError("budget_cost needs the machine's price; set price_per_hour, or budget_hours instead")
        return self

    @property
    def budget_s(self) -> float | None:
        """Seconds that training may take, the smaller of the two budgets; None: no bound."""
        hours = [] if self.budget_hours is None else [self.budget_hours]
        if self.budget_cost is not None and self.price_per_hour:
            hours.append(self.budget_cost / self.price_per_hour)
        return 3600 * min(hours) if hours else None


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
        if self.gate.split not in get_args(Split)[1:]:
            raise ValueError("gate.split=train would judge the adapter on what it learned; set unseen_answers")
        return self
