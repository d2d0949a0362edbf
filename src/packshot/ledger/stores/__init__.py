"""Where settled attempts are kept for ever: SQLite, or PostgreSQL; one Protocol."""
