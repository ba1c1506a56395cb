"""`make down`: end the worker and the server that `make up` started, their runs, and nothing else.

What runs is cut off, goes on at the next `make up` and loses nothing that is sealed.
"""

import os
import sys
from collections.abc import Collection

from deployments import processes
from deployments.up import HOME, MACHINE, SERVER, SHELL, WORKER, healthy, held


def down() -> None:
    """The worker first, so that no run begins; then runs that outlived it, which wait; then the server."""
    if not MACHINE.is_dir():
        print("nothing was started here")
        return
    with held():
        home = HOME.absolute()
        cut_off = set(processes.flow_runs(home).values())
        _say(WORKER, processes.stop(WORKER, MACHINE))
        # A worker that was killed, or that is slow to stop, leaves its runs at work.
        cut_off |= processes.end_flow_runs(home)
        server = processes.running(SERVER, MACHINE)
        if server is not None and healthy(server.url):
            for name in _let_wait(server.url, cut_off):
                print(f"run {name}: cut off; it goes on at the next `make up` (prefect flow-run cancel {name} ends it)")
        _say(SERVER, processes.stop(SERVER, MACHINE))
        SHELL.unlink(missing_ok=True)


def _let_wait(url: str, cut_off: Collection[str]) -> list[str]:
    """The names of those that were not at their end, now scheduled to go on; other hosts' runs are left alone."""
    if not cut_off:
        return []
    os.environ |= {"PREFECT_API_URL": url, "PREFECT_HOME": str(HOME.absolute())}
    # Prefect reads its settings when it is imported.
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.objects import State
    from prefect.states import Scheduled

    wanted = {"id": {"any_": list(cut_off)}, "state": {"type": {"any_": ["RUNNING", "PENDING", "CRASHED"]}}}
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted))
        waits: State[None] = Scheduled(name="AwaitingRetry", message="cut off by make down")
        for run in runs:
            client.set_flow_run_state(run.id, waits, force=True)
    return [run.name for run in runs]


def _say(name: str, ran: bool) -> None:
    print(f"{name}: {'stopped' if ran else 'did not run'}")


def main() -> int:
    """`python -m deployments.down`."""
    down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
