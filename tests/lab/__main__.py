"""``scripts/lab``: the lab's machines by hand."""

from __future__ import annotations

import argparse
import sys

from tests.lab import mobycli, nscli, qemucli


def main(argv: list[str] | None = None) -> int:
    """One of the kinds of VM, and a command for it. Gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/lab", description="the lab's machines by hand; see tests/lab/README.rst"
    )
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    for name, module, what in (
        ("ns", nscli, "a namespace VM (root)"),
        ("qemu", qemucli, "a QEMU VM"),
        ("moby", mobycli, "Docker for Mac's VM of 2016, in QEMU, by its serial line (root)"),
    ):
        kind = kinds.add_parser(name, help=what)
        module.add_commands(kind)
        kind.set_defaults(run=module.run)
    options = parser.parse_args(argv)
    status: int = options.run(options)
    return status


if __name__ == "__main__":
    sys.exit(main())
