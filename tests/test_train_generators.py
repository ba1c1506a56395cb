"""What a process that computes on several GPUs keeps of their generators, and how batches reach them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers.training_args import ParallelMode

from gradelora.train.trainer import RowTrainer


def trainer_of(device: str, *, deepspeed: bool = False) -> RowTrainer:
    """A trainer that has its arguments and no model; there is no GPU here."""
    trainer = RowTrainer.__new__(RowTrainer)
    trainer.args = SimpleNamespace(  # type: ignore[assignment]
        device=torch.device(device),
        world_size=1,
        parallel_mode=ParallelMode.NOT_DISTRIBUTED,
        dataloader_num_workers=0,
        dataloader_pin_memory=device == "cuda",
    )
    trainer.is_deepspeed_enabled = deepspeed
    trainer.train_dataset = []
    return trainer


def test_dropout_on_every_gpu_goes_on_as_in_the_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus = [torch.Generator().manual_seed(seed) for seed in (1, 2)]

    def put(states: list[torch.Tensor]) -> None:
        for gpu, state in zip(gpus, states, strict=True):
            gpu.set_state(state)

    monkeypatch.setattr("torch.cuda.get_rng_state_all", lambda: [gpu.get_state() for gpu in gpus])
    monkeypatch.setattr("torch.cuda.set_rng_state_all", put)
    trainer = trainer_of("cuda")
    trainer._save_rng_state(str(tmp_path))
    undisturbed = [torch.rand(5, generator=gpu) for gpu in gpus]
    trainer._load_rng_state(str(tmp_path))
    assert all(torch.equal(torch.rand(5, generator=gpu), was) for gpu, was in zip(gpus, undisturbed, strict=True))


@pytest.mark.parametrize(("device", "deepspeed"), [("cpu", False), ("cuda", True)])
def test_ranks_that_have_one_device_each_keep_what_the_trainer_keeps(
    tmp_path: Path, device: str, deepspeed: bool
) -> None:
    trainer_of(device, deepspeed=deepspeed)._save_rng_state(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["rng_state.pth"]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_for_a_gpu_are_pinned(device: str) -> None:
    assert trainer_of(device).get_train_dataloader().pin_memory == (device == "cuda")
