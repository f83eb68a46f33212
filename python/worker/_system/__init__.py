"""The operating system: listening sockets and their errors, ``/proc``, control groups, systemd."""

__all__ = ["DUMP_FILE"]

# Here, because a server that dumps its stacks does not need the module that collects them.
DUMP_FILE = "sanic-worker-stacks"
"""The name of the file in memory to which a process dumps its stacks at a signal."""
