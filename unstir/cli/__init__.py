"""The command line: `unstir COMMAND …`. Each command is a module here with an `Options` record and a function `run`.

The options of a command are generated from its record by tyro. Modules are imported when they are
named, so that `unstir --help` does not wait for networks. A wrong input ends in one line on stderr and exit code 2, Ctrl-C
in 130; with UNSTIR_TRACEBACK=1 in the environment errors keep their traceback.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

COMMANDS = {
    "demo": "train on real digits, sample with five plans, measure, write a report",
    "train": "fit a network to pictures or arrays; can be stopped and resumed",
    "autoencoder": "learn pictures as small latents, to train on with train --codec",
    "sample": "draw samples from a trained model",
    "restore": "restore pictures and sounds, each file kept in its format",
    "edit": "turn pictures of one class into pictures of another",
    "plan": "list the solvers, or print the table of one",
    "ema": "after a run: the weight average of another length, or the best of several",
    "eval": "measure a model or a folder of samples against real data",
    "tune": "learn sampling plans for one model and a few budgets of calls",
    "systems": "list the published systems built from these parts",
    "reproduce": "run one system and check its paper's claim in miniature",
}
OK, FAILED, USAGE, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0 done, 1 a claim did not hold, 2 wrong input, 130 Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(args)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # the reader of our output, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return BROKEN_PIPE
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("UNSTIR_TRACEBACK"):
            raise
        return _fail(" ".join(str(error).split()) or type(error).__name__, USAGE)


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_overview(), file=sys.stdout if args else sys.stderr)
        return OK if args else USAGE
    if args[0] == "--version":
        from .. import __version__

        print(f"unstir {__version__}")
        return OK
    if args[0] not in COMMANDS:
        close = difflib.get_close_matches(args[0], COMMANDS, 1)
        hint = f"did you mean {close[0]}?" if close else f"one of {', '.join(COMMANDS)}"
        raise ValueError(f"unknown command {args[0]!r}; {hint}")
    from .parse import parse

    module = importlib.import_module(f".{args[0]}", __name__)
    # A command whose options may also stand in a file reads its words itself.
    options = getattr(module, "parsed", parse)(module.Options, args[1:], args[0])
    return OK if options is None else module.run(options)


def _overview() -> str:
    lines = [f"  {name:<11} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        ["usage: unstir COMMAND [options]", "", *lines, "", "`unstir COMMAND --help` shows the options of a command."]
    )


def _fail(message: str, code: int) -> int:
    print(f"unstir: {message}", file=sys.stderr)
    return code
