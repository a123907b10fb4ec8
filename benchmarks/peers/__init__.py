"""The same step on picostep and on other recorders; docs/internals/performance.md has the method."""
