"""The reloader's parts: file events, ignored files, recognition of the server's own output."""
