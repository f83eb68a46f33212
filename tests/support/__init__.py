"""What the tests share: fixtures, fakes, targets of processes, and helpers."""
