"""Applications that the integration tests serve; each module is loaded by name in real processes."""
