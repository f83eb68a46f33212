"""Real faults, upgrades, systemd and containers: tests that take long, or need root."""
