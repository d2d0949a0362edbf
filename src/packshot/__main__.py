"""``python -m packshot`` is the command ``packshot``."""

from __future__ import annotations

from packshot.cli.main import main

if __name__ == "__main__":
    main()
