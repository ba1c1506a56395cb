"""Scores by likelihood equal what one row a candidate would compute."""

import math
from typing import Any

import pytest
import torch
from transformers import GptOssForCausalLM

from gradelora.scoring.candidates import Candidates, Likelihoods, Prompt
from gradelora.scoring.likelihood import _trie as trie
from gradelora.scoring.likelihood import score_prompts, score_share
from gradelora.scoring.opinion import opinion
from gradelora.scoring.passes import ANSWERS_PER_ROW, Pass, passes, share
from tests.tiny_models import VOCAB, tiny_gpt_oss_config

END = VOCAB - 1
# "0", ".5", "1", ... as (whole, half) tokens: 1 is a prefix of 1.5, as "1" is of "1.5".
HALVES = Candidates(
    max_score=2,
    step=0.5,
    scores=(0, 0.5, 1, 1.5, 2),
    targets=((90, 10, END), (90, 10, 7, 8, END), (90, 11, END), (90, 11, 7, 8, END), (90, 12, END)),
)
WHOLE = Candidates(max_score=1, step=1, scores=(0, 1), targets=((90, 10, END), (90, 11, END)))


@pytest.fixture(scope="module")
def model() -> Any:
    """Random weights, sinks included; window 8 and YaRN from 32 positions."""
    torch.manual_seed(5)
    built = GptOssForCausalLM._from_config(tiny_gpt_oss_config(), attn_implementation="eager").float().eval()
    for name, parameter in built.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter)
    return built


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    """Two questions; prefixes longer than the window, answers longer than it and shorter, one of them twice."""
    generator = torch.Generator().manual_seed(3)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(20, 80, (count,), generator=generator).tolist())

    made = []
    for question, prefix_length, answers in (("halves", 37, 11), ("whole", 12, 3)):
        prefix = ids(prefix_length)
        made += [Prompt(prefix + ids(1 + 3 * (i % 7)), prefix_length, question) for i in range(answers)]
    return [*made, made[2]]


CANDIDATES = {"halves": HALVES, "whole": WHOLE}


def one_row_a_candidate(model: Any, prompt: Prompt) -> list[float]:
    found = []
    for target in CANDIDATES[prompt.question_key].targets:
        ids = torch.tensor([prompt.ids + target])
        with torch.inference_mode():
            logs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        at = len(prompt.ids) - 1
        found.append(sum(logs[at + k, token].item() for k, token in enumerate(target)))
    return found


def score(model: Any, prompts: list[Prompt], rows_per_pass: int) -> list[Likelihoods]:
    return score_prompts(model, prompts, CANDIDATES, pad_id=0, rows_per_pass=rows_per_pass)


def test_log_probabilities_equal_one_row_a_candidate(model: Any, prompts: list[Prompt], monkeypatch: Any) -> None:
    monkeypatch.setattr("gradelora.scoring.likelihood.DIGITS", 9)
    for prompt, found in zip(prompts, score(model, prompts, 3), strict=True):
        assert found.log_probabilities == pytest.approx(one_row_a_candidate(model, prompt), abs=1e-5)


def test_rows_a_pass_change_no_decision_and_no_recorded_figure(model: Any, prompts: list[Prompt]) -> None:
    one, four = score(model, prompts, 1), score(model, prompts, 4)
    for prompt, a, b in zip(prompts, one, four, strict=True):
        candidates = CANDIDATES[prompt.question_key]
        assert opinion(candidates, a).score == opinion(candidates, b).score
        assert a.log_probabilities == pytest.approx(b.log_probabilities, abs=1.1e-4)


def test_sharing_off_decides_the_same(model: Any, prompts: list[Prompt]) -> None:
    """Prefix, trie and rows shared; a prefix for each answer alone; a row a candidate, nothing shared."""
    apart = [Prompt(p.ids, 0, p.question_key) for p in prompts]
    for prompt, a, b in zip(prompts, score(model, prompts, 4), score(model, apart, 1), strict=True):
        rows = one_row_a_candidate(model, prompt)
        scores = CANDIDATES[prompt.question_key].scores
        decided = [opinion(CANDIDATES[prompt.question_key], found).score for found in (a, b)]
        assert decided == [scores[rows.index(max(rows))]] * 2
        assert a.log_probabilities == pytest.approx(b.log_probabilities, abs=1.1e-4)


def test_greedy_is_what_generate_writes(model: Any, prompts: list[Prompt]) -> None:
    for prompt, found in zip(prompts, score(model, prompts, 4), strict=True):
        ids = torch.tensor([prompt.ids])
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=5,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=0,
        )
        targets = CANDIDATES[prompt.question_key].targets
        new = tuple(written[0, len(prompt.ids) :].tolist())
        assert found.greedy == (targets.index(new) if new in targets else None)


def test_greedy_names_the_candidate_that_the_model_was_made_to_write(model: Any, prompts: list[Prompt]) -> None:
    """Untrained weights write no allowed score: bias the head so that the second candidate is written."""
    head = model.lm_head
    biased = {90: 0, 10: 1, END: 2}

    class Forced(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            logits = head(hidden)
            logits[..., list(biased)] += torch.tensor([50.0, 40.0, 30.0])
            return logits

    prompt = Prompt(prompts[0].ids, prompts[0].prefix_length, "one")
    only = Candidates(max_score=1, step=1, scores=(0, 1), targets=((90, 90, END), (90, 90, 90)))
    model.lm_head = Forced()
    try:
        (found,) = score_prompts(model, [prompt], {"one": only}, pad_id=0, rows_per_pass=1)
    finally:
        model.lm_head = head
    assert found.greedy == 1
    assert found.log_probabilities[1] == pytest.approx(0, abs=1e-3)


def test_equal_prompts_are_computed_once(model: Any, prompts: list[Prompt]) -> None:
    counts = []
    score_share(
        model,
        prompts,
        CANDIDATES,
        pad_id=0,
        rows_per_pass=2,
        rank=0,
        ranks=1,
        on_progress=lambda done, total: counts.append((done, total)),
    )
    assert counts[-1] == (len(prompts) - 1, len(prompts) - 1)


def test_no_pass_has_more_answers_or_padded_tokens_than_allowed(monkeypatch: Any) -> None:
    monkeypatch.setattr("gradelora.scoring.passes.TOKENS_PER_ROW", 1000)
    groups = {(q,) * (5 * q): [(1000 * q + i, 3 * i) for i in range(1, 4 + 8 * (q % 5 == 0) * q)] for q in range(1, 41)}
    made = passes(groups, 2)
    length = {prompt: length for members in groups.values() for prompt, length in members}
    assert sorted(prompt for one in made for prompt in one.prompts) == sorted(length)
    for before, one in zip([None, *made], made, strict=False):
        longest, widest = max(length[prompt] for prompt in one.prompts), max(map(len, one.prefixes))
        assert len(one.prompts) <= 2 * ANSWERS_PER_ROW
        assert len(one.prompts) * longest <= 2000 or len(one.prompts) == 1
        assert len(one.prefixes) * widest <= 2000
        assert all(one.prefixes[g][0] == prompt // 1000 for prompt, g in zip(one.prompts, one.behind, strict=True))
        again = before is not None and before.prefixes == one.prefixes
        assert one.tokens == len(one.prompts) * longest + (0 if again else len(one.prefixes) * widest)


def test_small_questions_share_a_pass_and_a_large_one_keeps_its_prefix_for_passes_of_its_own() -> None:
    groups = {(q,) * 10: [(10 * q + i, 5) for i in range(3)] for q in range(10)} | {
        (99,) * 10: [(1000 + i, 5) for i in range(20)]
    }
    made = passes(groups, 1)
    assert [len(one.prompts) for one in made if one.prefixes == ((99,) * 10,)] == [8, 8, 4]
    assert sum(one.prefixes != ((99,) * 10,) for one in made) == 5


def test_every_prefix_is_computed_with_those_of_its_pass_alone(model: Any, monkeypatch: Any) -> None:
    """Ten questions of three answers: a forward pass over prefixes and one over answers for each pass."""
    generator = torch.Generator().manual_seed(9)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(20, 80, (count,), generator=generator).tolist())

    asked = []
    for question in range(10):
        prefix = ids(4 + 3 * question)
        asked += [Prompt(prefix + ids(2 + i), len(prefix), "halves" if question % 2 else "whole") for i in range(3)]
    calls = []
    whole = model.forward
    monkeypatch.setattr(model, "forward", lambda *args, **given: calls.append(1) or whole(*args, **given))
    monkeypatch.setattr("gradelora.scoring.likelihood.DIGITS", 9)
    together = score(model, asked, 4)
    assert len(calls) == 2
    for prompt, found in zip(asked, together, strict=True):
        assert found.log_probabilities == pytest.approx(one_row_a_candidate(model, prompt), abs=1e-5)


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_share_the_passes_evenly_and_each_pass_once(ranks: int) -> None:
    whole = [Pass(((q,) * 50,), (i,), (0,), 20 + 7 * (i % 5)) for q in range(4) for i in range(20)]
    shares = [share(whole, rank, ranks) for rank in range(ranks)]
    assert [one for part in shares for one in part] == whole
    costs = [sum(one.tokens for one in part) for part in shares]
    assert max(costs) - min(costs) <= 2 * max(one.tokens for one in whole)


def test_two_ranks_together_say_the_same_bits_as_one(model: Any, prompts: list[Prompt]) -> None:
    def of_rank(rank: int) -> dict[int, Likelihoods]:
        return score_share(model, prompts, CANDIDATES, pad_id=0, rows_per_pass=1, rank=rank, ranks=2)

    first, second = of_rank(0), of_rank(1)
    assert first
    assert second
    assert not first.keys() & second.keys()
    assert [(first | second)[i] for i in range(len(prompts))] == score(model, prompts, 1)


def test_a_prompt_that_is_all_prefix_is_scored_too(model: Any, prompts: list[Prompt], monkeypatch: Any) -> None:
    monkeypatch.setattr("gradelora.scoring.likelihood.DIGITS", 9)
    ids = prompts[0].ids
    whole, none = score(model, [Prompt(ids, len(ids), "halves"), Prompt(ids, 0, "halves")], 1)
    assert whole.log_probabilities == pytest.approx(one_row_a_candidate(model, prompts[0]), abs=1e-5)
    assert none.log_probabilities == pytest.approx(whole.log_probabilities, abs=1e-5)


def test_a_trie_shares_what_candidates_share_and_never_feeds_the_end_token() -> None:
    built = trie(HALVES.targets)
    # 90; 10, 7, 8 below it; 11, 7, 8; 12.
    assert built.ids == (90, 10, 7, 8, 11, 7, 8, 12)
    assert built.parents == (-1, 0, 1, 2, 0, 4, 5, 0)
    assert built.reads[1] == (-1, 0, 1, 2, 3)


def test_opinion_of_hand_made_log_probabilities() -> None:
    logs = tuple(math.log(p) for p in (0.05, 0.05, 0.1, 0.2, 0.1))
    view = opinion(HALVES, Likelihoods(logs, 3))
    # Given an allowed score (0.5 together): 0.1, 0.1, 0.2, 0.4, 0.2.
    assert view.score == 1.5
    assert view.confidence == pytest.approx(0.4)
    assert view.expected == pytest.approx(0 * 0.1 + 0.5 * 0.1 + 1 * 0.2 + 1.5 * 0.4 + 2 * 0.2)
    assert view.mass == pytest.approx(0.5)
    assert view.greedy == 1.5


def test_of_equally_likely_scores_the_lowest_is_given() -> None:
    assert opinion(WHOLE, Likelihoods((-1.0, -1.0), None)).score == 0
