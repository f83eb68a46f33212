"""The control channel: how commands come from the workers to the main process."""
