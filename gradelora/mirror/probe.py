"""Whether a mirror can be used: write a small file there, read it, remove it."""

import socket
import time

from gradelora.errors import MirrorUnreachable
from gradelora.mirror.remote import Remote


def probe(url: str) -> str:
    """What was found, with the seconds it took.  Raises MirrorUnreachable or MissingTool."""
    started = time.monotonic()
    remote = Remote(url)
    name, text = f"probe-{socket.gethostname()}", str(time.time_ns()).encode()
    remote.write(name, text)
    if (found := remote.read(name)) != text:
        raise MirrorUnreachable(f"store.mirror={url}: {name} was written, and read back as {found!r}")
    remote.remove([name])
    return f"{url}: written, read and removed in {time.monotonic() - started:.1f} s"
