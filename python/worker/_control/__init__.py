"""The control channel: carries commands from the workers to the main process."""
