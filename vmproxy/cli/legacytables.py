"""``python -m vmproxy.cli.legacytables``: no command of the user's; ``commit.sh`` writes legacy rules by it."""

from __future__ import annotations

import sys

from vmproxy.machines.legacytables import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], read=sys.stdin.read, say=sys.stderr.write))
