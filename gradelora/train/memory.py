"""Whether training ended for want of memory: told by the framework, or by the kernel's own count."""

from pathlib import Path

# The whole machine's, and that of the container or job that this process runs in.
COUNTERS = (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events"))
KILLED = ("SIGKILL", "exitcode  : -9", "exitcode: -9")


def out_of_memory(error: BaseException) -> bool:
    """Whether torch could not get memory: of a GPU by its own error, of the host by the allocator's words."""
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def kernel_kills() -> int:
    """Processes that the kernel has ended for want of memory since the machine started; 0 where it does not say."""
    counts = [0]
    for path in COUNTERS:
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        counts += [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
    return max(counts)


def was_killed(said: str) -> bool:
    """Whether a launcher's last lines tell of a process that got SIGKILL."""
    return any(sign in said for sign in KILLED)
