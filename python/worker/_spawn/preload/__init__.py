"""The main process's side of preloading: starts the preload process, and lets it fork workers."""
