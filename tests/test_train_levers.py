"""The benchmarks of training say so where they found something wrong, or show too little."""

from dataclasses import replace

from bench.bench_train import lost
from tests.killing import Moment, faults

KILL = Moment("step", 4, 0.1, "rank 0", reached=4, sealed=3, resumed=4)
WHILE_SEALING = replace(KILL, point="sealing", unsealed=True)


def test_a_lever_whose_effect_is_gone_or_that_changes_the_loss_is_a_fault() -> None:
    assert lost("prefix", 1.6, 1.25, 1e-7) is None
    assert "1.00 times" in str(lost("prefix", 1.0, 1.25, 1e-7))
    assert "losses differ" in str(lost("prefix", 1.6, 1.25, 0.01))
    assert "losses differ" in str(lost("prefix", 1.6, 1.25, float("nan")))


def test_kills_that_show_what_they_should_have_no_fault() -> None:
    assert faults([KILL, WHILE_SEALING]) == []


def test_a_start_elsewhere_than_after_the_newest_whole_checkpoint_is_a_fault() -> None:
    assert any("then began 2" in fault for fault in faults([KILL, WHILE_SEALING, replace(KILL, resumed=2)]))
    assert any("4 steps lost" in fault for fault in faults([KILL, WHILE_SEALING, replace(KILL, reached=7)]))


def test_kills_that_hit_no_checkpoint_or_after_which_nothing_came_to_a_step_prove_nothing() -> None:
    assert faults([KILL, KILL]) == ["no kill left a checkpoint half written"]
    never = replace(WHILE_SEALING, resumed=None)
    assert any("only 1 of 2" in fault for fault in faults([KILL, never]))
    assert faults([WHILE_SEALING, replace(KILL, sealed=12, reached=12, resumed=None)]) == []
