"""What the Hub sends, in bytes a second over several connections, for a few seconds."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from huggingface_hub import get_session, hf_hub_url

from gradelora.artifacts import BaseModel
from gradelora.config import RunConfig
from gradelora.hub import HubClient
from gradelora.resolve import resolve

MEASURED_S = 4.0
PIECE_BYTES = 2**20


def network_bytes_per_s(run: RunConfig) -> tuple[float, int]:
    """(bytes a second, bytes) of the base model's largest file, all thrown away.

    Raises as resolve, within seconds where no Hub answers.
    """
    quick = {"hub_retries": 0, "hub_timeout_s": min(5.0, run.runtime.hub_timeout_s)}
    runtime = run.runtime.model_copy(update=quick)
    client, base = HubClient(runtime), resolve(run.base, runtime=runtime)
    return client.call("the Hub", lambda: _measure(client, base, run.runtime.fetch_connections))


def _measure(client: HubClient, base: BaseModel, connections: int) -> tuple[float, int]:
    largest = max(base.remote_files, key=lambda file: file.size)
    url = hf_hub_url(base.repo_id, largest.name, revision=base.commit, endpoint=client.endpoint)
    share = -(-largest.size // connections)
    over, received = threading.Event(), [0] * connections

    def receive(number: int) -> None:
        headers = {**client.headers(), "Range": f"bytes={number * share}-{min(largest.size, (number + 1) * share) - 1}"}
        with get_session().stream("GET", url, headers=headers, timeout=client.timeout_s, follow_redirects=True) as got:
            got.raise_for_status()
            for piece in got.iter_bytes(PIECE_BYTES):
                received[number] += len(piece)
                if over.is_set():
                    break

    started = time.monotonic()
    timer = threading.Timer(MEASURED_S, over.set)
    timer.start()
    try:
        with ThreadPoolExecutor(connections) as pool:
            list(pool.map(receive, range(min(connections, -(-largest.size // share)))))
    finally:
        timer.cancel()
    return sum(received) / (time.monotonic() - started), sum(received)
