"""What a run says while it works: a log of JSON lines always, a bar if `rich` is there, else a line now and then."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .._files import write_text

Event = dict[str, Any]
Listener = Callable[[Event], None]


class Log:
    """log.jsonl of a run: one JSON object a line, each with the image counter."""

    def __init__(self, path: Path, images: int) -> None:
        """Opens the log for appending, first cutting off what lies after `images` (lost with the resume)."""
        kept = [line for line in (path.read_text().splitlines() if path.exists() else []) if _before(line, images)]
        write_text(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _before(line: str, images: int) -> bool:
    try:
        return json.loads(line)["images"] <= images
    except (json.JSONDecodeError, KeyError, TypeError):
        return False  # the torn last line of a killed run


@contextmanager
def bar(steps: int, title: str = "train") -> Iterator[Listener]:
    """A listener for `fit` that shows the progress on the terminal."""
    try:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    except ImportError:
        yield _plain(steps, title)
        return
    columns = ("[bold]{task.description}", BarColumn(), MofNCompleteColumn(), "loss {task.fields[loss]}")
    with Progress(
        *(TextColumn(c) if isinstance(c, str) else c for c in columns), TimeElapsedColumn(), TimeRemainingColumn()
    ) as progress:
        task = progress.add_task(title, total=steps, loss="—")

        def show(event: Event) -> None:
            progress.update(task, completed=event["step"])
            if "loss" in event:
                progress.update(task, loss=f"{event['loss']:.4f}")

        yield show


def _plain(steps: int, title: str) -> Listener:
    every = max(1, steps // 20)

    def show(event: Event) -> None:
        if event["step"] % every == 0 or event["step"] == steps:
            loss = event.get("loss")
            print(f"{title} {event['step']}/{steps}" + (f"  loss {loss:.4f}" if loss is not None else ""), file=sys.stderr)

    return show
