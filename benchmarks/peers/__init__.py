"""The same step on picostep and on other recorders; docs/performance.md has the method."""
