"""`python -m deployments.grace`, before a server starts: no run counts as dead for what the server missed.

The server takes up its count where it was: after an absence longer than SILENCE it would mark
every healthy run Crashed in its first seconds, before their next heartbeats have reached it.  So
each count that waits for a heartbeat begins anew.  Works on any database that the server does
(PREFECT_API_DATABASE_CONNECTION_URL); one without tables yet is left as it is.
"""

import asyncio
import sys
from datetime import UTC, datetime

import sqlalchemy as sa
from prefect.server.database import provide_database_interface

from deployments.automations import SILENCE, recovery


async def begin_anew() -> int:
    """How many counts were set back."""
    db = provide_database_interface()
    engine = await db.engine()
    now = datetime.now(UTC)
    async with engine.begin() as connection:
        if not await connection.run_sync(lambda c: sa.inspect(c).has_table("automation_bucket")):
            return 0
        heartbeat = sa.select(db.Automation.id).where(db.Automation.name == recovery()[0].name)
        bucket = db.AutomationBucket
        changed = await connection.execute(
            sa.update(bucket).where(bucket.automation_id.in_(heartbeat)).values(start=now, end=now + SILENCE)
        )
        return int(changed.rowcount)


def main() -> int:
    """Set back and say so."""
    counts = asyncio.run(begin_anew())
    if counts:
        print(f"server: {counts} runs have {SILENCE.seconds // 60} min to show that they are alive")
    return 0


if __name__ == "__main__":
    sys.exit(main())
