"""torchrun or deepspeed's runner, which must not outlive its parent: `python -m gradelora.train.launcher MODULE ...`.

A killed parent is heard as SIGTERM, which the ranks answer with a seal.  torchrun may then hang for
ever: its threads that follow the ranks' output are not always told to end, and it waits for them.
"""

import runpy
import sys

from gradelora import launch

if __name__ == "__main__":
    launch.outlive_parent_by(launch.GRACE_S)
    _, module, *arguments = sys.argv
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
