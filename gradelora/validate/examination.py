"""One examination of one data set, from bytes to findings.

Every flag passes the judge before anything follows from it.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradelora.artifacts import ASIDE, DataFiles
from gradelora.config import ValidateConfig
from gradelora.records.columns import Flags, Rows
from gradelora.records.identity import AnswerHashes, Questions, answer_hashes, question_keys, questions
from gradelora.records.read import Tables, read_files
from gradelora.records.split import Deciding, answer_groups, assign, named_sides, withheld
from gradelora.records.write import write_items, write_records
from gradelora.validate import checks, quarantine
from gradelora.validate.codes import CODES, Level, level_of
from gradelora.validate.data_set import Kept, Whole, examine_whole
from gradelora.validate.files import file_findings, file_flags
from gradelora.validate.findings import Findings, Source, write_json
from gradelora.validate.judge import Judge
from gradelora.validate.quarantine import Checked

_INHERITED = ("feedback", "student_id", "group")


def examination(config: ValidateConfig, data: DataFiles, out: Path) -> Findings:
    """Read, flag, judge, set aside, split, judge the whole, write (see gradelora.validate)."""
    levels: dict[str, Level] = {c.name: level_of(c.name, complete_alignment=config.complete_alignment) for c in CODES}
    judge = Judge(levels, out / ASIDE / "data_docs")
    tables = read_files(data, config.max_file_bytes)
    control_char = checks.own_control_chars(tables.items.table)
    tables.items.table = _inherit(tables.items.table, tables.records.table)
    hashes, asked = answer_hashes(tables.items.table["answer"]), questions(tables.items.table)
    pii = checks.find_pii(tables.items.table)
    flags = {**_item_flags(tables.items, config, asked, hashes, pii), "control_char": control_char}
    items = Checked(tables.items, flags, judge.judge("items", flags))
    flags = checks.check_records(tables.records, tables.items, flags)
    records = Checked(tables.records, flags, judge.judge("records", flags))
    flags = file_flags(tables)
    file_codes = (flags, judge.judge("files", flags))

    bad_records, bad_items = records.faulty(levels), items.faulty(levels)
    bad_items |= bad_records[tables.items.table["record_row"].to_numpy()]
    names = [f.name for f in tables.files]
    kept = _keep(config, names, tables.items.table, ~bad_items, asked, hashes)
    # A record that shows no item counts as one row.
    empty = tables.records.table["n_items"].to_numpy() == 0
    whole = Whole(
        rows=len(bad_items) + int(empty.sum()),
        quarantined=int(bad_items.sum()) + int((empty & bad_records).sum()),
        records=int((~bad_records).sum()),
        pii={kind: int(found.sum()) for kind, found in pii.items()},
    )
    flags = {"withheld": kept.withheld}
    parted = Checked(Rows(kept.table, flags, {}), flags, judge.judge("sides", flags))
    data_set = examine_whole(config, kept, whole, judge, names)
    judge.build_docs()
    findings = Findings(
        files=file_findings(tables, levels, file_codes, [records, items, parted]),
        data_set=data_set,
        sources=tuple(Source(name=f.name, sha256=f.sha256, size=f.size) for f in data.files),
    )
    _write(findings, out, tables, kept, (~bad_records, ~bad_items))
    entries = [e for c in (records, items) for e in quarantine.entries(c, levels, names)]
    quarantine.write(_place(findings, out) / "quarantine.jsonl", entries)
    return findings


def _inherit(items: pa.Table, records: pa.Table) -> pa.Table:
    """Items with their record's feedback, student and group where they have none themselves."""
    for name in _INHERITED:
        theirs = records[name]
        if theirs.null_count == len(theirs):
            continue
        outer = theirs.cast(pa.string()).take(items["record_row"])
        own = items[name]
        both = outer if own.null_count == len(own) else pc.coalesce(own.cast(pa.string()), outer)
        column = both if name == "feedback" else both.dictionary_encode()
        items = items.set_column(items.schema.get_field_index(name), name, column)
    return items


def _item_flags(items: Rows, config: ValidateConfig, asked: Questions, hashes: AnswerHashes, pii: Flags) -> Flags:
    """Every code of single items."""
    groups = answer_groups(asked.of_item, hashes.exact)
    # An answer without a word repeats nothing.
    repeats = checks.find_repeats(groups, checks.number(items.table, "score"), hashes.exact != 0)
    return {
        **checks.check_items(items, config),
        "pii": np.logical_or.reduce(list(pii.values())),
        "duplicate": repeats.duplicate,
        "conflicting_duplicate": repeats.conflicting,
    }


def _keep(
    config: ValidateConfig,
    names: list[str],
    items: pa.Table,
    good: checks.Bools,
    asked: Questions,
    hashes: AnswerHashes,
) -> Kept:
    """The items that are not set aside, each on its side; where a leak shall not block, those in two are withheld."""
    # Texts are not needed to judge the whole: they would be copied once more.
    table, asked = items.drop_columns(["answer", "feedback"]).filter(pa.array(good)), asked.where(good)
    hashes = AnswerHashes(hashes.exact[good], hashes.bag[good])
    keys = question_keys(table, asked.of_item)
    named = named_sides(config.split, names)[table["file"].to_numpy()]
    sides = assign(config.split, Deciding(keys, asked.of_item, hashes.bag, table["student_id"], named))
    leaking = withheld(sides, asked.of_item, hashes.bag)
    out = leaking & (config.split.on_leak == "withhold")
    return Kept(table, asked, keys, hashes, sides, leaking, out)


def _place(findings: Findings, out: Path) -> Path:
    return out / ASIDE if findings.blocked else out


def _write(findings: Findings, out: Path, tables: Tables, kept: Kept, good: tuple[checks.Bools, checks.Bools]) -> None:
    """Findings always; the good records and items only where training could go on, without those withheld."""
    write_json(_place(findings, out) / "findings.json", findings)
    if not findings.blocked:
        names = [f.name for f in tables.files]
        records, items = good
        used = items.copy()
        used[items] = ~kept.withheld
        question = kept.questions.of_item[~kept.withheld]
        write_items(out / "items.arrow", tables.items.table, used, names, kept.keys, question, kept.used_sides)
        write_records(out / "records.arrow", tables.records.table, records, names)
