"""`python -m gradelora.train.compile`: compile DeepSpeed's CPU operator now, so that no run waits for it."""

import os

from gradelora.train.launching import environment_of_tools
from gradelora.train.setup import compile_operator

if __name__ == "__main__":
    os.environ.update(environment_of_tools())
    compile_operator()
