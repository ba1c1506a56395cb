from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gradelora.config import RunConfig
from gradelora.config_file import build_config, load_config
from gradelora.errors import BadConfig

DEPLOYMENTS = sorted((Path(__file__).parents[1] / "deployments").glob("*.yaml"))
VALUES: dict[str, Any] = {
    "name": "x",
    "base": {"repo_id": "owner/name"},
    "data": {"files": ["a.json"]},
    "encode": {"layout": "harmony"},
    "store": {"root": "s"},
}


@pytest.mark.parametrize("path", DEPLOYMENTS, ids=lambda p: p.stem)
def test_every_deployment_is_a_valid_configuration_of_its_own_name(path: Path) -> None:
    assert load_config(path).name == path.stem


def test_h200_keeps_the_tutorials_hyper_parameters() -> None:
    train = load_config(next(p for p in DEPLOYMENTS if p.stem == "h200")).train
    lora = train.lora
    assert (lora.r, lora.alpha, lora.dropout) == (8, 32, 0.05)
    assert set(lora.target_modules) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert (train.learning_rate, train.warmup_steps, train.epochs, train.max_grad_norm) == (2e-4, 2, 3, 1.0)
    assert train.processes * train.accumulation * train.micro_batch_rows * train.answers_per_row == 24


def test_overrides_reach_their_field_and_scientific_notation_is_a_number() -> None:
    config = build_config(VALUES, ["train.learning_rate=1e-4", "merge.enabled=true", "train.lora.r=16"])
    assert (config.train.learning_rate, config.merge.enabled, config.train.lora.r) == (1e-4, True, 16)
    assert "train" not in VALUES


@pytest.mark.parametrize(
    ("override", "field", "remedy"),
    [
        ("train.learnig_rate=1", "train.learnig_rate", "did you mean learning_rate?"),
        ("trian.seed=1", "trian", "did you mean train?"),
        ("train.lora.rank=8", "train.lora.rank", "known here: alpha, dropout, r,"),
        ("train.learning_rate=20", "train.learning_rate", "less than 1 (got 20)"),
        ("train.learning_rate=fast", "train.learning_rate", "got 'fast'"),
        ("runtime.train_deadline_s=10m", "runtime.train_deadline_s", "got '10m'"),
        ("train.parallel=zero3", "train", "set parallel=zero2 or weights=bf16"),
        ("train.parallel=layers", "train", "set processes=1"),
        ("train.sharing=off", "train", "set answers_per_row=1"),
        ("gate.split=unseen_questions", "config", "validation.split.unseen_questions_share"),
        ("gate.margin=0.1", "gate", "expected_gain=0.1 can never pass gate.margin=0.1"),
        ("gate.split=validation", "config", "add it to evaluate.splits"),
        ("base.repo_id=../../etc", "base.repo_id", "pattern"),
        ("name=My Run", "name", "pattern"),
        ("data.files=[]", "data.files", "at least 1 item"),
        ("train.seed", "--set train.seed", "section.field=value"),
        ("name.first=x", "--set name.first=x", "is a value, not a section"),
        ("train.seed={", "--set train.seed={", "no YAML"),
    ],
)
def test_what_cannot_be_run_is_refused_with_field_and_remedy(override: str, field: str, remedy: str) -> None:
    with pytest.raises(BadConfig) as refusal:
        build_config(VALUES, [override])
    assert field in str(refusal.value)
    assert remedy in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_one_data_file_needs_no_brackets() -> None:
    assert build_config(VALUES, ["data.files=data/*.json"]).data.files == ("data/*.json",)


@pytest.mark.parametrize("text", ["- a list", "a: [", "\xff"])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(BadConfig, match=r"run\.yaml"):
        load_config(path)
    with pytest.raises(BadConfig, match=r"absent\.yaml.*deployments"):
        load_config(tmp_path / "absent.yaml")


def test_a_missing_section_is_asked_for() -> None:
    with pytest.raises(BadConfig, match="store: missing; add it"):
        build_config({k: v for k, v in VALUES.items() if k != "store"})


def test_a_configuration_cannot_be_changed_once_made() -> None:
    config = build_config(VALUES)
    with pytest.raises(ValidationError):
        config.train.seed = 1  # type: ignore[misc]


def test_every_field_says_what_its_unit_or_meaning_is_where_the_name_does_not() -> None:
    """A number without a described meaning hides a decision."""
    runtime = RunConfig.model_fields["runtime"].annotation
    assert runtime is not None
    assert all(
        "_s" in n or n.endswith(("_s", "retries", "workers")) or f.description for n, f in runtime.model_fields.items()
    )
