"""The parts of the ``sanic-worker`` command that explain a wrong target."""
