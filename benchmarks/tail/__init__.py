"""What a busy host feels of its recorder; docs/internals/performance.md has the method."""
