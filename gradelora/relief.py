"""What to change when memory ran out all the same: computed from the plan, in the tutorial's order.

The plan held the run to fit, so its own figure for the configured mode is too low; what it says
of the difference between two modes still tells which of them needs less.
"""

from gradelora.config import RunConfig
from gradelora.errors import NotEnoughMemory
from gradelora.preflight import Plan, ways_out

# A way out that needs hardly less than what just failed is none.
WORTH = 0.98


def with_relief(error: NotEnoughMemory, run: RunConfig, plan: Plan) -> NotEnoughMemory:
    """The error with the settings that need less than the configured ones, the cheapest change first.

    Smaller micro-batches come before checkpointing, that before another mode, shorter answers last.
    """
    planned = plan.memory.needed_bytes
    fewer = tuple(m for m in plan.alternatives if m.fits and m.stages[0].needed_bytes < WORTH * planned)
    configured = f"{run.train.weights} + {run.train.parallel}"
    fewer = tuple(m for m in fewer if m.mode.partition(",")[0] == configured) or fewer
    ways = ways_out(run, plan.model_copy(update={"alternatives": fewer}))
    last = f"; if none is enough, lower encode.max_length={run.encode.max_length}" if fewer else ""
    return NotEnoughMemory(
        f"{error}; the plan counted {planned / 1e9:.1f} of {plan.memory.available_bytes / 1e9:.1f} GB "
        f"for {plan.memory.mode}, which was too little; {ways}{last}"
    )
