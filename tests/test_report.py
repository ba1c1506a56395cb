"""The page and the card, from artifacts as the stages write them."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from bench import look_at_report
from gradelora.artifacts import Adapter, EvalReport, Interval, ModelSnapshot, SplitCounts, ValidatedRecords
from gradelora.champion import Champion, Champions
from gradelora.comparison import PartGain
from gradelora.config import EvaluateConfig, GateConfig, RunConfig
from gradelora.config_file import build_config
from gradelora.evaluate.metrics import write_metrics
from gradelora.evaluate.predictions import FILE, Prediction, write_predictions
from gradelora.evaluate.sections import Learned, summarise
from gradelora.gate import judge
from gradelora.hardware import PRESETS
from gradelora.preflight import Plan
from gradelora.preflight.disk import DiskPlan
from gradelora.preflight.memory import MemoryPlan, Need
from gradelora.preflight.size import ModelSize
from gradelora.report import ReportInput, StageRow, model_card, write_card, write_plan, write_report
from gradelora.report.compared import Compared, Comparison
from gradelora.report.figures import duration, number
from gradelora.report.plots import loss_plot, reliability, ticks, whisker
from gradelora.report.verdict import checks

HOSTILE = '<script>alert("x")</script> & <img src=x onerror=alert(1)>'
QUESTIONS = 8
STEP = 1.0


def config(**sections: object) -> RunConfig:
    values: dict[str, object] = {
        "name": "demo",
        "base": {"repo_id": "owner/tiny"},
        "data": {"files": ["data/*.json"]},
        "encode": {"layout": "harmony"},
        "store": {"root": "/data/store"},
        "runtime": {"price_per_hour": 7.2},
        "evaluate": {"resamples": 200},
    }
    return build_config(values | sections)


def predictions(skill: float = 0.8, per_question: int = 24) -> list[Prediction]:
    """Items whose adapter follows the human score, whose base is weak."""
    rng = np.random.default_rng(3)
    rows = []
    for i in range(QUESTIONS * per_question):
        question, maximum = i % QUESTIONS, 3 + i % QUESTIONS % 3
        human = int(rng.integers(0, maximum + 1))
        scores = tuple(float(s) for s in range(maximum + 1))
        base = float(np.clip(human + rng.integers(-3, 4), 0, maximum))
        adapter = float(human) if rng.random() < skill else float(rng.integers(0, maximum + 1))
        confidence = float(np.clip(0.35 + 0.6 * rng.random(), 0, 1))
        rest = tuple(-1.0 for _ in scores)
        rows.append(
            Prediction(
                item_id=f"week1:{i // 4}:{i % 4}",
                record_id=f"week1:{i // 4}",
                question_key=f"{question:016x}",
                split="unseen_answers",
                student=None,
                group="ABC"[i % 3],
                score=float(human),
                max_score=float(maximum),
                rater2_score=float(np.clip(human + rng.integers(-1, 2), 0, maximum)) if i % 2 else None,
                step=STEP,
                scores=scores,
                base_score=base,
                base_expected=base,
                base_confidence=0.3,
                base_mass=0.5,
                base_greedy=None if i % 5 == 0 else base,
                base_log_probabilities=rest,
                adapter_score=adapter,
                adapter_expected=adapter,
                adapter_confidence=confidence,
                adapter_mass=0.99,
                adapter_greedy=adapter,
                adapter_log_probabilities=rest,
            )
        )
    return rows


def save_records(folder: Path) -> ValidatedRecords:
    rows = predictions()
    folder.mkdir()
    table = pa.table(
        {
            "item_id": [p.item_id for p in rows],
            "question_key": [p.question_key for p in rows],
            "question_id": [None if p.question_key.endswith("0") else f"bio-{p.question_key[-1]}" for p in rows],
            "question": [f"Explain how the cell divides {HOSTILE}" for _ in rows],
            "answer": [f"answer of a student {HOSTILE}" for _ in rows],
        }
    )
    with pa.OSFile(str(folder / "items.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    splits = SplitCounts(train=600, validation=80, unseen_answers=len(rows), unseen_questions=0)
    findings = {
        "files": [
            {"path": f"data/{HOSTILE}.json", "level": "error", "codes": {"bad_json": 1}, "fault": "line 3", "items": 0}
        ],
        "data_set": {"codes": {"split_leak": 2}, "details": {"split_leak": "the same answers in train"}},
        "sources": [{"name": "week1.json", "sha256": "c" * 64, "size": 120_000}],
    }
    (folder / "findings.json").write_text(json.dumps(findings))
    return ValidatedRecords.collect(folder, items=872, records=210, quarantined=7, warnings=2, splits=splits)


def save_adapter(folder: Path) -> Adapter:
    folder.mkdir()
    history = [
        {"step": s, "loss": 2.2 * 0.97**s + 0.1 * (s % 3), "learning_rate": 1e-4, "grad_norm": 1.0}
        | ({"validation_loss": 2.3 * 0.972**s} if s % 30 == 0 else {})
        for s in range(1, 121)
    ]
    (folder / "history.json").write_text(json.dumps(history))
    facts = {"trainable_parameters": 5_971_968, "total_parameters": 116_835_128_640, "steps": 120, "final_loss": 0.12}
    return Adapter.collect(folder, repo_id="owner/tiny", commit="a" * 40, **facts)


def save_evaluation(folder: Path, run: RunConfig, skill: float) -> EvalReport:
    folder.mkdir()
    rows = predictions(skill)
    lengths = {p.item_id: 20 + i % 9 for i, p in enumerate(rows)}
    learned = {p.question_key: Learned(majority=1.0, slope=0.01, intercept=1.0) for p in rows}
    metrics = summarise(rows, lengths, learned, run.evaluate)
    write_predictions(folder / FILE, rows)
    write_metrics(folder, metrics)
    whole = metrics.sections[0].whole
    figures = {"base_qwk": whole.base.qwk, "adapter_qwk": whole.adapter.qwk, "qwk_gain": whole.gain.qwk}
    return EvalReport.collect(folder, split="unseen_answers", items=whole.items, **figures)


def plan() -> Plan:
    size = ModelSize(
        parameters=116_835_128_640, disk_bytes=65_250_000_000, expert_parameters=114_661_785_600,
        expert_disk_bytes=60_900_000_000, lora_parameters=5_971_968, layers=36, hidden=2880, heads=64,
        key_value_heads=8, head_dim=64, active_intermediate=11520, vocabulary=201088,
    )  # fmt: skip
    parts = {"weights": 65.2e9, "one layer unpacked": 6.4e9, "activations": 3.1e9, "logits": 0.4e9, "context": 2e9}
    memory = MemoryPlan(
        mode="packed + zero2",
        device="each GPU",
        processes_per_device=1,
        available_bytes=150_754_820_096,
        needs=tuple(Need(what=k, bytes=int(v)) for k, v in parts.items()),
    )
    disk = DiskPlan(
        folder=Path("/data"), free_bytes=80 * 10**9,
        needs=(Need(what="weights still to fetch", bytes=65 * 10**9), Need(what="merged model", bytes=65 * 10**9)),
    )  # fmt: skip
    return Plan(hardware=PRESETS["2xh200"], size=size, memory=memory, alternatives=(), disk=(disk,))


def comparison() -> Comparison:
    figures = (
        Compared(kind="memory", stage="train", figure="the largest process", planned=8e9, measured=10e9),
        Compared(kind="work", stage="train", figure="tokens", planned=330_000, measured=230_000),
        Compared(kind="disk", stage="train", figure="adapter", planned=24_900_000, measured=24_912_000, cached=True),
        Compared(
            kind="time", stage="fetch", figure="seconds", planned=0, measured=0.2, source="sealed in the store",
            cached=True, built_s=1805,
        ),
        Compared(
            kind="time", stage="train", figure="seconds", planned=7200, measured=5400, low=3600, high=14400,
            source="estimated: 8 % to 45 % of H200's roofline",
        ),
    )  # fmt: skip
    return Comparison(figures=figures, surprises=("merge: the plan said run, it was cached",))


def given(folder: Path, skill: float = 0.8, **sections: object) -> ReportInput:
    run = config(**sections)
    adapter = save_adapter(folder / "adapter")
    evaluation = save_evaluation(folder / "evaluation", run, skill)
    (folder / "base").mkdir()
    stages = (
        StageRow(stage="fetch", cached=True, seconds=0.2, why="verified against its receipt", built_seconds=1805.0),
        StageRow(stage="validate", cached=False, seconds=4.1, why="no validate artifact has this key"),
        StageRow(
            stage="train", cached=False, seconds=5400, why="no train artifact has this key", peak_rss_bytes=81 * 10**9
        ),
    )
    return ReportInput(
        run=run,
        made_at="2026-01-02 03:04 UTC",
        code_version="0.1.0",
        stages=stages,
        plan=plan(),
        snapshot=ModelSnapshot.collect(folder / "base", repo_id="owner/tiny", commit="a" * 40),
        records=save_records(folder / "records"),
        adapter=adapter,
        evaluation=evaluation,
        comparison=comparison(),
        verdict=judge(
            GateConfig(), EvaluateConfig(resamples=200), adapter, evaluation, "d" * 64, Champions(), no_champion
        ),
    )


def no_champion(champion: Champion) -> EvalReport:
    raise AssertionError(champion)


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails on a tag that is closed wrongly."""

    VOID = frozenset({"meta", "rect", "line", "circle", "polyline", "br", "img", "link", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ReportInput:
    return given(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def html(whole: ReportInput, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(whole, tmp_path_factory.mktemp("page")).read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(html: str) -> None:
    page = Page(html)
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not attributes.keys() & {"src", "action", "onload", "onclick"}
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in html
    assert "@import" not in html
    assert not re.search(r"https?://", html)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_no_reader_has_to_scroll_sideways_not_even_on_a_phone(whole: ReportInput, tmp_path: Path) -> None:
    """With the longest name that a version has: sources without a git checkout are named by their hash."""
    named = whole.model_copy(update={"code_version": f"0.1.0, sources {'0a' * 32}"})
    page = write_report(named, tmp_path)
    width, _ = look_at_report.look(page, tmp_path, "phone", 390, 1)
    assert width == 390


def test_every_link_has_its_section(html: str) -> None:
    page = Page(html)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for t, a in page.tags if t == "a"} <= set(ids)


def test_the_page_says_what_was_trained_on_what_and_whether_it_holds(html: str, whole: ReportInput) -> None:
    text = Page(html).text
    for told in (
        "✓ Promoted", whole.verdict.reason[1:], "a" * 40, whole.adapter.digest, whole.records.digest, "c" * 64,
        "5,971,968 of 116,835,128,640", "1 h 30 min", "10.80", "does not fit", "split_leak", "bad_json",
    ):  # fmt: skip
        assert told in text, told
    for figure in (whole.evaluation.base_qwk, whole.evaluation.adapter_qwk):
        assert number(figure.value) in text


def test_the_plan_stands_beside_what_happened(html: str, whole: ReportInput, tmp_path: Path) -> None:
    text = Page(html).text
    for told in (
        "What came of it", "8.0 GB 10.0 GB −20 % ✓", "330,000 230,000 +43 % !", "1 h 00 min to 4 h 00 min",
        "2 h 00 min", "14.40 10.80", "30 min 05 s when built", "merge: the plan said run", "of H200's roofline",
    ):  # fmt: skip
        assert told in text, told
    write_plan(whole, tmp_path)
    assert Comparison.model_validate_json((tmp_path / "compared.json").read_text()) == whole.comparison
    assert Plan.model_validate_json((tmp_path / "plan.json").read_text()) == whole.plan


def test_a_refused_adapter_is_called_refused_with_the_reason(tmp_path: Path) -> None:
    refused = given(tmp_path, skill=0.0)
    text = Page(write_report(refused, tmp_path / "page").read_text()).text
    assert not refused.verdict.promoted
    assert "✕ Refused" in text
    assert "Promoted" not in text
    assert refused.verdict.reason[1:] in text


def test_student_text_is_left_out_unless_the_config_allows_it(html: str, tmp_path: Path) -> None:
    assert "answer of a student" not in html
    allowed = given(tmp_path, report={"show_student_text": True})
    shown = write_report(allowed, tmp_path / "page").read_text()
    assert "answer of a student" in Page(shown).text


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    shown = write_report(given(tmp_path, report={"show_student_text": True}), tmp_path / "page").read_text()
    assert "<script" not in shown
    assert "<img" not in shown
    assert "&lt;script&gt;" in shown


def test_the_same_input_gives_the_same_bytes(whole: ReportInput, html: str, tmp_path: Path) -> None:
    assert write_report(whole, tmp_path).read_text() == html
    assert model_card(whole) == model_card(whole)


def test_cost_appears_only_where_a_price_is_set(html: str, tmp_path: Path) -> None:
    assert "Cost" in Page(html).text
    free = given(tmp_path, runtime={})
    assert "Cost" not in Page(write_report(free, tmp_path / "page").read_text()).text


def test_two_runs_that_end_at_the_same_moment_write_the_same_card(tmp_path: Path) -> None:
    whole = given(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        cards = list(pool.map(lambda _: write_card(whole, tmp_path / "aside"), range(64)))
    assert cards[0].read_text() == model_card(whole)
    assert [path.name for path in (tmp_path / "aside").iterdir()] == ["README.md"]


def test_the_card_has_the_hubs_front_matter_and_the_same_numbers(whole: ReportInput, tmp_path: Path) -> None:
    text = write_card(whole, tmp_path).read_text()
    _, front, body = text.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["base_model"] == "owner/tiny"
    assert metadata["library_name"] == "peft"
    figures = {m["type"]: m["value"] for m in metadata["model-index"][0]["results"][0]["metrics"]}
    assert figures["qwk"] == whole.evaluation.adapter_qwk.value
    assert number(whole.evaluation.base_qwk.value) in body
    assert whole.adapter.digest in body


def test_the_card_is_one_that_the_hub_client_reads(whole: ReportInput) -> None:
    from huggingface_hub import ModelCard

    card = ModelCard(model_card(whole))
    assert card.data.base_model == "owner/tiny"
    assert card.data.eval_results[0].metric_type == "qwk"


def test_numbers_are_written_with_a_true_minus_and_never_minus_nought() -> None:
    assert number(-0.034) == "−0.03"
    assert number(-0.001) == "0.00"
    assert number(-0.001, signed=True) == "+0.00"
    assert number(None) == "n/a"
    assert [duration(s) for s in (0.44, 200, 7500)] == ["0.4 s", "3 min 20 s", "2 h 05 min"]


def test_ticks_cover_the_data_in_round_steps() -> None:
    assert ticks(0, 1) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0.13, 2.2, 5)[0] <= 0.13
    assert ticks(0.13, 2.2, 5)[-1] >= 2.2
    assert ticks(3, 3)


def test_plots_place_what_they_show() -> None:
    plot = loss_plot([(1, 2.0), (10, 1.0)], [(10, 1.5)])
    (first_x, first_y), (last_x, last_y) = plot.train
    assert first_x < last_x
    assert first_y < plot.validation[0][1] < last_y
    mark = whisker(Interval(value=0.5, low=-3, high=0.75), 0, 1)
    assert mark is not None
    assert (mark.low, mark.at, mark.high) == (0, 50, 75)
    assert whisker(Interval(value=None, low=None, high=None, reason="one class"), 0, 1) is None
    assert [d.items for d in reliability([(None, None, 0), (0.5, 1.0, 4)])] == [4]


def test_whole_records_stand_beside_items_with_the_reason_for_every_na(html: str) -> None:
    text = " ".join(Page(html).text.split())
    assert "Sums of the 48 records that have several items here" in text
    after = text[text.index("Whole records") :]
    assert "n/a: no item has a second rating." in after[: after.index("Worst items")]
    assert "mean probability of all allowed scores together" in text


def test_a_refusal_says_how_surely_the_expected_gain_would_have_passed(tmp_path: Path) -> None:
    text = " ".join(Page(write_report(given(tmp_path, skill=0.3), tmp_path / "page").read_text()).text.split())
    assert re.search(r"Items like these: a true gain of 0\.10 would pass in \d+ % of evaluations", text)


def test_the_expected_score_the_groups_shift_and_the_distance_to_humans_stand_on_the_page(html: str) -> None:
    text = Page(html).text
    assert re.search(r"On the 96 doubly scored items the second rater's QWK less the adapter's is [+−]0\.\d\d \(", text)
    assert text.count("of the expected score") == 3
    assert "SMD: 0 is neither stricter nor milder with this group" in text


def test_a_loss_without_an_interval_is_not_called_chance(whole: ReportInput) -> None:
    gain = Interval(value=-0.5, low=None, high=None, reason="no interval: a single unit cannot be resampled")
    lost = PartGain(kind="group", name="B", items=12, worth=1, gain=gain)
    told = [line.text for line in checks(whole.verdict.model_copy(update={"doubtful": (lost,)}), {})]
    assert "As large a loss, without an interval: group B (−0.50, 12 items)" in told
    assert not any("within chance" in text for text in told)


def test_a_loss_that_only_its_own_interval_shows_stands_beside_what_chance_makes(whole: ReportInput) -> None:
    small, large, reaching = (
        PartGain(kind="question", name=name, items=20, worth=20, gain=Interval(value=value, low=value - 0.4, high=high))
        for name, value, high in (("q1", -0.4, -0.01), ("q2", -0.6, -0.2), ("q3", -0.4, 0.1))
    )
    listed = {"doubtful": (small, large, reaching), "tested": 60, "by_chance": 1.23}
    told = [line.text for line in checks(whole.verdict.model_copy(update=listed), {})]
    assert (
        "Worth a look, as large a loss by its own interval, as 1.2 of 60 would show by chance: "
        "question q2 (−0.60, 20 items), question q1 (−0.40, 20 items)"
    ) in told
    assert "As large a loss, but within chance: question q3 (−0.40, 20 items)" in told


def test_what_bars_a_promotion_stands_among_the_conditions(whole: ReportInput) -> None:
    told = checks(whole.verdict.model_copy(update={"bar": "it was rolled back at noon"}), {})
    assert ("bad", "It was rolled back at noon") in [(line.kind, line.text) for line in told]
