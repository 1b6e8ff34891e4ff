"""What a run says while it works: a log of JSON lines always, a bar if `rich` is there, else a line now and then."""

from __future__ import annotations

import importlib
import json
import sys
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
