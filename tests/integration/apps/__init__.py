"""Applications that the integration tests serve; real processes load each module by name."""
