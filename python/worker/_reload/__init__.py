"""What the reloader watches: file events, ignored files, the server's own output."""
