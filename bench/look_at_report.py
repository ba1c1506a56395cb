"""Pictures of a report page, to be looked at: light, dark and a phone's width, without a network.

    python -m bench.look_at_report REPORT.HTML --out FOLDER

Needs Chromium (`apt-get install chromium`).  The page stands in a frame of the wanted width, for a
window is not made as narrow as a phone; names resolve to nothing.  Exits with 1 where the page is
wider than its frame: then a reader would have to scroll sideways.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from gradelora.errors import MissingTool

# name, width in pixels, Blink's preferredColorScheme (0 dark, 1 light).
VIEWS = (("light", 1100, 1), ("dark", 1100, 0), ("phone", 390, 1), ("phone-dark", 390, 0))
FIRST_HEIGHT = 2000
MARGIN = 20
TIMEOUT_S = 180
TELL = (
    "<script>onload=()=>{const e=document.documentElement;"
    "parent.postMessage(`${e.scrollWidth}x${e.scrollHeight}`,'*')}</script>"
)
FRAME = (
    "<body style='margin:0'><iframe src='page.html' style='border:0;width:{width}px;height:{height}px'></iframe>"
    "<script>onmessage=event=>document.body.dataset.size=event.data</script>"
)


def chromium(folder: Path, scheme: int, window: tuple[int, int], *how: str) -> str:
    """What Chromium prints of `folder`/frame.html.  Raises MissingTool."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise MissingTool("no chromium on this machine; apt-get install chromium")
    command = [program, "--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu", *how]
    command += [f"--window-size={window[0]},{window[1]}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command += [f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}"]
    # Time for the frame's message to arrive before the page is read.
    command += ["--virtual-time-budget=3000", (folder / "frame.html").as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT_S).stdout


def look(page: Path, out: Path, name: str, width: int, scheme: int) -> tuple[int, int]:
    """`out`/`name`.png of the whole page; how wide and high it is."""
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        (folder / "page.html").write_text(page.read_text(encoding="utf-8") + TELL, encoding="utf-8")
        frame = folder / "frame.html"
        frame.write_text(FRAME.format(width=width, height=FIRST_HEIGHT))
        told = chromium(folder, scheme, (width + 200, FIRST_HEIGHT), "--dump-dom")
        found = re.search(r'data-size="(\d+)x(\d+)"', told)
        if found is None:
            raise RuntimeError(f"{page}: Chromium told no size of it; it printed {told[:200]!r}")
        size = int(found[1]), int(found[2])
        frame.write_text(FRAME.format(width=width, height=size[1]))
        window = max(width, 500), size[1] + MARGIN
        chromium(folder, scheme, window, f"--screenshot={(out / f'{name}.png').absolute()}")
    return size


def main() -> int:
    """One line a view; 1 where one is too wide."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    fits = True
    for name, width, scheme in VIEWS:
        wide, high = look(arguments.page, arguments.out, name, width, scheme)
        fits &= wide <= width
        print(f"{name:10} {width} wide, {high} high: {'ok' if wide <= width else f'needs {wide}'}", flush=True)
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
