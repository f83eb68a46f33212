"""The listening sockets of the main process, and their errors."""
