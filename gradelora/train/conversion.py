"""Go on from a sealed checkpoint that another number of processes wrote: DeepSpeed's universal conversion.

The result is close to, and not bit for bit, what the first number of processes would have given:
sums run in another order and dropout draws anew.  So it never happens by itself: the checkpoint's
own hash stands in `train.start_from`, takes part in the key, and history.json says at which step.
"""

import json
import shutil
from pathlib import Path

from gradelora import launch
from gradelora.artifacts import ASIDE, sha256_file
from gradelora.config import TrainConfig
from gradelora.errors import BadConfig
from gradelora.train import seals
from gradelora.train.job import Job, Origin

# What may differ from the run that wrote the checkpoint: how its steps are spread and carried out.
FREE = {
    "start_from",
    "processes",
    "accumulation",
    "micro_batch_rows",
    "launcher",
    "weights",
    "gradient_checkpointing",
    "expert_chunk",
    "reduce_bucket_elements",
    "gathered_elements",
    "save_every",
    "keep_checkpoints",
}


def start(job: Job, checkpoint: Path | None, env: dict[str, str]) -> None:
    """Make `train.start_from` the first checkpoint of this training, unless it has some of its own.

    Raises BadConfig where `checkpoint` is not that one, is damaged, or belongs to another training.
    """
    if job.config.start_from is None or any((job.out / seals.FOLDER).glob(f"step-*/{seals.MANIFEST}")):
        return
    if checkpoint is None:
        raise BadConfig(
            "train.start_from names a checkpoint by its hash; runtime.start_checkpoint must say in which folder it lies"
        )
    manifest = _checked(job, checkpoint)
    print(f"converting {checkpoint.name} of {manifest.world_size} processes for {job.config.processes}", flush=True)
    folder = seals.folder_of(job.out / seals.FOLDER, manifest.step)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in [entry.name for entry in manifest.files if "/" not in entry.name]:
        # Random states belong to ranks that are no more.
        if not name.startswith("rng_state"):
            shutil.copy2(checkpoint / name, folder / name)
    _note(folder / seals.TRAINER_STATE, manifest, job.config)
    step = f"global_step{manifest.step}"
    folders = ["--input_folder", str(checkpoint / step), "--output_folder", str(folder / step)]
    launch.run(
        launch.python("-m", "deepspeed.checkpoint.ds_to_universal", *folders, "--inject_missing_state"),
        log=job.out / ASIDE / "conversion.log",
        env=env,
    )
    seals.seal(
        folder,
        step=manifest.step,
        world_size=job.config.processes,
        identity=job.identity,
        origin=job.origin,
        universal=True,
    )


def _checked(job: Job, checkpoint: Path) -> seals.Manifest:
    """The manifest of a checkpoint from which this training can go on."""
    path = checkpoint / seals.MANIFEST
    if not path.is_file() or sha256_file(path) != job.config.start_from:
        raise BadConfig(f"{path} is not the checkpoint that train.start_from={job.config.start_from} names")
    manifest = seals.read(checkpoint)
    why = seals.fault(checkpoint, world_size=manifest.world_size, identity=manifest.identity)
    if why or manifest.origin is None:
        raise BadConfig(f"{why or path}; take an older checkpoint")
    differing = _differing(manifest.origin, job.origin)
    if differing:
        raise BadConfig(
            f"{checkpoint} is of another training: {', '.join(differing)} differ; "
            "change them back, or train from the beginning without train.start_from"
        )
    return manifest


def _differing(theirs: Origin, ours: Origin) -> list[str]:
    """What keeps the checkpoint's training from being this one, with its values."""
    found = [
        f"{name} ({getattr(theirs, name)}, now {getattr(ours, name)})"
        for name in ("repo_id", "commit", "data_digest")
        if getattr(theirs, name) != getattr(ours, name)
    ]
    found += [
        f"train.{name} ({getattr(theirs.config, name)}, now {getattr(ours.config, name)})"
        for name in TrainConfig.model_fields
        if name not in FREE and getattr(theirs.config, name) != getattr(ours.config, name)
    ]
    rows = [config.processes * config.accumulation * config.micro_batch_rows for config in (theirs.config, ours.config)]
    if rows[0] != rows[1]:
        found.append(f"rows a step ({rows[0]}, now {rows[1]}: processes x accumulation x micro_batch_rows)")
    if "layers" in (theirs.config.parallel, ours.config.parallel):
        found.append("DeepSpeed (parallel=layers keeps its checkpoints without it)")
    return found


def _note(path: Path, manifest: seals.Manifest, config: TrainConfig) -> None:
    """history.json will say it at this step, whatever comes later: the Trainer's log is in every checkpoint."""
    state = json.loads(path.read_text(encoding="utf-8"))
    note = f"sealed by {manifest.world_size} processes, went on with {config.processes}: equal up to rounding"
    state["log_history"].append({"step": manifest.step, "converted": note})
    path.write_text(json.dumps(state, indent=2, sort_keys=True) + "\n", encoding="utf-8")
