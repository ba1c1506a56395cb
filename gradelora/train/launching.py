"""How the ranks of this node are started: the command line and the environment."""

import os
from pathlib import Path

from gradelora import launch
from gradelora.config import Runtime, TrainConfig
from gradelora.hardware import tool_path
from gradelora.nodes import Place, interface

# DeepSpeed compiles one small operator, once a machine.
DEFAULT_EXTENSIONS = Path("~/.cache/gradelora/torch_extensions")
LAUNCHER = ("-m", "gradelora.train.launcher")


def command(config: TrainConfig, request: Path, place: Place | None = None, timeout_s: float = 600) -> list[str]:
    """How the ranks are started: torchrun, the deepspeed launcher, or one plain process.

    On several nodes the launcher of node 0 waits `timeout_s` for the others, and they for it.
    """
    place = place or Place()
    program = ["-m", "gradelora.train.rank", str(request)]
    if config.parallel == "layers":
        return launch.python(*program)
    count = place.local_processes(config)
    if config.launcher == "deepspeed":
        return launch.python(*LAUNCHER, "deepspeed.launcher.runner", *_deepspeed(config, request, place), *program[1:])
    # torchrun's own logs would be empty folders in the temporary folder, never removed: ours stand in `out`.
    torchrun = [*LAUNCHER, "torch.distributed.run", "--log-dir", os.devnull, "--nproc_per_node", str(count)]
    if place.nodes == 1:
        return launch.python(*torchrun, "--standalone", *program)
    # static: its rendezvous fails when a node does not come; c10d's would go on with fewer.
    meeting = ["--rdzv_backend", "static", "--master_addr", place.host, "--master_port", str(place.port)]
    meeting += ["--nnodes", str(place.nodes), "--node_rank", str(place.rank), "--rdzv_conf", f"timeout={timeout_s:.0f}"]
    return launch.python(*torchrun, *meeting, *program)


def _deepspeed(config: TrainConfig, request: Path, place: Place) -> list[str]:
    """Options of the deepspeed command.  Its ssh is not used: it passes on neither our environment nor a kill."""
    count = place.local_processes(config)
    if place.nodes == 1:
        option = "--num_gpus" if config.device == "cuda" else "--num_accelerators"
        return [option, str(count), "--module"]
    hostfile = request.with_name(f"hostfile.{place.rank}")
    hostfile.write_text("".join(f"node-{rank} slots={count}\n" for rank in range(place.nodes)), encoding="utf-8")
    meeting = ["--master_addr", place.host, "--master_port", str(place.port)]
    return ["--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(place.rank), *meeting, "--module"]


def environment(config: TrainConfig, runtime: Runtime, place: Place | None = None) -> dict[str, str]:
    """The ranks' environment: threads that add up to the cores, a fixed place for compiled operators."""
    place = place or Place()
    threads = runtime.threads or max(1, (os.cpu_count() or 1) // place.local_processes(config))
    env = {
        **os.environ,
        **environment_of_tools(),
        "OMP_NUM_THREADS": str(threads),
        # Nothing here may reach for the Hub: all files are in the snapshot.
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    if place.nodes > 1 and (name := interface(place)):
        env.setdefault("GLOO_SOCKET_IFNAME", name)
        # "=": exactly this one; NCCL else takes names that only begin so.
        env.setdefault("NCCL_SOCKET_IFNAME", f"={name}")
    if config.device == "cuda":
        env.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    else:
        # Also where there are GPUs: DeepSpeed would take them.
        env |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return env


def environment_of_tools() -> dict[str, str]:
    """Where compilers are found and where compiled operators are kept."""
    folder = os.environ.get("TORCH_EXTENSIONS_DIR", str(DEFAULT_EXTENSIONS.expanduser()))
    return {"PATH": tool_path(), "TORCH_EXTENSIONS_DIR": folder}
