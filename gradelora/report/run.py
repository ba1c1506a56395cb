"""The run itself as rows: stages, plan, data, what came from where."""

from dataclasses import dataclass
from typing import Any

from gradelora.artifacts import SPLITS, canonical_json, sha256_text
from gradelora.report.figures import count, duration, gigabytes
from gradelora.report.given import ReportInput
from gradelora.report.stages import StageRow


@dataclass(frozen=True)
class StageLine:
    """One line of the stage table."""

    stage: str
    state: str
    seconds: str
    built: str
    memory: str
    cost: str
    why: str


@dataclass(frozen=True)
class Bar:
    """Parts against what there is; shares of the longer of the two."""

    label: str
    needed: str
    available: str
    fits: bool
    parts: tuple[tuple[str, str, float], ...]
    limit: float


@dataclass(frozen=True)
class Finding:
    """One code of validation: how often, how grave, and where or what to do."""

    code: str
    level: str
    rows: int
    detail: str


def stage_lines(given: ReportInput) -> list[StageLine]:
    """Stages in order; what this run cost where a price is set."""
    return [_stage_line(row, given.run.runtime.price_per_hour) for row in given.stages]


def _stage_line(row: StageRow, price: float | None) -> StageLine:
    return StageLine(
        stage=row.stage,
        state="cached" if row.cached else "run",
        seconds=duration(row.seconds),
        built=duration(row.built_seconds) if row.cached else "",
        memory=gigabytes(row.peak_rss_bytes) if row.peak_rss_bytes else "",
        cost="" if price is None else f"{row.seconds / 3600 * price:.2f}",
        why=row.why,
    )


def total_line(given: ReportInput) -> StageLine:
    """The sum of the stages' seconds and cost; stages may overlap."""
    seconds, price = sum(row.seconds for row in given.stages), given.run.runtime.price_per_hour
    cost = "" if price is None else f"{seconds / 3600 * price:.2f}"
    return StageLine("all stages", "", duration(seconds), "", "", cost, "")


def plan_bars(given: ReportInput) -> list[Bar]:
    """Memory of a device, then each file system."""
    memory = given.plan.memory
    times = memory.processes_per_device
    label = f"Memory of {memory.device}" + (f", {times} processes" if times > 1 else "")
    bars = [_bar(label, [(n.what, n.bytes * times) for n in memory.needs], memory.available_bytes)]
    for disk in given.plan.disk:
        needs = [(n.what, n.bytes) for n in disk.needs]
        rest = disk.needed_bytes - sum(size for _, size in needs)
        bars.append(_bar(f"Disk {disk.folder}", [*needs, ("kept free", rest)], disk.free_bytes))
    return bars


def _bar(label: str, needs: list[tuple[str, int]], available: int) -> Bar:
    needed = sum(size for _, size in needs)
    whole = max(needed, available, 1)
    parts = tuple((what, gigabytes(size), round(100 * size / whole, 2)) for what, size in needs if size)
    limit = round(100 * available / whole, 2)
    return Bar(label, gigabytes(needed), gigabytes(available), needed <= available, parts, limit)


def findings_of(found: dict[str, Any]) -> list[Finding]:
    """Codes of findings.json: those of all files together first, then file by file."""
    from gradelora.validate.codes import BY_NAME

    whole = found["data_set"]
    rows = [
        Finding(code, BY_NAME[code].level, n, whole["details"].get(code, BY_NAME[code].remedy))
        for code, n in whole["codes"].items()
    ]
    for file in found["files"]:
        rows += [
            Finding(code, BY_NAME[code].level, n, f"{file['path']}: {file.get('fault') or BY_NAME[code].remedy}")
            for code, n in file["codes"].items()
        ]
    return rows


def split_counts(given: ReportInput) -> list[tuple[str, int, float]]:
    """(split, items, per cent of all)."""
    counts = given.records.splits.model_dump()
    total = max(sum(counts.values()), 1)
    return [(name.replace("_", " "), counts[name], round(100 * counts[name] / total, 1)) for name in SPLITS]


def training_facts(given: ReportInput) -> list[tuple[str, str]]:
    """How it was trained: (what, value)."""
    train, adapter = given.run.train, given.adapter
    lora = train.lora
    share = 100 * adapter.trainable_parameters / max(adapter.total_parameters, 1)
    rows = train.answers_per_row * train.micro_batch_rows
    return [
        ("LoRA", f"r {lora.r}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on {', '.join(lora.target_modules)}"),
        ("Trainable", f"{count(adapter.trainable_parameters)} of {count(adapter.total_parameters)} ({share:.4f} %)"),
        ("Weights", f"{train.weights}, {train.parallel}, {train.processes} processes on {train.device}"),
        ("Precision", train.precision),
        ("Optimizer step", f"{train.processes * train.accumulation * rows} answers, rate {train.learning_rate:g}"),
        ("Steps", f"{adapter.steps}, final loss {adapter.final_loss:.4f}"),
        ("Seed", str(train.seed)),
    ]


def merge_facts(given: ReportInput) -> list[tuple[str, str]]:
    """The merged model, and what it says beside base and adapter: (what, value); nothing where there is none."""
    merged = given.merged
    if merged is None:
        return []
    dtype = "the base's own format" if merged.dtype == "base" else "bf16"
    rows = [("Merged", f"{count(merged.merged_tensors)} weights, in {dtype}")]
    if merged.least_delta_survival is not None:
        rows.append(("Kept of an update, least of all experts", f"{100 * merged.least_delta_survival:.1f} %"))
    agreed, said = merged.agreed, "not compared (merge.verify_items=0)"
    if agreed is not None:
        said = (
            f"{agreed.changed_scores} of {agreed.items} scores changed, {agreed.ties} of them near-ties; "
            f"log-probabilities by {agreed.mean_difference:.4f} nats on average and {agreed.largest_difference:.4f} "
            f"at most, where the adapter changed them by {agreed.adapter_effect:.4f}"
        )
    return [*rows, ("Beside base and adapter", said)]


def lineage(given: ReportInput) -> list[tuple[str, str]]:
    """What was trained on what: (what, hash or name)."""
    rows = [
        ("Base model", given.snapshot.repo_id),
        ("Base commit", given.snapshot.commit),
        ("Data", given.records.digest),
        ("Configuration", sha256_text(canonical_json(given.run.model_dump(mode="json", exclude={"runtime", "store"})))),
        ("Adapter", given.adapter.digest),
        ("Evaluation", given.evaluation.digest),
        ("Code", given.code_version),
    ]
    return [*rows, ("Merged model", given.merged.digest)] if given.merged else rows
