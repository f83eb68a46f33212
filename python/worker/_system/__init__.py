"""The operating system: listening sockets and their errors, ``/proc``, control groups, systemd."""
