"""Every code that validation knows: level, what it is about, and what to do about it."""

from typing import Literal

from gradelora.artifacts import Frozen

Level = Literal["ok", "warning", "quarantine", "error"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "quarantine", "error")
Scope = Literal["file", "record", "item", "data_set"]


class Code(Frozen):
    """One finding's kind.  `scopes` are the rows that it can be found on."""

    name: str
    level: Level
    scopes: tuple[Scope, ...]
    remedy: str


CODES: tuple[Code, ...] = (
    Code(name="empty", level="error", scopes=("file",), remedy="remove the file or fill it with a list of records"),
    Code(name="not_utf8", level="error", scopes=("file",), remedy="save the file as UTF-8"),
    Code(name="bad_gzip", level="error", scopes=("file",), remedy="copy or compress the file again"),
    Code(name="bad_json", level="error", scopes=("file",), remedy="mend the JSON there"),
    Code(
        name="root_not_list",
        level="error",
        scopes=("file",),
        remedy="put [ ] around the records, or name the file .jsonl if every line is a record",
    ),
    Code(name="duplicate_key", level="error", scopes=("file",), remedy="keep one of the two"),
    Code(name="non_finite", level="error", scopes=("file",), remedy="write a finite number, or leave the row out"),
    Code(name="too_large", level="error", scopes=("file",), remedy="split the file or raise max_file_bytes"),
    Code(
        name="too_many_quarantined",
        level="error",
        scopes=("data_set",),
        remedy="mend the rows listed in quarantine.jsonl, or raise max_quarantined_share",
    ),
    Code(
        name="no_rows_left",
        level="error",
        scopes=("data_set",),
        remedy="give more answers, mend the quarantined rows, or change the shares of validation.split",
    ),
    Code(
        name="max_score_conflict",
        level="error",
        scopes=("data_set",),
        remedy="give every answer to one question the same max_score, or tell the questions apart by question_id",
    ),
    Code(
        name="question_conflict",
        level="error",
        scopes=("data_set",),
        remedy="give each question and rubric its own question_id",
    ),
    Code(
        name="split_leak",
        level="error",
        scopes=("data_set",),
        remedy="take the answers that stand in two splits out of all but one, or set validation.split.on_leak=withhold",
    ),
    Code(name="missing_field", level="quarantine", scopes=("record", "item"), remedy="add the field"),
    Code(name="type", level="quarantine", scopes=("record", "item"), remedy="write the value in the field's type"),
    Code(name="score_lt_0", level="quarantine", scopes=("record", "item"), remedy="correct the score"),
    Code(name="max_le_0", level="quarantine", scopes=("record", "item"), remedy="correct max_score"),
    Code(name="item_score_gt_max", level="quarantine", scopes=("item",), remedy="correct score or max_score"),
    Code(name="record_score_gt_max", level="quarantine", scopes=("record",), remedy="correct score or max_score"),
    Code(name="norm_mismatch", level="quarantine", scopes=("record",), remedy="write score / max_score, to 2 places"),
    Code(name="items_sum_gt_record", level="quarantine", scopes=("record",), remedy="correct the scores"),
    Code(name="no_items", level="quarantine", scopes=("record",), remedy="fill rubric_alignment"),
    Code(name="blank_answer_nonzero_score", level="quarantine", scopes=("item",), remedy="restore the answer"),
    Code(name="lone_surrogate", level="quarantine", scopes=("record", "item"), remedy="restore the character"),
    Code(name="control_char", level="quarantine", scopes=("record", "item"), remedy="remove the character"),
    Code(
        name="items_sum_lt_record",
        level="warning",
        scopes=("record",),
        remedy="an excerpt is allowed; complete_alignment=true quarantines it",
    ),
    Code(name="blank_answer_zero_score", level="warning", scopes=("item",), remedy="nothing, if it is meant"),
    Code(name="bom", level="warning", scopes=("file",), remedy="save without a byte order mark"),
    Code(name="no_records", level="warning", scopes=("file",), remedy="remove the file"),
    Code(name="unknown_field", level="warning", scopes=("record", "item"), remedy="check the field's spelling"),
    Code(name="control_token_text", level="warning", scopes=("item",), remedy="none; it is encoded as plain text"),
    Code(name="prompt_injection", level="warning", scopes=("item",), remedy="look at these answers' scores"),
    Code(name="pii", level="warning", scopes=("item",), remedy="remove personal data before training"),
    Code(name="duplicate", level="warning", scopes=("item",), remedy="remove the copy if one answer was read twice"),
    Code(name="conflicting_duplicate", level="warning", scopes=("item",), remedy="let the raters agree on one score"),
    Code(
        name="withheld",
        level="warning",
        scopes=("item",),
        remedy="nothing; the same answer to the same question stands on a more protected side, so it takes no part",
    ),
    Code(name="over_length", level="warning", scopes=("item",), remedy="raise encode.max_length, or shorten"),
    Code(name="majority_class", level="warning", scopes=("data_set",), remedy="add answers with other scores"),
    Code(name="few_answers", level="warning", scopes=("data_set",), remedy="add answers to these questions"),
    Code(name="constant_score", level="warning", scopes=("data_set",), remedy="add answers with other scores"),
)
BY_NAME = {code.name: code for code in CODES}


def level_of(name: str, *, complete_alignment: bool) -> Level:
    """The level of a code under a configuration."""
    if name == "items_sum_lt_record" and complete_alignment:
        return "quarantine"
    return BY_NAME[name].level


def worst(levels: list[Level]) -> Level:
    """The gravest of them; ok where there are none."""
    return max(levels, key=LEVELS.index, default="ok")
