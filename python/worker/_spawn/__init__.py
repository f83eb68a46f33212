"""The main process's side of a managed process: how it is started, watched and collected."""
