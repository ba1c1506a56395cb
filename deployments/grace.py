"""`python -m deployments.grace`, before a server starts: no run ends for what the server missed.

A server goes on where it was.  After an absence it would in its first seconds mark healthy runs
Crashed, before their next heartbeats have reached it, and take back the slots that they could not
renew, which ends them, too.  So every count of silence begins anew, and every slot is good for a
while; those of runs that did die are freed when the while is over.  Works on any database and
lease storage that the server does; a database without tables yet is left as it is.
"""

import asyncio
import sys
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from prefect.server.concurrency.lease_storage import get_concurrency_lease_storage
from prefect.server.database import provide_database_interface

from deployments.automations import SILENCE, recovery

# A client that found no server tries again after 4 min at the latest: PREFECT_CLIENT_MAX_RETRIES in prefect.yaml.
SLOTS = timedelta(minutes=10)
MANY = 10_000


async def count_anew() -> int:
    """How many counts of silence were set back."""
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


async def renew_slots() -> int:
    """How many slots are held by runs that are alive, or were."""
    storage = get_concurrency_lease_storage()
    leases = {*await storage.read_active_lease_ids(MANY), *await storage.read_expired_lease_ids(MANY)}
    for lease in leases:
        await storage.renew_lease(lease, SLOTS)
    return len(leases)


async def forgive() -> str:
    """What was set back, in one line."""
    runs, slots = await count_anew(), await renew_slots()
    if not runs and not slots:
        return ""
    silence, held = SILENCE.seconds // 60, SLOTS.seconds // 60
    return f"server: {runs} runs have {silence} min to show that they are alive, {slots} slots are held for {held} min"


def main() -> int:
    """Set back and say so; 1 where the database cannot be reached or read."""
    try:
        told = asyncio.run(forgive())
    except (sa.exc.SQLAlchemyError, OSError) as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return 1
    if told:
        print(told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
