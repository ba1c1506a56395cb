"""The main path without Prefect: each stage is obtained when it is first asked for.

`Pipeline(run).adapter` brings everything that an adapter needs and nothing more; what is
sealed in the store is taken from there.
"""

import functools
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

from gradelora import child
from gradelora.artifacts import (
    Adapter,
    Artifact,
    BaseModel,
    DataFiles,
    EncodedDataset,
    EvalReport,
    Frozen,
    MergedModel,
    ModelSnapshot,
    ValidatedRecords,
)
from gradelora.champion import Champion, read_champions
from gradelora.config import FetchConfig, RunConfig
from gradelora.encode import encode
from gradelora.errors import NotEnoughMemory
from gradelora.evaluate import evaluate
from gradelora.fetch import fetch
from gradelora.gate import Verdict, judge, settle
from gradelora.hub import HubClient
from gradelora.joining import join_node_0
from gradelora.merge import merge
from gradelora.mirror import champion_shared
from gradelora.nodes import Place
from gradelora.preflight import Plan, preflight
from gradelora.records import collect_data_files
from gradelora.relief import with_relief
from gradelora.resolve import resolve
from gradelora.score import score
from gradelora.score.chosen import Chosen
from gradelora.score.scored import Scores
from gradelora.store import Obtained, Store
from gradelora.train import train
from gradelora.trained_on import trained_on
from gradelora.validate import validate

A = TypeVar("A", bound=Artifact)


class Pipeline:
    """One configuration's artifacts; `on_obtained` is told of each as it comes, `on_line` of what stages say."""

    def __init__(
        self,
        run: RunConfig,
        on_obtained: Callable[[Obtained[Any]], None] = lambda _: None,
        on_line: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.run = run
        self.store = Store.of(run.store, on_line)
        self._on_obtained, self._on_line = on_obtained, on_line

    @cached_property
    def data(self) -> DataFiles:
        """The data files, by their bytes."""
        return collect_data_files(self.run.data.files)

    @cached_property
    def base(self) -> BaseModel:
        """The base model at its commit."""
        return resolve(self.run.base, runtime=self.run.runtime)

    @cached_property
    def plan(self) -> Plan:
        """What fits; refuses what does not."""
        return preflight(self.run, self.base, self.data, HubClient(self.run.runtime).cache)

    @cached_property
    def tokenizer(self) -> ModelSnapshot:
        """The small files that encoding needs."""
        return self._obtain(fetch, FetchConfig(part="tokenizer"), self.base)

    @cached_property
    def snapshot(self) -> ModelSnapshot:
        """All files of the base model."""
        return self._obtain(fetch, FetchConfig(part="everything"), self.base)

    @cached_property
    def records(self) -> ValidatedRecords:
        """The items that can be trained on."""
        return self._obtain(validate, self.run.validation, self.data)

    @cached_property
    def encoded(self) -> EncodedDataset:
        """The items as tokens."""
        return self._obtain(encode, self.run.encode, self.records, self.tokenizer)

    @cached_property
    def adapter(self) -> Adapter:
        """The trained adapter; the plan, the data and the tokens come before the weights."""
        _ = self.plan
        encoded = self.encoded
        try:
            if Place.of(self.run.runtime).rank:
                return join_node_0(self.store, self.run, self.snapshot, encoded, self._on_obtained, self._on_line)
            return self._obtain(train, self.run.train, self.snapshot, encoded)
        except NotEnoughMemory as error:
            raise with_relief(error, self.run, self.plan) from error

    @cached_property
    def evaluation(self) -> EvalReport:
        """Base beside adapter on held-out items."""
        return self._obtain(evaluate, self.run.evaluate, self.snapshot, self.adapter, self.encoded)

    def verdict(self, *, again: bool = False) -> Verdict:
        """Promote or refuse; the champion may have changed, so it is asked anew each time."""
        run, adapter, evaluation = self.run, self.adapter, self.evaluation
        with champion_shared(run.store, run.name):
            return settle(
                self.store.root,
                run.name,
                run.gate,
                run.evaluate,
                adapter,
                evaluation,
                self.encoded,
                self.examined,
                again=again,
            )

    def judgement(self) -> Verdict:
        """What the gate says, without moving the champion or keeping a refusal."""
        run, adapter, evaluation = self.run, self.adapter, self.evaluation
        with champion_shared(run.store, run.name):
            champions = read_champions(self.store.root, run.name)
        data = self.encoded.digest
        return judge(run.gate, run.evaluate, adapter, evaluation, data, champions, self.examined)

    def examined(self, champion: Champion) -> EvalReport:
        """The champion on today's items, asked with the prompts of its training where they are known."""
        known, data = trained_on(self.store.root, champion.data_digest), self.encoded
        if known is not None and known[1] != self.run.encode:
            data = self._obtain(encode, known[1], self.records, self.tokenizer)
        return self._obtain(evaluate, self.run.evaluate, self.snapshot, champion.adapter, data)

    @cached_property
    def merged(self) -> MergedModel:
        """The adapter in the base's weights, proved on evaluated items."""
        return self._obtain(merge, self.run.merging, self.snapshot, self.adapter, self.evaluation, self.encoded)

    def scores(self, picked: Chosen, data: DataFiles, threshold: float) -> Scores:
        """New answers, scored with an adapter on the very commit of the base that it was trained on."""
        base = resolve(picked.base, runtime=self.run.runtime)
        snapshot = self._obtain(fetch, FetchConfig(part="everything"), base)
        config = picked.config(self.run, threshold)
        return self._obtain(score, config, snapshot, picked.adapter, data, picked.known)

    def _obtain(self, stage: Callable[..., A], config: Frozen, *inputs: Artifact) -> A:
        call = functools.partial(child.call, on_line=self._on_line)
        obtained = self.store.obtain(stage, config, *inputs, runtime=self.run.runtime, run=call)
        self._on_obtained(obtained)
        return obtained.artifact
