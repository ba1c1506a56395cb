import pytest

from gradelora.progress import share_done


@pytest.mark.parametrize(
    ("line", "share"),
    [
        ("step 12/150: loss 0.1321, 1906.8 tokens/s", 12 / 150),
        ("evaluate: base and adapter: 32 of 128 different answers, 4.0 a second", 0.25),
        ("fetch: 41.5 % of 65.2 GB", 0.415),
        ("fetch: 100 % of 65.2 GB", 1.0),
        ("loading the adapter", None),
        ("0 of 0", None),
    ],
)
def test_a_line_tells_how_far_a_stage_is(line: str, share: float | None) -> None:
    assert share_done(line) == share
