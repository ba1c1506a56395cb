"""Evaluate: base and adapter score the held-out answers; their agreement with the raters is measured."""

from pathlib import Path

from gradelora.artifacts import Adapter, EncodedDataset, EvalReport, ModelSnapshot
from gradelora.config import EvaluateConfig, Runtime
from gradelora.errors import BadConfig

VERSION = 3


def evaluate(
    config: EvaluateConfig,
    snapshot: ModelSnapshot,
    adapter: Adapter,
    data: EncodedDataset,
    *,
    out: Path,
    runtime: Runtime,
) -> EvalReport:
    """predictions.jsonl (configured splits in order, items in the data's order) and metrics.json.

    The facts are those of the first configured split that has items.
    Raises BadConfig where none has.
    """
    from gradelora.evaluate.judging import predictions_of, read_learned
    from gradelora.evaluate.metrics import write_metrics
    from gradelora.evaluate.predictions import FILE, write_predictions
    from gradelora.evaluate.ranks import judge, process_count
    from gradelora.evaluate.sections import summarise
    from gradelora.scoring.candidates import read_candidates
    from gradelora.scoring.held_out import read_held_out

    if not any(getattr(data.splits, split) for split in config.splits):
        counts = ", ".join(f"{name} {count}" for name, count in data.splits)
        raise BadConfig(
            f"evaluate.splits={list(config.splits)}: none has an item ({counts}); "
            "raise validation.split.unseen_answers_share or add data"
        )
    held_out = read_held_out(data, config.splits)
    ranks = process_count(config, runtime, len(held_out))
    judged = judge(config, snapshot, adapter, data, ranks=ranks, out=out, runtime=runtime)
    predictions = predictions_of(held_out, judged, read_candidates(data.path))
    write_predictions(out / FILE, predictions)
    _say("metrics and intervals")
    lengths = {item.item_id: len(item.ids) - item.prefix_length for item in held_out}
    metrics = summarise(predictions, lengths, read_learned(data), config)
    write_metrics(out, metrics)
    headline = metrics.section(metrics.headline)
    assert headline is not None
    whole = headline.whole
    return EvalReport.collect(
        out,
        split=metrics.headline,
        items=whole.items,
        base_qwk=whole.base.qwk,
        adapter_qwk=whole.adapter.qwk,
        qwk_gain=whole.gain.qwk,
    )


def _say(line: str) -> None:
    print(f"evaluate: {line}", flush=True)
