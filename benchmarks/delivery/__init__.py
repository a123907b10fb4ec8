"""What an exporter can take, and what a step costs it; docs/internals/performance.md has the method."""
