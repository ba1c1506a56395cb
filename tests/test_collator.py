"""What the collator really emits: loss on the targets alone, each from its own prompt."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from gradelora.errors import LossMisplaced
from gradelora.model.tree import Masking
from gradelora.rows import Items, RowLimits, epoch_rows, plan_run, rows_of, schedule
from gradelora.train.collate import IGNORED, RowCollator, prompts, prove, supervised
from tests.tiny_data import END, save_encoded

GPT_OSS = Masking(windows={"full_attention": None, "sliding_attention": 8}, keyed=True, dtype=torch.float32)
PLAIN = Masking(windows={"": None}, keyed=False, dtype=torch.float32)

FOUR = RowLimits(answers=4, tokens=4096)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Items:
    return Items.read(save_encoded(tmp_path_factory.mktemp("data"), questions=3, answers=7).path / "train")


@pytest.mark.parametrize("masking", [GPT_OSS, PLAIN], ids=["gpt-oss", "plain"])
@pytest.mark.parametrize("answers_per_row", [1, 4])
def test_labels_carry_loss_on_the_target_alone(items: Items, masking: Masking, answers_per_row: int) -> None:
    collator = RowCollator(items, 0, masking)
    rows = epoch_rows(items, RowLimits(answers_per_row, 4096), seed=0, epoch=0)[:5]
    batch = collator(rows)
    prove(batch, rows, collator)
    assert supervised(batch) == [[items.target(i) for i in row] for row in rows]
    assert all(target[-1] == END for row in supervised(batch) for target in row)


def test_each_target_is_predicted_from_exactly_its_own_prompt(items: Items) -> None:
    rows = epoch_rows(items, FOUR, seed=0, epoch=0)
    found = prompts(RowCollator(items, 0, GPT_OSS)(rows), "full_attention")
    assert found == [[items.tokens(i)[: int(items.prompt_lengths[i])] for i in row] for row in rows]


def test_the_tutorials_collator_fails_the_same_check(items: Items) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {f"t{i}": i for i in range(128)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="t1")), pad_token=f"t{END}", eos_token=f"t{END}"
    )
    rows = [(0,), (1,)]
    features = [
        {
            "input_ids": items.tokens(i),
            "labels": [IGNORED] * int(items.prompt_lengths[i]) + items.target(i),
            "attention_mask": [1] * len(items.tokens(i)),
        }
        for (i,) in rows
    ]
    length = max(len(f["input_ids"]) for f in features)
    # Ragged labels raise there, so they are padded before.
    for feature in features:
        feature["labels"] += [IGNORED] * (length - len(feature["labels"]))
    theirs: dict[str, Any] = DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm=False)(features)
    shifted = torch.nn.functional.pad(theirs["labels"], (0, 1), value=IGNORED)[:, 1:]
    collator = RowCollator(items, 0, PLAIN)
    batch = {**collator(rows), "input_ids": theirs["input_ids"], "shift_labels": shifted}
    with pytest.raises(LossMisplaced, match="carry loss"):
        prove(batch, rows, collator)
    # It trains on the prompt and, with pad = eos, not on the end.
    assert len(supervised(batch)[0][0]) > len(items.target(0))
    assert END not in supervised(batch)[0][0]


def test_a_label_on_a_prompt_token_and_an_empty_target_are_refused(items: Items) -> None:
    collator = RowCollator(items, 0, GPT_OSS)
    rows = [(0, 1)]
    moved = collator(rows)
    moved["shift_labels"] = torch.roll(moved["shift_labels"], -1, dims=1)
    with pytest.raises(LossMisplaced):
        prove(moved, rows, collator)
    lengths = items.offsets[1:] - items.offsets[:-1]
    bare = Items(items.ids, items.offsets, items.prefix_lengths, lengths.astype("int32"), items.questions)
    empty = RowCollator(bare, 0, GPT_OSS)
    with pytest.raises(LossMisplaced, match="empty"):
        prove(empty(rows), rows, empty)


def test_a_target_that_sees_another_answer_is_refused(items: Items) -> None:
    collator = RowCollator(items, 0, PLAIN)
    rows = rows_of(items, items.by_question(), FOUR)[:1]
    batch = collator(rows)
    batch["attention_mask"] = torch.triu(torch.full_like(batch["attention_mask"], -1.0), diagonal=1)
    with pytest.raises(LossMisplaced, match="own prompt"):
        prove(batch, rows, collator)


@pytest.mark.parametrize(("ranks", "accumulation", "micro_rows"), [(1, 1, 1), (2, 4, 1), (2, 3, 2), (3, 2, 2)])
def test_every_item_is_seen_once_an_epoch_and_all_ranks_have_the_same_number_of_micro_batches(
    items: Items, ranks: int, accumulation: int, micro_rows: int
) -> None:
    plan = plan_run(
        items,
        epochs=2,
        max_steps=None,
        most=FOUR,
        seed=0,
        ranks=ranks,
        accumulation=accumulation,
        micro_rows=micro_rows,
    )
    micro_batches = [plan.of_rank(rank) for rank in range(ranks)]
    assert {len(m) for m in micro_batches} == {plan.steps * accumulation}
    assert {len(rows) for m in micro_batches for rows in m} == {micro_rows}
    seen = sorted(i for m in micro_batches for rows in m for row in rows for i in row)
    assert seen == sorted([*range(len(items)), *range(len(items))])


def test_empty_rows_fill_up_the_last_step_alone_and_carry_no_label(items: Items) -> None:
    rows = rows_of(items, items.by_question(), FOUR)
    plan = schedule(rows, items, ranks=2, accumulation=2, micro_rows=1)
    empty = [step for step in range(plan.steps) for micro in plan.rows[step] for (row,) in micro if not row]
    assert set(empty) == {plan.steps - 1}
    batch = RowCollator(items, 0, GPT_OSS)([()])
    assert bool((batch["shift_labels"] == IGNORED).all())


def test_plans_are_the_same_for_the_same_seed_and_differ_between_epochs(items: Items) -> None:
    assert epoch_rows(items, FOUR, 5, 0) == epoch_rows(items, FOUR, 5, 0)
    assert epoch_rows(items, FOUR, 5, 0) != epoch_rows(items, FOUR, 5, 1)
    assert epoch_rows(items, FOUR, 5, 0) != epoch_rows(items, FOUR, 6, 0)


def test_max_steps_ends_the_run_before_its_epochs(items: Items) -> None:
    arguments: dict[str, Any] = {"most": FOUR, "seed": 0, "ranks": 2, "accumulation": 1, "micro_rows": 1}
    assert plan_run(items, epochs=50, max_steps=7, **arguments).steps == 7
    whole = plan_run(items, epochs=1, max_steps=1000, **arguments)
    assert whole.steps == math.ceil(len(rows_of(items, items.by_question(), FOUR)) / 2)


def test_the_rows_of_a_question_are_of_like_size(items: Items) -> None:
    """Nine answers in rows of eight at most are four and five, not eight and one."""
    assert [len(row) for row in rows_of(items, {"q": [0] * 9}, RowLimits(8, 4096))] == [4, 5]


def test_a_row_takes_no_answer_beyond_its_tokens_and_no_answer_is_lost(items: Items) -> None:
    questions = items.by_question()
    bound = max(items.row_tokens((i,)) for i in range(len(items))) + 20
    rows = rows_of(items, questions, RowLimits(64, bound))
    assert sorted(i for row in rows for i in row) == list(range(len(items)))
    assert all(items.row_tokens(row) <= bound for row in rows)
    assert any(len(row) > 1 for row in rows)
    assert len(rows) > len(questions)


def test_reading_an_empty_split_gives_no_items(tmp_path: Path) -> None:
    assert len(Items.read(save_encoded(tmp_path, validation=0).path / "validation")) == 0
