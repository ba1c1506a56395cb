"""Which question an item belongs to, and which answers count as the same.

Two identities of an answer, both 64-bit sums over its words, so that a column is hashed
without a Python loop over its rows:

exact   the words in order after NFKC, case folding and removal of punctuation and invisible
        characters.  Equal for answers that differ in spelling of space, case or marks alone.
bag     the words as a multiset, each reduced to its consonant skeleton, articles left out.
        Equal also for answers that differ in word order, vowels, doubled letters or a plural
        -s, which is most of what pupils' misspellings are.  (After the key collision
        "fingerprint" of OpenRefine.)

Both depend on nothing but the answer itself: no other answer can change them.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from gradelora.artifacts import canonical_json, sha256_text

U64 = NDArray[np.uint64]
_WORD = re.compile(r"\w+")
_ARTICLES = frozenset({"a", "an", "the"})
_VOWELS = re.compile(r"(?<!^)[aeiouy]+")
_DOUBLED = re.compile(r"(.)\1+")
_MASK = 2**64 - 1
# Odd, so that its powers are invertible mod 2^64; the fractional part of the golden ratio.
_STEP = 0x9E3779B97F4A7C15


def words(text: str) -> list[str]:
    """The words of a text as they count for its identity."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    visible = "".join(c for c in folded if unicodedata.category(c) != "Cf") if not folded.isascii() else folded
    return _WORD.findall(visible.replace("_", " "))


def skeleton(word: str) -> str:
    """A word's consonants: what is left when it is misspelt in the common ways."""
    plain = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
    return _DOUBLED.sub(r"\1", _VOWELS.sub("", plain.removesuffix("s") or plain))


def hash64(text: str) -> int:
    """First 8 bytes of sha256: the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


@dataclass(frozen=True)
class AnswerHashes:
    """Identities of a column of answers, uint64[n] each; 0 for an answer without a word."""

    exact: U64
    bag: U64


def answer_hashes(answers: pa.ChunkedArray) -> AnswerHashes:
    """Both identities of every answer.

    White space splits a column into tokens in Arrow; each distinct token is looked at once.
    """
    exact, bag = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    cache: dict[str, tuple[int, int, int]] = {}
    for chunk in answers.chunks:
        tokens = pc.utf8_split_whitespace(chunk)
        coded = pc.dictionary_encode(tokens.flatten())
        table = np.array([_token(t, cache) for t in coded.dictionary.to_pylist()], dtype=np.uint64).reshape(-1, 3)
        code = coded.indices.to_numpy()
        offsets = tokens.offsets.to_numpy().astype(np.int64) - tokens.offsets[0].as_py()
        ordered, loose, count = (column[code] for column in np.ascontiguousarray(table.T))
        # The position of a token is the number of words before it in its answer.
        before = np.concatenate([[0], np.cumsum(count, dtype=np.int64)])
        lengths = np.diff(offsets)
        position = before[:-1] - np.repeat(before[offsets[:-1]], lengths)
        exact.append(_sums(ordered * _powers(position), offsets))
        bag.append(_sums(loose, offsets))
    return AnswerHashes(np.concatenate(exact), np.concatenate(bag))


def _token(token: str, cache: dict[str, tuple[int, int, int]]) -> tuple[int, int, int]:
    """Ordered hash, bag hash and number of words of what stands between two spaces."""
    if (known := cache.get(token)) is None:
        found = words(token)
        ordered = sum(hash64(w) * pow(_STEP, i, 2**64) for i, w in enumerate(found))
        loose = sum(hash64(skeleton(w)) for w in found if w not in _ARTICLES)
        known = cache[token] = (ordered & _MASK, loose & _MASK, len(found))
    return known


def _powers(exponents: NDArray[np.int64]) -> U64:
    """_STEP to every exponent, mod 2^64."""
    steps = np.full(int(exponents.max(initial=0)) + 1, _STEP, np.uint64)
    steps[0] = 1
    return np.cumprod(steps, dtype=np.uint64)[exponents]


def _sums(values: U64, offsets: NDArray[np.int64]) -> U64:
    """Sum of each slice values[offsets[i]:offsets[i+1]], mod 2^64; empty slices are 0."""
    with np.errstate(over="ignore"):
        running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
        return running[offsets[1:]] - running[offsets[:-1]]


@dataclass(frozen=True)
class Questions:
    """Which items ask the same, numbered from 0; int[n] each.

    `of_item`: question_id where given, else question, rubric and maximum: what has one key.
    `text_of_item`: the same without the maximum, so that two maxima of one question show.
    """

    of_item: NDArray[np.int64]
    text_of_item: NDArray[np.int64]

    def where(self, mask: NDArray[np.bool_]) -> "Questions":
        """Those of some items, numbered anew."""
        numbers = [np.unique(n[mask], return_inverse=True)[1] for n in (self.of_item, self.text_of_item)]
        return Questions(*numbers)


def questions(items: pa.Table) -> Questions:
    """Group items by what they ask."""
    ids, texts, rubrics = (_codes(items[name]) for name in ("question_id", "question", "rubric"))
    has_id = ids >= 0
    text_of_item = _grouped([ids, np.where(has_id, -1, texts), np.where(has_id, -1, rubrics)])
    _, maxima = np.unique(items["max_score"].to_numpy(), return_inverse=True)
    return Questions(_grouped([text_of_item, np.where(has_id, -1, maxima)]), text_of_item)


def question_keys(items: pa.Table, of_item: NDArray[np.int64]) -> tuple[str, ...]:
    """The key of each question: 16 hex digits that depend on what is asked alone."""
    _, first = np.unique(of_item, return_index=True)
    sample = items.select(["question_id", "question", "rubric", "max_score"]).take(pa.array(first, pa.int64()))
    return tuple(_key(row) for row in sample.to_pylist())


def _key(row: dict[str, Any]) -> str:
    asked = canonical_json([row["question"], row["rubric"], row["max_score"]])
    identity = asked if row["question_id"] is None else row["question_id"]
    return sha256_text(identity)[:16]


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Dictionary codes of a column with one dictionary; -1 for null."""
    parts = [chunk.indices.fill_null(-1).to_numpy() for chunk in column.chunks]
    return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, np.int64)


def _grouped(columns: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Number the distinct rows of some columns of codes (from -1) from 0."""
    group = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        span = int(column.max(initial=-1)) + 2
        _, group = np.unique(group * span + column + 1, return_inverse=True)
    return group.astype(np.int64)
