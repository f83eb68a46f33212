"""The shared state: one entry for each process, which all of them read."""
