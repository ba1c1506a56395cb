"""How the adapter is trained."""

from typing import Literal, Self

from pydantic import Field, model_validator

from gradelora.artifacts import Frozen


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
