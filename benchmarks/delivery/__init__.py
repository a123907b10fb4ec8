"""What an exporter can take, and what a step costs it; docs/performance.md has the method."""
