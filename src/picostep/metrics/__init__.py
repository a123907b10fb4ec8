"""What the exporter counts of the records that pass through it; needs the extra `metrics`."""
