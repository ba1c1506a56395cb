"""What `gradelora train` does on every node but the first: train beside it, then wait for its adapter.

Node 0 holds the artifact's lock and seals it; the others only bring their ranks.
"""

import time
from collections.abc import Callable
from typing import Any

from gradelora.artifacts import Adapter, EncodedDataset, ModelSnapshot
from gradelora.config import RunConfig
from gradelora.errors import RankLost
from gradelora.store import Obtained, Store, key_of
from gradelora.train import join, train

# As often as tasks/train.py has node 0 try: a lost rank on either side ends the ranks of both.
ATTEMPTS = 2
SEALED_WITHIN_S = 120.0


def join_node_0(
    store: Store,
    run: RunConfig,
    snapshot: ModelSnapshot,
    data: EncodedDataset,
    on_obtained: Callable[[Obtained[Any]], None] = lambda _: None,
    on_line: Callable[[str], None] = print,
) -> Adapter:
    """The adapter that node 0 seals, trained together; at once where it is there already.

    Raises RankLost where a rank of any node is lost ATTEMPTS times, or node 0 does not come.
    """
    started = time.monotonic()
    found = store.find(train, run.train, snapshot, data)
    cached = found is not None
    for attempt in range(ATTEMPTS):
        if found is not None:
            break
        out = store.building(train.__name__, key_of(train, run.train, (snapshot, data)))
        out.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            join(run.train, snapshot, data, out=out, runtime=run.runtime, on_line=on_line)
        except RankLost:
            # Node 0 may have sealed its adapter while this node still waited for it.
            found = store.find(train, run.train, snapshot, data)
            if found is None and attempt == ATTEMPTS - 1:
                raise
        else:
            found = _sealed(store, run, snapshot, data)
    assert found is not None
    why = "verified against its receipt" if cached else "trained together with node 0"
    on_obtained(Obtained("train", found, cached, time.monotonic() - started, why, "train"))
    return found


def _sealed(store: Store, run: RunConfig, snapshot: ModelSnapshot, data: EncodedDataset) -> Adapter:
    until = time.monotonic() + SEALED_WITHIN_S
    while time.monotonic() < until:
        found = store.find(train, run.train, snapshot, data)
        if found is not None:
            return found
        time.sleep(0.5)
    raise RankLost(f"node 0 has not sealed the adapter within {SEALED_WITHIN_S:.0f} s of its last step; see its log")
