"""The random generators of all GPUs of one process.

The Trainer keeps the current GPU's alone unless there are several processes; dropout of layers
that lie on the others would go on differently after a kill.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

FILE = "gpu_generators.safetensors"


def save_generators(folder: Path) -> None:
    """One state a GPU, by its number."""
    save_file({str(gpu): state for gpu, state in enumerate(torch.cuda.get_rng_state_all())}, folder / FILE)


def restore_generators(folder: Path) -> None:
    """What `save_generators` left there."""
    states = load_file(folder / FILE)
    torch.cuda.set_rng_state_all([states[str(gpu)] for gpu in range(len(states))])
