"""The local store: one SQLite file; docs/store.md describes it."""
