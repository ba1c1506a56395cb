"""A merged model counts only when it scores evaluated items as base and adapter did."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradelora import child
from gradelora.artifacts import Agreed, MergedModel
from gradelora.config import EvaluateConfig
from gradelora.errors import Damaged, KeyMismatch, MergeDiffers
from gradelora.evaluate import evaluate
from gradelora.merge import arithmetic, merge
from gradelora.merge.arithmetic import Arithmetic
from gradelora.merge.blocks import BLOCK_BYTES
from gradelora.merge.verify import Told, chosen, compare, judge, room
from gradelora.scoring.candidates import Likelihoods
from gradelora.store import Store, key_of, read_receipt
from tests.merging import RUNTIME, adapter_of, save_adapter, snapshot_of, stage_config
from tests.tiny_data import save_encoded
from tests.tiny_models import save_gpt_oss

EXPERTS = {"target_modules": ["q_proj"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}


class Trained:
    """A base, an adapter on it, items, and what evaluate makes of them in fp32 on a CPU."""

    def __init__(self, work: Path, weights: str, **settings: Any) -> None:
        self.base = snapshot_of(save_gpt_oss(work / "base"))
        self.adapter = adapter_of(save_adapter(self.base.path, work / "adapter", **settings))
        self.data = save_encoded(work / "data", validation=10)
        config = EvaluateConfig(splits=("validation",), device="cpu", weights=weights, precision="fp32", resamples=100)
        (work / "report").mkdir()
        self.report = evaluate(config, self.base, self.adapter, self.data, out=work / "report", runtime=RUNTIME)
        self.weights = weights

    def merged(self, out: Path, **changes: Any) -> MergedModel:
        out.mkdir(exist_ok=True)
        config = stage_config(**({"verify_items": 32, "weights": self.weights} | changes))
        return merge(config, self.base, self.adapter, self.report, self.data, out=out, runtime=RUNTIME)


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("attention"), "packed")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("experts"), "bf16", **EXPERTS)


def loadable(out: Path) -> bool:
    return (out / "config.json").exists()


def test_what_base_and_adapter_said_is_what_the_merged_model_says(attention: Trained, tmp_path: Path) -> None:
    agreed = attention.merged(tmp_path).agreed
    assert agreed is not None
    assert (agreed.items, agreed.changed_scores - agreed.ties) == (32, 0)
    assert agreed.adapter_effect > 1
    assert 0 < agreed.mean_difference <= agreed.largest_difference < 0.1 * agreed.adapter_effect
    assert agreed.shift < 0.05


@pytest.mark.slow
def test_the_comparison_is_in_the_receipt(attention: Trained, tmp_path: Path) -> None:
    inputs = attention.base, attention.adapter, attention.report, attention.data
    obtained = Store(tmp_path).obtain(merge, stage_config(verify_items=8), *inputs, runtime=RUNTIME)
    artifact = read_receipt(obtained.artifact.path).artifact
    assert artifact["agreed"]["items"] == 8
    assert Agreed.model_validate(artifact["agreed"]) == obtained.artifact.agreed
    assert obtained.artifact.least_delta_survival is None


def test_a_merge_that_is_judged_anew_writes_no_shard_again(attention: Trained, tmp_path: Path) -> None:
    """Another verdict is another artifact of the same weights."""
    inputs, store = (attention.base, attention.adapter, attention.report, attention.data), Store(tmp_path)

    def shards(**changes: Any) -> dict[str, int]:
        obtained = store.obtain(merge, stage_config(**changes), *inputs, runtime=RUNTIME, run=child.here)
        return {p.name: p.stat().st_ino for p in obtained.artifact.path.glob("*.safetensors")}

    first = shards(verify_items=8)
    # Another attempt had begun a shard that is there by now.
    half = store.building("merge", key_of(merge, stage_config(verify_items=4), inputs)) / f"{min(first)}.part"
    half.parent.mkdir()
    half.write_bytes(b"half")
    assert shards(verify_items=4) == first
    assert not list(tmp_path.rglob("*.part"))
    assert shards(verify_items=8, dtype="bf16", weights="bf16") != first


def test_a_shard_that_the_disk_did_not_keep_is_found_named_and_made_again(
    attention: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, write = sorted(attention.base.path.glob("*.safetensors"))[0], os.pwrite
    size = shard.stat().st_size

    def careless(file: int, data: memoryview, position: int) -> int:
        """One bit of the last byte is lost on the way."""
        count = write(file, data, position)
        # Direct writes take whole blocks only, so a second descriptor; the last block is a little too long.
        if size <= os.fstat(file).st_size < size + BLOCK_BYTES and position < size <= position + len(data):
            with open(f"/proc/self/fd/{file}", "r+b") as again:  # noqa: PTH123
                again.seek(size - 1)
                again.write(bytes([data[size - 1 - position] ^ 1]))
        return count

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", careless)
        with pytest.raises(Damaged, match=rf"{shard.name} read back differently"):
            attention.merged(tmp_path)
    assert not (tmp_path / shard.name).exists()
    assert not loadable(tmp_path)
    assert attention.merged(tmp_path).agreed is not None


def test_where_numpy_multiplies_otherwise_the_shards_are_made_again_by_torch(
    attention: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on a processor for which numpy has another kernel."""
    expected = attention.merged(tmp_path / "expected").digest
    assert "making the shards by torch" not in capsys.readouterr().out
    right = arithmetic.multiply_by_numpy

    def otherwise(left: Any, other: Any, out: Any) -> None:
        right(left, other, out)
        np.nextafter(out, np.float32(np.inf), out=out)

    monkeypatch.setattr(arithmetic, "multiply_by_numpy", otherwise)
    assert attention.merged(tmp_path / "out").digest == expected
    assert "making the shards by torch" in capsys.readouterr().out


@pytest.mark.parametrize("scale", [0.0, 2.0], ids=["not added", "added twice"])
def test_a_merge_that_went_wrong_is_no_model_and_says_by_how_much(
    attention: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    right = Arithmetic._delta

    def wrong(self: Arithmetic, lora_b: Any, lora_a: Any, factor: float, delta: Any) -> None:
        right(self, lora_b, lora_a, factor * scale, delta)

    monkeypatch.setattr(Arithmetic, "_delta", wrong)
    with pytest.raises(MergeDiffers, match=r"of 32 items get another score.*nats on average, \d+% of the"):
        attention.merged(tmp_path)
    assert not loadable(tmp_path)


@pytest.mark.slow
def test_experts_in_bf16_agree_and_those_rounded_to_mxfp4_are_judged_by_what_was_lost(
    experts: Trained, tmp_path: Path
) -> None:
    agreed = experts.merged(tmp_path / "bf16", dtype="bf16").agreed
    assert agreed is not None
    assert agreed.shift < 0.05
    with pytest.raises(MergeDiffers, match=r"set merge\.dtype=bf16"):
        experts.merged(tmp_path / "base", min_delta_survival=-1)
    assert not loadable(tmp_path / "base")
    accepted = experts.merged(tmp_path / "base", min_delta_survival=-1, max_shift=1, max_changed_scores=1)
    assert accepted.least_delta_survival is not None
    assert accepted.agreed is not None
    assert accepted.agreed.shift > agreed.shift
    assert loadable(tmp_path / "base")


def test_a_key_that_is_missing_from_the_result_is_no_model(
    attention: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if another config than that of these weights had been put beside them."""
    from gradelora.merge import rest

    def other(out: Path, name: str, contents: Path | str) -> None:
        place(out, name, contents)
        if name == "config.json":
            values = json.loads((out / name).read_text())
            (out / name).write_text(json.dumps(values | {"num_hidden_layers": 3, "layer_types": None}))

    place = rest._place
    monkeypatch.setattr(rest, "_place", other)
    with pytest.raises(KeyMismatch, match="missing"):
        attention.merged(tmp_path)
    assert not loadable(tmp_path)


def test_what_nobody_has_judged_yet_cannot_be_loaded(
    attention: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill may come while the merged model is scored."""
    from gradelora.merge import verify

    def killed(*_: object, **__: object) -> None:
        assert list(tmp_path.glob("*.safetensors"))
        assert not loadable(tmp_path)
        raise KeyboardInterrupt

    monkeypatch.setattr(verify, "score_prompts", killed)
    with pytest.raises(KeyboardInterrupt):
        attention.merged(tmp_path)
    assert not loadable(tmp_path)


def test_weights_in_bf16_are_spread_over_all_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda place: ((100 + place) * 10**9, 141 * 10**9))
    places = room(stage_config(device="cuda", weights="bf16"))
    assert places is not None
    assert (places[0], places[1]) == ("85000MB", "85850MB")
    assert int(places["cpu"].removesuffix("MB")) > 0
    assert room(stage_config(device="cuda", weights="packed")) is None
    assert room(stage_config(device="cpu", weights="bf16")) is None


def test_the_items_are_the_same_whatever_their_order(attention: Trained, tmp_path: Path) -> None:
    lines = (attention.report.path / "predictions.jsonl").read_text().splitlines()
    (tmp_path / "reversed.jsonl").write_text("\n".join(lines[::-1]))
    few = chosen(attention.report.path / "predictions.jsonl", 5)
    assert few == chosen(tmp_path / "reversed.jsonl", 5)
    assert len({one.item_id for one in few}) == 5
    assert len(chosen(tmp_path / "reversed.jsonl", 1000)) == len(lines)


def test_an_evaluation_of_other_items_is_an_error(attention: Trained, experts: Trained, tmp_path: Path) -> None:
    lines = (attention.report.path / "predictions.jsonl").read_text().replace('"item_id":"f:', '"item_id":"g:')
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "predictions.jsonl").write_text(lines)
    report = attention.report.model_copy(update={"path": tmp_path / "report"})
    (tmp_path / "out").mkdir()
    config = stage_config(verify_items=4)
    with pytest.raises(Damaged, match="evaluate again"):
        merge(config, attention.base, attention.adapter, report, attention.data, out=tmp_path / "out", runtime=RUNTIME)


@pytest.mark.parametrize(
    ("changed", "ties", "mean", "effect", "passes"),
    [
        (0, 0, 0.0, 0.0, True),
        (1, 0, 0.0, 5.0, True),
        (2, 0, 0.0, 5.0, False),
        (9, 8, 0.0, 5.0, True),
        (0, 0, 0.4, 5.0, True),
        (0, 0, 0.6, 5.0, False),
        (0, 0, 0.04, 0.04, True),
    ],
)
def test_tolerances_are_of_the_adapters_own_effect_and_noise_is_none(
    changed: int, ties: int, mean: float, effect: float, passes: bool
) -> None:
    """Of 32 items 5 % are one; of an effect of 5 nats 10 % are half a nat; below 0.05 nats all is noise."""
    figures = {"mean_difference": mean, "largest_difference": mean, "adapter_effect": effect}
    shift = mean / effect if effect else 0.0
    agreed = Agreed(items=32, changed_scores=changed, ties=ties, shift=shift, **figures)
    if passes:
        judge(agreed, stage_config())
    else:
        with pytest.raises(MergeDiffers, match="allowed"):
            judge(agreed, stage_config())


def test_a_score_changes_clearly_only_where_base_and_adapter_did_not_waver() -> None:
    """The effect is 4 nats, so two scores within 0.4 of each other are a tie."""
    said = [(-1.0, -1.3), (-1.0, -3.0), (-1.0, -3.0)]
    base = (-5.0, -5.0)
    told = [
        Told(item_id=str(i), split="validation", base_log_probabilities=base, adapter_log_probabilities=logs)
        for i, logs in enumerate(said)
    ]
    found = [(-1.2, -1.1), (-3.0, -1.0), said[2]]
    agreed = compare(told, [Likelihoods(logs, None) for logs in found], 0.1)
    assert (agreed.items, agreed.changed_scores, agreed.ties) == (3, 2, 1)
    assert (agreed.mean_difference, agreed.largest_difference) == (round(2.2 / 3, 4), 2.0)
    assert (agreed.adapter_effect, agreed.shift) == (4.0, round(2.2 / 12, 4))
