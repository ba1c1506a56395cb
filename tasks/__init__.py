"""How Prefect runs each stage: retries, caching, concurrency and what the UI shows."""
