"""The main process's side of a managed process: starts, watches and collects it."""
