"""The client of the inspector: the commands ``sanic-worker inspect``, ``ps``, ``top`` and ``events``.

It speaks HTTP to the inspector only. It does not import Sanic, and ``rich`` only to show a table: a script
that asks for JSON starts quickly.
"""
