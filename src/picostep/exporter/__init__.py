"""The exporter: drains rings, encodes their records and hands them to sinks."""
