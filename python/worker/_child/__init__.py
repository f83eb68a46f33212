"""The child's side of a managed process: how it begins, serves and stops."""
