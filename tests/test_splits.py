"""No answer on both sides, no item that changes sides, and what a random split leaks."""

import json
import random
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradelora.artifacts import SPLITS
from gradelora.config import SplitConfig, ValidateConfig
from gradelora.errors import BadData
from gradelora.records import collect_data_files
from gradelora.records.identity import AnswerHashes, answer_hashes, question_keys, questions, words
from gradelora.records.read import read_files
from gradelora.records.split import (
    TRAIN,
    UNSEEN_ANSWERS,
    UNSEEN_QUESTIONS,
    VALIDATION,
    Deciding,
    answer_groups,
    assign,
    named_sides,
    on_both_sides,
    withheld,
)
from gradelora.validate import examine

REAL = Path(__file__).parents[2] / "shared" / "data" / "scientsbank"
needs_real_data = pytest.mark.skipif(not REAL.exists(), reason=f"{REAL} is absent")
texts = st.text(alphabet=st.characters(codec="utf-8"), max_size=40)


def hashed(*answers: str) -> AnswerHashes:
    return answer_hashes(pa.chunked_array([pa.array(answers, pa.string())]))


def write(path: Path, answers: list[tuple[str, str]], **fields) -> None:
    """One record a (question, answer)."""
    items = [{"question": q, "answer": a, "score": len(a) % 3, "max_score": 2, **fields} for q, a in answers]
    top = {"max_score": 2}
    path.write_text(
        json.dumps(
            [{"score": i["score"], **top, "normalized_score": i["score"] / 2, "rubric_alignment": [i]} for i in items]
        )
    )


def decide(items: pa.Table, config: SplitConfig, named: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Side of every item, int8[n], and whether it is withheld, bool[n]."""
    asked, hashes = questions(items), answer_hashes(items["answer"])
    named = np.full(len(items), -1, np.int8) if named is None else named
    deciding = Deciding(question_keys(items, asked.of_item), asked.of_item, hashes.bag, items["student_id"], named)
    sides = assign(config, deciding)
    return sides, withheld(sides, asked.of_item, hashes.bag)


def sides_of(*paths: Path, config: SplitConfig) -> dict[tuple[str, str], str]:
    """The split of every (question, answer) of some files."""
    items = read_files(collect_data_files(tuple(map(str, paths))), 2**20).items.table
    sides, _ = decide(items, config)
    pairs = zip(items["question"].to_pylist(), items["answer"].to_pylist(), strict=True)
    return dict(zip(pairs, [SPLITS[side] for side in sides], strict=True))


def generated(seed: int, size: int) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    vocabulary = "water salt heat light leaf root soil wind sand iron takes makes gives".split()  # noqa: SIM905
    return [(f"question {rng.randrange(20)}", " ".join(rng.choices(vocabulary, k=5))) for _ in range(size)]


# -- which answers are the same --------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Salt dissolves.", "  salt   DISSOLVES !"),
        ("Straße", "STRASSE"),
        ("ﬁne sand", "fine sand"),
        ("café", unicodedata.normalize("NFD", "café")),
        ("salt,water", "salt - water"),
        ("sa\u200blt", "salt\ufeff"),
    ],
)
def test_spelling_of_case_space_and_marks_makes_no_other_answer(one, other):
    same = hashed(one, other)
    assert same.exact[0] == same.exact[1]
    assert same.bag[0] == same.bag[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [("salt and water", "water and salt"), ("the water evaporated", "water evaperated"), ("roots", "a root")],
)
def test_word_order_and_misspelling_make_a_near_duplicate(one, other):
    near = hashed(one, other)
    assert near.exact[0] != near.exact[1]
    assert near.bag[0] == near.bag[1]


@settings(max_examples=200, deadline=None)
@given(answers=st.lists(texts, min_size=1, max_size=8))
def test_exact_identity_is_that_of_the_words_in_order_and_implies_the_bag(answers):
    found = hashed(*answers)
    for i, one in enumerate(answers):
        assert found.exact[i] == hashed(one).exact[0]
        for j, other in enumerate(answers):
            # Arrow and `words` may differ on what is white space; joined words must not.
            if words(one) == words(other):
                assert found.exact[i] == found.exact[j]
            if found.exact[i] == found.exact[j]:
                assert words(one) == words(other)
                assert found.bag[i] == found.bag[j]


# -- which side --------------------------------------------------------------------------------

# question, answer and student (None: not told) of few kinds, so that much is the same.
given_items = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 5), st.none() | st.integers(0, 8)), min_size=1, max_size=40
)


def items_table(given: list[tuple[int, int, int | None]]) -> pa.Table:
    """What decides a side, as the columns of read_files."""
    empty = pa.nulls(len(given), pa.string()).dictionary_encode()
    columns = {
        "question": pa.array([f"question {q}" for q, _, _ in given]).dictionary_encode(),
        "rubric": empty,
        "question_id": empty,
        "max_score": pa.array([2.0] * len(given)),
        "answer": pa.array([f"answer {a}" for _, a, _ in given]),
        "student_id": pa.array([None if s is None else f"s-{s}" for _, _, s in given], pa.string()).dictionary_encode(),
    }
    return pa.table(columns)


@settings(max_examples=60, deadline=None)
@given(
    before=given_items,
    later=given_items,
    seed=st.integers(0, 5),
    unseen=st.sampled_from([0.0, 0.3]),
    named=st.lists(st.sampled_from([-1, -1, 1, 2, 3]), min_size=80, max_size=80),
    first=st.booleans(),
)
def test_appended_data_move_no_item_they_can_only_withhold_it(before, later, seed, unseen, named, first):
    config = SplitConfig(seed=seed, unseen_questions_share=unseen)
    together = later + before if first else before + later
    where = slice(len(later), None) if first else slice(len(before))
    named = np.array(named[: len(together)], np.int8)
    sides, out = decide(items_table(before), config, named[where])
    sides_later, out_later = decide(items_table(together), config, named)
    assert sides_later[where].tolist() == sides.tolist()
    assert (out <= out_later[where]).all()
    assert_nothing_on_two_sides(together, sides_later, out_later)
    assert_withheld_for_cause(together, sides_later, out_later)


def assert_nothing_on_two_sides(given, sides, out):
    """Neither an answer to a question nor an unseen question."""
    answers: dict[tuple[int, int], set[int]] = {}
    asked: dict[int, set[bool]] = {}
    for (question, answer, _), side in zip(np.array(given, object)[~out], sides[~out].tolist(), strict=True):
        answers.setdefault((question, answer), set()).add(side)
        asked.setdefault(question, set()).add(side == UNSEEN_QUESTIONS)
    assert all(len(found) == 1 for found in (*answers.values(), *asked.values()))


def assert_withheld_for_cause(given, sides, out):
    """What is withheld stands, as answer or as an unseen question, on a more protected side."""
    for i in np.flatnonzero(out):
        same = [n for n, g in enumerate(given) if g[:2] == given[i][:2] and sides[n] > sides[i]]
        assert same or any(g[0] == given[i][0] and sides[n] == UNSEEN_QUESTIONS for n, g in enumerate(given))


@settings(max_examples=30, deadline=None)
@given(given=given_items, seed=st.integers(0, 5), unseen=st.sampled_from([0.0, 0.3]))
def test_a_student_is_whole_but_for_the_unseen_questions(given, seed, unseen):
    sides, _ = decide(items_table(given), SplitConfig(seed=seed, unseen_questions_share=unseen))
    of_student: dict[int, set[int]] = {}
    for (_, _, student), side in zip(given, sides.tolist(), strict=True):
        if student is not None and side != UNSEEN_QUESTIONS:
            of_student.setdefault(student, set()).add(side)
    assert all(len(found) == 1 for found in of_student.values())


def test_a_blank_student_id_names_nobody():
    items = items_table([(q, a, None) for q in range(4) for a in range(5)])
    blank = items.set_column(5, "student_id", pa.array([" "] * 20).dictionary_encode())
    assert decide(blank, SplitConfig())[0].tolist() == decide(items, SplitConfig())[0].tolist()


@pytest.mark.parametrize("seed", range(2))
def test_an_item_never_changes_sides_when_files_arrive_wherever_they_sort(tmp_path, seed):
    config = SplitConfig(seed=seed, unseen_questions_share=0.2)
    write(tmp_path / "m.json", generated(1, 500))
    before = sides_of(tmp_path / "m.json", config=config)
    write(tmp_path / "a.json", generated(2, 500))
    write(tmp_path / "z.json", generated(3, 500))
    after = sides_of(tmp_path / "a.json", tmp_path / "m.json", tmp_path / "z.json", config=config)
    assert {pair: after[pair] for pair in before} == before
    assert set(before.values()) == set(SPLITS)


def test_shares_are_met_and_a_larger_share_only_adds(tmp_path):
    write(tmp_path / "m.json", generated(1, 4000))
    small = sides_of(tmp_path / "m.json", config=SplitConfig(unseen_answers_share=0.1, validation_share=0))
    large = sides_of(tmp_path / "m.json", config=SplitConfig(unseen_answers_share=0.2, validation_share=0.1))
    held_out = {pair for pair, side in small.items() if side == "unseen_answers"}
    assert held_out < {pair for pair, side in large.items() if side == "unseen_answers"}
    for share, found in ((0.1, len(held_out)), (0.1, list(large.values()).count("validation"))):
        assert abs(found / len(small) - share) < 0.02


def test_shares_are_met_by_students():
    items = items_table([(0, n % 5, n) for n in range(3000)])
    counts = np.bincount(decide(items, SplitConfig())[0], minlength=len(SPLITS)) / len(items)
    assert np.abs(counts - [0.7, 0.1, 0.2, 0]).max() < 0.02


def test_an_unseen_question_keeps_all_its_answers_and_another_seed_takes_others(tmp_path):
    write(tmp_path / "m.json", generated(1, 2000))
    chosen = []
    for seed in (0, 1):
        sides = sides_of(tmp_path / "m.json", config=SplitConfig(seed=seed, unseen_questions_share=0.3))
        unseen = {q for (q, _), side in sides.items() if side == "unseen_questions"}
        assert unseen
        assert not unseen & {q for (q, _), side in sides.items() if side != "unseen_questions"}
        chosen.append(unseen)
    assert chosen[0] != chosen[1]


# -- named files -------------------------------------------------------------------------------


def test_named_files_replace_the_share_and_leave_the_rest_to_train(tmp_path):
    write(tmp_path / "train.json", generated(1, 200))
    write(tmp_path / "test_1.json", [(q, f"{a} held out") for q, a in generated(2, 50)])
    config = ValidateConfig(split=SplitConfig(unseen_answers_files=("test_*",), validation_share=0))
    (tmp_path / "out").mkdir()
    findings = examine(config, collect_data_files((str(tmp_path / "*.json"),)), tmp_path / "out")
    assert findings.data_set.splits.model_dump() == {
        "train": 200,
        "validation": 0,
        "unseen_answers": 50,
        "unseen_questions": 0,
    }


@pytest.mark.slow
@pytest.mark.parametrize("field", ["unseen_answers_files", "unseen_questions_files"])
def test_what_a_named_file_repeats_of_training_is_withheld_from_training_or_blocks(tmp_path, field):
    write(tmp_path / "train.json", generated(1, 200))
    question, answer = generated(1, 1)[0]
    again = answer.upper() + "!" if field == "unseen_answers_files" else "quite another one"
    write(tmp_path / "test.json", [*[("another question", f"answer {n}") for n in range(20)], (question, again)])
    data = collect_data_files((str(tmp_path / "*.json"),))
    whole_question = field == "unseen_questions_files"
    expected = sum(q == question and (whole_question or a == answer) for q, a in generated(1, 200))
    (tmp_path / "out").mkdir()
    split = SplitConfig(**{field: ("test.json",)})
    found = examine(ValidateConfig(split=split), data, tmp_path / "out").data_set
    assert (found.level, found.withheld, found.items) == ("warning", expected, 221 - expected)
    stored = pa.ipc.open_file(tmp_path / "out" / "items.arrow").read_all().to_pylist()
    assert len(stored) == found.items
    assert [i["file"] for i in stored if i["question"] == question and i["answer"] in (answer, again)] == ["test.json"]

    split = SplitConfig(**{field: ("test.json",)}, on_leak="block")
    findings = examine(ValidateConfig(split=split), data, tmp_path / "out")
    assert findings.sentence().startswith("split_leak: ")
    assert (findings.data_set.codes["split_leak"], findings.data_set.withheld) == (1, 0)


def test_a_pattern_that_names_no_file_or_a_file_twice_is_refused():
    with pytest.raises(BadData, match="none of the data files"):
        named_sides(SplitConfig(validation_files=("dev.json",)), ["train.json"])
    with pytest.raises(BadData, match="named for validation too"):
        named_sides(SplitConfig(validation_files=("d*",), unseen_answers_files=("dev.json",)), ["dev.json"])


# -- students, and real data --------------------------------------------------------------------


@pytest.mark.slow
def test_students_whom_named_files_tear_apart_are_counted(tmp_path):
    write(tmp_path / "a.json", generated(1, 100), student_id="s-1")
    write(tmp_path / "b.json", [("question 1", "only one")], student_id="s-1")
    data = collect_data_files((str(tmp_path / "*.json"),))
    (tmp_path / "out").mkdir()
    split = SplitConfig(unseen_answers_files=("b.json",))
    found = examine(ValidateConfig(split=split), data, tmp_path / "out").data_set
    assert found.students_on_both_sides == 1


def real_items(names: str) -> tuple[pa.Table, list[str]]:
    tables = read_files(collect_data_files((str(REAL / names),)), 2**31)
    return tables.items.table, [f.name for f in tables.files]


def said(items: pa.Table) -> list[tuple[str, str]]:
    """Question and words of every answer: the same by another way than the hashes."""
    words_of = (" ".join(words(a)) for a in items["answer"].to_pylist())
    return list(zip(items["question"].to_pylist(), words_of, strict=True))


@needs_real_data
def test_on_real_data_our_split_leaks_nothing_and_a_random_one_does():
    items, _ = real_items("t*.json")
    ours, out = decide(items, SplitConfig(unseen_answers_share=0.1))
    assert not out.any()
    seen: dict[tuple[str, str], set[int]] = {}
    for pair, side in zip(said(items), ours.tolist(), strict=True):
        seen.setdefault(pair, set()).add(side)
    assert all(len(sides) == 1 for sides in seen.values())
    asked, hashes = questions(items), answer_hashes(items["answer"])
    random_sides = (np.random.default_rng(0).random(len(items)) < 0.1).astype(np.int8)
    leaked = on_both_sides(answer_groups(asked.of_item, hashes.exact), random_sides)[random_sides == 1]
    assert leaked.mean() > 0.01


@needs_real_data
def test_official_files_of_real_data_are_taken_as_they_are_and_what_training_shares_is_withheld():
    items, names = real_items("t*.json")
    config = SplitConfig(unseen_answers_files=("test_unseen_answers*",), unseen_questions_files=("test_unseen_q*",))
    file = items["file"].to_numpy()
    sides, out = decide(items, config, named_sides(config, names)[file])
    official = {"test_unseen_answers_1.json": UNSEEN_ANSWERS, "test_unseen_questions_1.json": UNSEEN_QUESTIONS}
    for number, name in enumerate(names):
        assert set(sides[file == number].tolist()) == ({official[name]} if name in official else {TRAIN, VALIDATION})
    assert set(file[out].tolist()) == {names.index("train_1.json")}
    assert 0 < out.sum() < 0.02 * len(items)
    pairs = np.array(said(items), object)
    held = {tuple(pair) for pair in pairs[np.isin(sides, (UNSEEN_ANSWERS, UNSEEN_QUESTIONS))]}
    learned = {tuple(pair) for pair in pairs[np.isin(sides, (TRAIN, VALIDATION)) & ~out]}
    assert not held & learned
    assert held & {tuple(pair) for pair in pairs[out]}
