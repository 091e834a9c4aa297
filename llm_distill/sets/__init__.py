"""Data sets that grow: versions that share their unchanged shards, what is new to them, what changed between two, and cards."""
