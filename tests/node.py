"""One node of several: `python -m tests.node REQUEST.json RANK` does what `gradelora train` does once all is there."""

import sys
from pathlib import Path

from gradelora import child
from gradelora.artifacts import EncodedDataset, Frozen, ModelSnapshot
from gradelora.config import RunConfig
from gradelora.errors import GradeloraError
from gradelora.joining import join_node_0
from gradelora.nodes import Place
from gradelora.store import Store
from gradelora.train import train


class Request(Frozen):
    """What both nodes are given."""

    run: RunConfig
    snapshot: ModelSnapshot
    data: EncodedDataset


def main(path: Path, rank: int) -> int:
    request = Request.model_validate_json(path.read_text())
    runtime = request.run.runtime.model_copy(update={"node_rank": rank})
    run = request.run.model_copy(update={"runtime": runtime})
    store = Store(run.store.root)
    try:
        if Place.of(runtime).rank:
            adapter = join_node_0(store, run, request.snapshot, request.data)
        else:
            arguments = (run.train, request.snapshot, request.data)
            adapter = store.obtain(train, *arguments, runtime=runtime, run=child.here).artifact
    except GradeloraError as error:
        print(f"{type(error).__name__}: {error}")
        return error.exit_code
    print(f"digest {adapter.digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
