# ruff: noqa: PYI021 (the documentation is here)
"""The yardstick in Rust, built from ``benches/limit``: what the machine can do at best."""

class Reader:
    """Reads the frames of a socket; ``fd`` is duplicated."""

    def __new__(cls, fd: int) -> Reader: ...
    def take(self) -> list[bytes]:
        """Wait for something to read, read all there is, return the payloads that are whole."""

class Files:
    """A list of files to look at."""

    def __new__(cls, paths: list[str]) -> Files: ...
    def stat(self, threads: int) -> int:
        """Look at each of them, on so many threads; return how many there are."""
