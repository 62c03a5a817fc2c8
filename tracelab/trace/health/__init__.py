"""Whether a trace is what was written: verify every checksum, repair what cannot be read."""
