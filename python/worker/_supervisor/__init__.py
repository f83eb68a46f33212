"""The supervisor: runs in the main process only, observes processes and decides what to do."""
