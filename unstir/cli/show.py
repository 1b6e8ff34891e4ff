"""What the commands print: tables and sentences to stdout, progress to stderr; 80 columns where that is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..evaluate import Score


def console(stderr: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def table(rows: Iterable[Sequence[Any]], columns: Sequence[str], *, title: str = "", section: int | None = None) -> None:
    """Prints a table; columns whose name ends in ">" are aligned right, and a line is drawn after every `section` rows."""
    from rich import box
    from rich.table import Table

    drawn = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, title_style="bold")
    for name in columns:
        right = name.endswith(">")
        drawn.add_column(name.rstrip(">"), justify="right" if right else "left", no_wrap=right, overflow="fold")
    for i, row in enumerate(rows, 1):
        drawn.add_row(*(cell(v) for v in row), end_section=section is not None and i % section == 0)
    console().print(drawn)


def cell(value: Any) -> str:
    """A value as the tables show it: four digits of a number, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, Score):
        return f"{value.value:.3g}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def say(text: str) -> None:
    """A sentence of result, wrapped at the width of the terminal; words in it are never read as markup."""
    console().print(text, markup=False)


def wrote(*paths: Path) -> None:
    """Names the files that a command left behind."""
    for path in paths:
        print(f"wrote {path}")  # not wrapped: a path is there to be copied


@contextmanager
def progress(total: int, title: str) -> Iterator[Callable[..., None]]:
    """Yields a function that moves the bar on by one and may name what is being done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    screen = console(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(title, total=total)

        def advance(now: str = "") -> None:
            bar.update(task, advance=1, description=f"{title} {now}".strip())

        yield advance
