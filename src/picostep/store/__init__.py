"""The local store: one SQLite file; docs/reference/store.md describes it."""
