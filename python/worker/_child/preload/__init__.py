"""The preload process: it imports modules once, then forks the workers, which begin with them imported."""
