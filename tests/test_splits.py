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
from gradelora.records.split import answer_groups, assign, named_sides, on_both_sides
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


def sides_of(*paths: Path, config: SplitConfig) -> dict[tuple[str, str], str]:
    """The split of every (question, answer) of some files."""
    items = read_files(collect_data_files(tuple(map(str, paths))), 2**20).items.table
    asked, hashes = questions(items), answer_hashes(items["answer"])
    keys, unnamed = question_keys(items, asked.of_item), np.full(len(items), -1, np.int8)
    sides = assign(config, keys, asked.of_item, hashes.bag, unnamed)
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


@pytest.mark.parametrize("seed", range(3))
def test_an_item_never_changes_sides_when_others_arrive_wherever_they_sort(tmp_path, seed):
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


@pytest.mark.parametrize("field", ["unseen_answers_files", "unseen_questions_files"])
def test_a_named_file_that_repeats_an_answer_or_question_of_training_is_a_leak(tmp_path, field):
    write(tmp_path / "train.json", generated(1, 200))
    again = generated(1, 1)[0]
    answer = again[1].upper() + "!" if field == "unseen_answers_files" else "quite another one"
    write(tmp_path / "test.json", [*[("another question", f"answer {n}") for n in range(20)], (again[0], answer)])
    config = ValidateConfig(split=SplitConfig(**{field: ("test.json",)}))
    (tmp_path / "out").mkdir()
    findings = examine(config, collect_data_files((str(tmp_path / "*.json"),)), tmp_path / "out")
    assert findings.blocked
    assert findings.data_set.codes["split_leak"] == 1
    assert findings.sentence().startswith("split_leak: ")


def test_a_pattern_that_names_no_file_or_a_file_twice_is_refused():
    with pytest.raises(BadData, match="none of the data files"):
        named_sides(SplitConfig(validation_files=("dev.json",)), ["train.json"])
    with pytest.raises(BadData, match="named for validation too"):
        named_sides(SplitConfig(validation_files=("d*",), unseen_answers_files=("dev.json",)), ["dev.json"])


# -- students, and real data --------------------------------------------------------------------


def test_students_on_both_sides_are_counted(tmp_path):
    write(tmp_path / "a.json", generated(1, 300), student_id="s-1")
    write(tmp_path / "b.json", [("question 1", "only one")], student_id="s-2")
    (tmp_path / "out").mkdir()
    findings = examine(ValidateConfig(), collect_data_files((str(tmp_path / "*.json"),)), tmp_path / "out")
    assert findings.data_set.students_on_both_sides == 1


@needs_real_data
def test_on_real_data_our_split_leaks_nothing_and_a_random_one_does():
    items = read_files(collect_data_files((str(REAL / "t*.json"),)), 2**31).items.table
    asked, hashes = questions(items), answer_hashes(items["answer"])
    keys, unnamed = question_keys(items, asked.of_item), np.full(len(items), -1, np.int8)
    ours = assign(SplitConfig(unseen_answers_share=0.1), keys, asked.of_item, hashes.bag, unnamed)
    # By another way than the hashes: the words themselves.
    answers = zip(items["question"].to_pylist(), (" ".join(words(a)) for a in items["answer"].to_pylist()), strict=True)
    seen: dict[tuple[str, str], set[int]] = {}
    for pair, side in zip(answers, ours.tolist(), strict=True):
        seen.setdefault(pair, set()).add(side)
    assert all(len(sides) == 1 for sides in seen.values())
    random_sides = (np.random.default_rng(0).random(len(items)) < 0.1).astype(np.int8)
    leaked = on_both_sides(answer_groups(asked.of_item, hashes.exact), random_sides)[random_sides == 1]
    assert leaked.mean() > 0.01
