"""The supervisor: observes processes, decides, and acts; in the main process only."""
