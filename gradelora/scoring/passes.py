"""Which answers go through the model together: as many as memory allows, each pass with the prefixes it needs.

A pass over packed experts unpacks every layer, however few its answers are: so small questions
share one, and a question of many answers keeps its prefix from one of its own passes to the next.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

# Answers in a forward pass, for every row that the caller allows, and their tokens.
ANSWERS_PER_ROW = 8
TOKENS_PER_ROW = 2048


@dataclass(frozen=True)
class Pass:
    """One forward pass over answers behind `prefixes`, after one over these, if the pass before had others.

    `prompts` and the number of the prefix `behind` which each stands; `tokens` is what it costs,
    padding included.
    """

    prefixes: tuple[tuple[int, ...], ...]
    prompts: tuple[int, ...]
    behind: tuple[int, ...]
    tokens: int


@dataclass
class _Open:
    """A pass that questions are still added to."""

    prefixes: list[tuple[int, ...]] = field(default_factory=list)
    prompts: list[int] = field(default_factory=list)
    behind: list[int] = field(default_factory=list)
    longest: int = 0
    longest_prefix: int = 0

    def fits(self, prefix: tuple[int, ...], members: Sequence[tuple[int, int]], rows: int) -> bool:
        """Whether all answers to one more question may come in."""
        answers, most = len(self.prompts) + len(members), rows * TOKENS_PER_ROW
        return (
            answers <= rows * ANSWERS_PER_ROW
            and answers * max(self.longest, members[0][1]) <= most
            and (len(self.prefixes) + 1) * max(self.longest_prefix, len(prefix)) <= most
        )

    def add(self, prefix: tuple[int, ...], members: Sequence[tuple[int, int]]) -> None:
        self.prompts += [prompt for prompt, _ in members]
        self.behind += [len(self.prefixes)] * len(members)
        self.prefixes.append(prefix)
        self.longest = max(self.longest, members[0][1])
        self.longest_prefix = max(self.longest_prefix, len(prefix))

    def closed(self, *, again: bool = False) -> Pass:
        """The pass; `again` where the one before has computed its prefixes."""
        tokens = len(self.prompts) * self.longest + (0 if again else len(self.prefixes) * self.longest_prefix)
        return Pass(tuple(self.prefixes), tuple(self.prompts), tuple(self.behind), tokens)


def passes(groups: Mapping[tuple[int, ...], Sequence[tuple[int, int]]], rows: int) -> list[Pass]:
    """Passes bounded by `rows`, from the (prompt, tokens of its branch) behind every prefix.

    Longest first: what does not fit into memory fails at once, and those of like length share a pass.
    """
    found, shared = [], _Open()
    sorted_groups = [(prefix, sorted(group, key=lambda m: m[1], reverse=True)) for prefix, group in groups.items()]
    for prefix, members in sorted(sorted_groups, key=lambda g: len(g[0]) + g[1][0][1], reverse=True):
        own = list(_chunks(members, rows))
        if len(own) > 1:
            found += [_alone(prefix, chunk, again=number > 0) for number, chunk in enumerate(own)]
            continue
        if shared.prompts and not shared.fits(prefix, members, rows):
            found.append(shared.closed())
            shared = _Open()
        shared.add(prefix, members)
    return [*found, shared.closed()] if shared.prompts else found


def _alone(prefix: tuple[int, ...], members: Sequence[tuple[int, int]], *, again: bool) -> Pass:
    one = _Open()
    one.add(prefix, members)
    return one.closed(again=again)


def _chunks(members: Sequence[tuple[int, int]], rows: int) -> Iterator[Sequence[tuple[int, int]]]:
    """Members, longest first, by the passes that they fill."""
    while members:
        most = max(1, min(rows * ANSWERS_PER_ROW, rows * TOKENS_PER_ROW // members[0][1]))
        yield members[:most]
        members = members[most:]


def share(whole: Sequence[Pass], rank: int, ranks: int) -> list[Pass]:
    """The passes of one of `ranks` processes: a stretch of about equal cost.

    A stretch, not every n-th: so no more than one prefix a border is computed twice.
    """
    total = sum(one.tokens for one in whole)
    before, found = 0, []
    for one in whole:
        if (2 * before + one.tokens) * ranks // (2 * total) == rank:
            found.append(one)
        before += one.tokens
    return found
