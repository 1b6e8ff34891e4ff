"""What a run says while it works: a log of JSON lines always, a bar if `rich` is there, else a line now and then."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .._files import write_text
from .config import TrainConfig

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


class _Numbers:
    """A listener that passes every number of an event on, under its name; nested ones as "validation/-4"."""

    def __init__(self, put: Callable[[dict[str, float], int], None], close: Callable[[], None]) -> None:
        self._put, self.close = put, close

    def __call__(self, event: Event) -> None:
        flat = {k: float(v) for k, v in event.items() if isinstance(v, int | float)}
        flat |= {f"{k}/{i}": float(v) for k, part in event.items() if isinstance(part, dict) for i, v in part.items()}
        self._put(flat, int(event["images"]))


def adapter(name: str, folder: Path, config: TrainConfig) -> Any:
    """A listener for `fit` with a `close`, that writes to "tensorboard" (folder/tensorboard), "wandb" or "trackio".

    Steps are counted in images. Raises ValueError for another name, ImportError that says what to install.
    """
    try:
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter  # pyright: ignore[reportPrivateImportUsage]

            writer = SummaryWriter(str(folder / "tensorboard"))

            def put(row: dict[str, float], n: int) -> None:
                for key, value in row.items():
                    writer.add_scalar(key, value, n)

            return _Numbers(put, writer.close)
        if name in ("wandb", "trackio"):
            library = importlib.import_module(name)
            run = library.init(project="unstir", name=folder.name, config=config.spec())
            return _Numbers(lambda row, n: run.log(row, step=n), run.finish)
    except ImportError:
        raise ImportError(f"log_to={name!r} needs the library {name}: pip install {name}") from None
    raise ValueError(f"log_to={name!r} is unknown; one of tensorboard, wandb, trackio")


def _before(line: str, images: int) -> bool:
    try:
        return json.loads(line)["images"] <= images
    except (json.JSONDecodeError, KeyError, TypeError):
        return False  # the torn last line of a killed run


@contextmanager
def bar(steps: int, title: str = "train", log: Path | None = None) -> Iterator[Listener]:
    """A listener for `fit` that shows the progress on the terminal, on stderr, in one line of at most 80 columns.

    log: the run's log.jsonl, from which the last validation loss is read.
    """
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield _plain(steps, title)
        return
    numbers = "{task.completed}/{task.total}", "loss {task.fields[loss]}", "val {task.fields[val]}", "{task.fields[speed]}/s"
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        *map(TextColumn, numbers),
        TimeRemainingColumn(),
    )
    speed, checked = _Speed(), _Validation(log)
    progress = Progress(*columns, console=Console(stderr=True))
    name = title if len(title) <= 14 else f"…{title[-13:]}"
    task = progress.add_task(name.replace("[", "\\["), total=steps, loss="–", val="–", speed="–")

    def show(event: Event) -> None:
        progress.start()  # at the first step: an error before it is one line, without a bar
        progress.update(task, completed=event["step"], speed=speed(event["images"]))
        if "loss" in event:
            progress.update(task, loss=f"{event['loss']:.4g}", val=checked())

    try:
        yield show
    finally:
        progress.stop()


class _Speed:
    """Images a second, over the last few seconds."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def __call__(self, images: int) -> str:
        now = time.monotonic()
        self._seen = [*(seen for seen in self._seen[-200:] if now - seen[0] < 10), (now, images)]
        (first, before), (last, after) = self._seen[0], self._seen[-1]
        return f"{(after - before) / (last - first):.0f}" if last - first > 0.2 else "–"


class _Validation:
    """The last validation loss in a log that grows; only what is new is read."""

    def __init__(self, path: Path | None) -> None:
        self._path, self._offset, self._value = path, 0, "–"

    def __call__(self) -> str:
        if self._path is None or not self._path.exists():
            return self._value
        with self._path.open("rb") as file:
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            if b'"validation_loss"' in line:
                self._value = f"{json.loads(line)['validation_loss']:.4g}"
        return self._value


def _plain(steps: int, title: str) -> Listener:
    every = max(1, steps // 20)

    def show(event: Event) -> None:
        if event["step"] % every == 0 or event["step"] == steps:
            loss = event.get("loss")
            print(f"{title} {event['step']}/{steps}" + (f"  loss {loss:.4f}" if loss is not None else ""), file=sys.stderr)

    return show
