"""What a busy host feels of its recorder; docs/performance.md has the method."""
