"""`python -m unstir.train DATA [options]`: the same as `unstir train DATA [options]`."""

from __future__ import annotations

import sys

from .main import train


def main() -> int:
    """Reads the options from the command line; 0 = done, 2 = wrong input, 130 = stopped by Ctrl-C (resume with --resume)."""
    try:
        import tyro
    except ImportError:
        print('the command line needs tyro: pip install "unstir[cli]"', file=sys.stderr)
        return 2
    try:
        from ..cli.train import Options  # TrainConfig, with DATA as a positional argument

        result = train(config := tyro.cli(Options, prog="unstir train"))
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        print(f"unstir train: {error}", file=sys.stderr)
        return 2
    print(f"{result.steps} steps in {result.seconds:.0f} s, validation loss {result.loss:.5f}; wrote {config.out}/model")
    if result.interrupted:
        print(f"stopped at image {result.images}; go on with --resume")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
