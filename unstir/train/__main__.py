"""`python -m unstir.train DATA [options]` is `unstir train DATA [options]`, for instance under torchrun."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command on the words of this call; returns its exit code."""
    from ..cli import main as command  # the command line knows the rooms, not the other way round

    return command(["train", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
