"""The parts of the ``sanic-worker`` command: Sanic's own on this manager, and a client of the inspector."""

PROGRAM = "sanic-worker"
