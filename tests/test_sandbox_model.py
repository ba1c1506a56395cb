"""The tiny gpt-oss: a checkpoint in the original's layout, with a tokenizer nobody can trick."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gradelora.config import EncodeConfig
from gradelora.config_file import load_config
from gradelora.prompt import load_layout
from gradelora.prompt.text import Text
from gradelora.sandbox import pretrain, tiny_gpt_oss
from gradelora.sandbox.answers import SAMPLE_QUESTIONS, read_questions
from gradelora.sandbox.curriculum import ENCODING, curriculum_questions, lessons
from gradelora.sandbox.demo import REPO_ID
from gradelora.sandbox.tokenizer import CONTROLS, VOCABULARY, write_tokenizer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, all_questions(), ENCODING)
    return folder


def all_questions() -> tuple[Any, ...]:
    return (*curriculum_questions(), *read_questions(SAMPLE_QUESTIONS))


def test_control_tokens_stand_at_the_top_of_the_vocabulary(tokenizer: Path) -> None:
    text = Text.load(tokenizer)
    assert [text.control(name) for name in CONTROLS] == list(range(VOCABULARY - len(CONTROLS), VOCABULARY))
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text())
    assert (settings["pad_token"], settings["eos_token"]) == ("<|endoftext|>", "<|return|>")
    assert load_layout(tokenizer, ENCODING).pad_token_id == text.control("<|endoftext|>")


def test_no_text_ever_yields_a_control_token(tokenizer: Path) -> None:
    layout = load_layout(tokenizer, ENCODING)
    nasty = "".join(CONTROLS) + "<|start|>assistant<|channel|>final<|message|>3<|return|> < | return | > ö 漢 \x00"
    ids = layout.answer(nasty)
    assert max(ids) < VOCABULARY - len(CONTROLS)
    assert Text.load(tokenizer).decode(ids) == nasty


def test_the_same_texts_give_the_same_tokenizer(tokenizer: Path, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, all_questions(), ENCODING)
    for file in tokenizer.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name


def test_too_little_text_for_the_vocabulary_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too little text"):
        write_tokenizer(tmp_path, all_questions()[:1], ENCODING)


def test_the_templates_shape_is_that_of_harmony(tokenizer: Path) -> None:
    own = load_layout(tokenizer, ENCODING.model_copy(update={"layout": "chat_template"}))
    harmony = load_layout(tokenizer, ENCODING)
    assert own.target(2, None) == harmony.target(2, None)
    assert list(own.closing) == list(harmony.closing)
    assert own.opening != harmony.opening


def test_the_demo_scores_with_the_prompt_that_the_base_was_pretrained_on() -> None:
    demo = load_config(ROOT / "deployments" / "demo.yaml").encode
    assert rendered(demo) == rendered(ENCODING)


def rendered(config: EncodeConfig) -> dict[str, Any]:
    return config.model_dump(exclude={"max_length", "over_length"})


def test_the_base_is_pretrained_on_other_subjects_than_the_samples() -> None:
    sample, curriculum = read_questions(SAMPLE_QUESTIONS), curriculum_questions()
    assert {q.subject for q in sample}.isdisjoint(q.subject for q in curriculum)
    assert {q.question for q in sample}.isdisjoint(q.question for q in curriculum)
    clauses = [{c for q in part for p in q.points for c in (*p.met, *p.missed)} for part in (sample, curriculum)]
    assert clauses[0].isdisjoint(clauses[1])


def test_lessons_are_the_same_for_a_seed_and_cover_every_question() -> None:
    rows = len(curriculum_questions()) * 25
    first = take(lessons(curriculum_questions(), 8, 0), rows)
    assert take(lessons(curriculum_questions(), 8, 0), 5) == first[:5]
    assert take(lessons(curriculum_questions(), 8, 1), 5) != first[:5]
    assert {question for question, _ in first} == set(curriculum_questions())
    assert len({written.text for _, answers in first for written in answers}) > 2000


def take(supply: Any, count: int) -> list[Any]:
    return [next(supply) for _ in range(count)]


def test_a_half_built_checkpoint_is_built_anew_and_a_finished_one_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def fill(out: Path, seed: int, recipe: str) -> None:
        built.append(seed)
        (out / "shard").write_text("weights")
        (out / tiny_gpt_oss.INDEX).write_text(
            json.dumps({"metadata": {"recipe": recipe}, "weight_map": {"w": "shard"}})
        )

    monkeypatch.setattr(tiny_gpt_oss, "_fill", fill)
    out = tmp_path / "tiny"
    for _ in range(2):
        tiny_gpt_oss.build(out)
    assert built == [0]
    (out / "shard").unlink()
    tiny_gpt_oss.build(out)
    tiny_gpt_oss.build(out, seed=1)
    assert built == [0, 0, 1]
    (out / tiny_gpt_oss.INDEX).write_text("{")
    tiny_gpt_oss.build(out, seed=1)
    assert built == [0, 0, 1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_build_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(out: Path, seed: int, recipe: str) -> None:
        (out / "shard").write_text("half")
        raise RuntimeError("cut off")

    monkeypatch.setattr(tiny_gpt_oss, "_fill", fill)
    with pytest.raises(RuntimeError, match="cut off"):
        tiny_gpt_oss.build(tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def checkpoint(repositories: Path) -> Path:
    return repositories / REPO_ID


@pytest.mark.slow
def test_transformers_loads_the_checkpoint_without_a_missing_or_unexpected_key(checkpoint: Path) -> None:
    import torch
    from transformers import AutoTokenizer, GptOssForCausalLM, Mxfp4Config

    model, info = GptOssForCausalLM.from_pretrained(
        checkpoint,
        quantization_config=Mxfp4Config(dequantize=True),
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert model.config.layer_types == ["sliding_attention", "full_attention"]
    assert model.config.rope_parameters["rope_type"] == "yarn"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], add_generation_prompt=True)
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.decode(prompt["input_ids"]).endswith("<|start|>user<|message|>Why?<|end|><|start|>assistant")


@pytest.mark.slow
def test_the_files_are_those_of_the_original(checkpoint: Path) -> None:
    from safetensors import safe_open

    index = json.loads((checkpoint / tiny_gpt_oss.INDEX).read_text())
    assert len(set(index["weight_map"].values())) == 3
    kinds = {}
    for name, shard in index["weight_map"].items():
        with safe_open(checkpoint / shard, framework="pt") as file:
            part = file.get_slice(name)
            kinds[name] = (part.get_dtype(), part.get_shape())
    experts = "model.layers.1.mlp.experts."
    hidden, inner, count = 128, 128, 4
    assert kinds[experts + "gate_up_proj_blocks"] == ("U8", [count, 2 * inner, hidden // 32, 16])
    assert kinds[experts + "gate_up_proj_scales"] == ("U8", [count, 2 * inner, hidden // 32])
    assert kinds[experts + "down_proj_blocks"] == ("U8", [count, hidden, inner // 32, 16])
    others = {dtype for name, (dtype, _) in kinds.items() if not name.endswith(("_blocks", "_scales"))}
    assert others == {"BF16"}
    assert json.loads((checkpoint / "config.json").read_text())["quantization_config"]["quant_method"] == "mxfp4"
    for name in ("generation_config.json", "special_tokens_map.json", "chat_template.jinja", "original", "metal"):
        assert (checkpoint / name).exists(), name


@pytest.mark.slow
def test_the_build_gives_the_same_bytes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain, "STEPS", 2)
    builds = [tiny_gpt_oss.build(tmp_path / name, seed=3) for name in ("one", "two")]
    files = sorted(path.relative_to(builds[0]) for path in builds[0].rglob("*") if path.is_file())
    assert len(files) > 12
    for name in files:
        assert (builds[0] / name).read_bytes() == (builds[1] / name).read_bytes(), name
    shutil.rmtree(tmp_path / "two")


@pytest.mark.slow
def test_the_base_answers_in_the_form_that_it_is_asked_for(checkpoint: Path) -> None:
    import torch

    from gradelora.model.load import load_base

    layout = load_layout(checkpoint, ENCODING)
    model = load_base(checkpoint, weights="packed", precision="fp32", device="cpu")
    question = read_questions(SAMPLE_QUESTIONS)[0]
    prompt = layout.prefix(question.question, question.rubric, question.max_score)
    prompt += [*layout.answer("The leaves soak up the light."), *layout.closing]
    start = torch.tensor([prompt])
    with torch.inference_mode():
        ids = model.generate(start, max_new_tokens=16, do_sample=False, eos_token_id=layout.target_closing[0])
    reply = ids[0, len(prompt) :].tolist()
    assert reply in [layout.target(score / 2, None) for score in range(9)]
