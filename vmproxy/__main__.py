"""``python -m vmproxy``."""

from __future__ import annotations

from vmproxy.cli import main

if __name__ == "__main__":
    main()
