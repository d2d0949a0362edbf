"""The terminal: one short file per command, and nothing that a library call could not do."""
