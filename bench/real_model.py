"""`python -m bench.real_model --data FOLDER --work FOLDER`: the laptop deployment on SciEntsBank, whole epochs.

FOLDER holds SemEval-2013 task 7 in the project's format (train_1.json, test_unseen_answers_1.json,
test_unseen_questions_1.json) beside questions.json with the reference answers, which become the
rubric.  The official files are the splits.  It takes one to two hours on two cores; the result
stands in docs/laptop.md.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

from gradelora.sandbox.hub import LoopbackHub

ROOT = Path(__file__).parents[1]
FILES = ("train_1.json", "test_unseen_answers_1.json", "test_unseen_questions_1.json")
SETTINGS = (
    "name=laptop-scientsbank",
    "validation.split.validation_share=0.03",
    "validation.split.unseen_answers_files=[test_unseen_answers*]",
    "validation.split.unseen_questions_files=[test_unseen_questions*]",
    "encode.max_length=512",
    "train.learning_rate=8.0e-4",
    "train.warmup_steps=20",
    "train.epochs=2",
    "train.answers_per_row=12",
    "train.tokens_per_row=640",
    "train.save_every=0.1",
    "train.lora={r: 16, alpha: 32, dropout: 0.0, "
    "target_modules: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]}",
    "evaluate.splits=[unseen_answers, unseen_questions]",
)


def with_rubrics(data: Path, out: Path) -> None:
    """Write the graded answers with their question's reference answers as rubric."""
    references: dict[str, list[str]] = {}
    for question in json.loads((data / "questions.json").read_text(encoding="utf-8")).values():
        known = references.setdefault(question["question"], [])
        known += [text for text in question["reference"] if text not in known]
    out.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        records = json.loads((data / name).read_text(encoding="utf-8"))
        for item in (item for record in records for item in record["rubric_alignment"]):
            item["rubric"] = "1 point for an answer that means: " + " / ".join(references[item["question"]])
        (out / name).write_text(json.dumps(records, indent=1), encoding="utf-8")


def main() -> int:
    """Prepare the data, then run the flow; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.real_model", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of SciEntsBank")
    parser.add_argument("--work", type=Path, required=True, help="for the prepared data, the store and the cache")
    parser.add_argument("--repositories", type=Path, help="serve <owner>/<name> folders from a loopback Hub instead")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    with_rubrics(arguments.data, work / "data")
    places = (f"data.files=[{work}/data/*.json]", f"store.root={work}/store", f"runtime.hub_cache={work}/hub")
    command = [sys.executable, "-m", "flows.finetune", "--config", "deployments/laptop.yaml"]
    for setting in (*SETTINGS, *places):
        command += ["--set", setting]
    with contextlib.ExitStack() as opened:
        env = dict(os.environ)
        if arguments.repositories:
            env["HF_ENDPOINT"] = opened.enter_context(LoopbackHub(arguments.repositories)).url
        return subprocess.run(command, env=env, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
