"""How experiments run: executor, storage, tracking, statistics, claims and the report."""
