"""`Report`: one self-contained HTML file with text, tables, pictures and plots.

Everything is inside the file (styles inline, pictures as data: addresses), nothing is fetched and
no script runs. It follows the reader's light or dark scheme and fits a phone. All text given by the
caller is escaped.
"""

from __future__ import annotations

import base64
import math
import platform
import re
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch

from .._files import write_text
from .pictures import file_name, png
from .plots import error_plot
from .samples import Score

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #24292f; --faint: #57606a; --line: #d0d7de; --panel: #f6f8fa;
  --best: #0a6b3d; --best-panel: #e3f5ea; --bad: #a40e26; --bad-panel: #ffebe9; }
@media (prefers-color-scheme: dark) { :root { --paper: #0d1117; --ink: #e6edf3; --faint: #9da7b1; --line: #3d444d;
  --panel: #161b22; --best: #6fdd9b; --best-panel: #12301f; --bad: #ff9a94; --bad-panel: #3c1618; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 54rem; margin: 0 auto; padding: 2.5rem 1.25rem 3rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 1.25rem; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
p, ul { margin: .75rem 0; max-width: 44rem; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: .9em; background: var(--panel); padding: .1em .3em; border-radius: 4px; }
pre { font-size: .8rem; line-height: 1.45; background: var(--panel); border: 1px solid var(--line); border-radius: 8px;
  padding: .9rem 1rem; overflow-x: auto; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption, figcaption { color: var(--faint); font-size: .88rem; text-align: left; }
caption { padding-bottom: .5rem; }
th, td { padding: .4rem .75rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--faint); font-weight: 600; border-bottom-width: 2px; vertical-align: bottom; }
th.number, td.number { text-align: right; white-space: nowrap; }
td.best { color: var(--best); background: var(--best-panel); font-weight: 700; }
tr.failed td { color: var(--bad); background: var(--bad-panel); }
figure { margin: 1.25rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption { margin-top: .5rem; max-width: 44rem; }
footer { margin-top: 3rem; padding-top: .75rem; border-top: 1px solid var(--line); color: var(--faint); font-size: .8rem; }
@media (max-width: 34rem) { main { padding: 1.5rem 1rem 2rem; } h1 { font-size: 1.5rem; } pre { font-size: .72rem; } }
@media print { main { max-width: none; } figure, tr { break-inside: avoid; } }
"""


class Report:
    """Builds one HTML file; every method adds a block and returns the report, so calls can be chained.

    Report("Digits").text("Five plans.").table(rows, ["plan", "error"], best={"error": "min"}).save("report.html")
    """

    def __init__(self, title: str) -> None:
        if not isinstance(title, str) or not title.strip():
            raise ValueError(f"title={title!r} must be a text that is not empty")
        self.title = title
        self._blocks: list[str] = []

    def text(self, text: str) -> Report:
        """Paragraphs parted by empty lines, with a little Markdown.

        Known are `# ` to `### ` headings, `- ` lists, `**bold**` and `` `code` ``; all else is shown as typed.
        """
        for block in re.split(r"\n\s*\n", text.strip("\n")):
            self._blocks.extend(_markdown(block))
        return self

    def table(
        self,
        rows: Sequence[Mapping[str, Any] | Sequence[Any]],
        columns: Sequence[str],
        *,
        best: Mapping[str, str] | None = None,
        failed: Collection[int] = (),
        caption: str = "",
    ) -> Report:
        """Rows as mappings column → value, or as sequences in the order of `columns`.

        Numbers are printed with 4 significant digits, a `Score` with its floor, None as a dash. `best`
        {column: "min" | "max"} highlights the best finite value of a column (ties too); rows whose
        number is in `failed` are red and say so.
        """
        for i, row in enumerate(rows):
            if not isinstance(row, Mapping) and (isinstance(row, str) or len(row) != len(columns)):
                raise ValueError(f"rows[{i}] is {row!r}; it must be a mapping or have {len(columns)} entries, one per column")
        cells = [[row.get(c) for c in columns] if isinstance(row, Mapping) else list(row) for row in rows]
        winners = {}
        for column, rule in (best or {}).items():
            if column not in columns or rule not in ("min", "max"):
                raise ValueError(f"best={{{column!r}: {rule!r}}} must be a column of {list(columns)} and 'min' or 'max'")
            values = [v for row in cells if (v := _number(row[columns.index(column)])) is not None and math.isfinite(v)]
            if values:
                winners[columns.index(column)] = min(values) if rule == "min" else max(values)
        for i in failed:
            if not 0 <= i < len(cells):
                raise ValueError(f"failed contains {i}; the table has the rows 0 … {len(cells) - 1}")
        kinds = [' class="number"' if any(_number(r[j]) is not None for r in cells) else "" for j in range(len(columns))]
        html = ["<table>"]
        if caption:
            html.append(f"<caption>{_inline(caption)}</caption>")
        html += [
            "<thead><tr>",
            *(f"<th{k}>{escape(c)}</th>" for k, c in zip(kinds, columns, strict=True)),
            "</tr></thead><tbody>",
        ]
        for i, row in enumerate(cells):
            html.append('<tr class="failed">' if i in failed else "<tr>")
            for j, value in enumerate(row):
                shown = escape(_shown(value)) + (" (failed)" if j == 0 and i in failed else "")
                won = j in winners and _number(value) == winners[j]
                html.append(f'<td class="number best">{shown}</td>' if won else f"<td{kinds[j]}>{shown}</td>")
            html.append("</tr>")
        self._blocks.append(f'<div class="scroll">{"".join(html)}</tbody></table></div>')
        return self

    def picture(self, image: Any, caption: str = "") -> Report:
        """A PIL image (as from `grid`, `labelled_rows`), or the bytes of a PNG or SVG file."""
        return self._figure(image if isinstance(image, bytes) else png(image), caption)

    def plot(self, plot: bytes | Mapping[str, Sequence[tuple[float, float]]], caption: str = "", **options: Any) -> Report:
        """The bytes from `error_plot` or `plan_plot`, or a series {label: [(nfe, error), …]} for `error_plot(**options)`."""
        return self._figure(plot if isinstance(plot, bytes) else error_plot(plot, **options), caption)

    def code(self, text: Any) -> Report:
        """Text as it stands, in fixed width: `report.code(plan)` shows a plan's printed table."""
        self._blocks.append(f"<pre>{escape(str(text))}</pre>")
        return self

    def html(self) -> str:
        """The whole file as text."""
        title = escape(self.title)
        made = escape(f"unstir · torch {torch.__version__} · Python {platform.python_version()}")
        return "\n".join(
            [
                '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
                '<meta name="viewport" content="width=device-width, initial-scale=1">',
                f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>",
                *self._blocks,
                f"<footer>{made}</footer>\n</main>\n</body>\n</html>\n",
            ]
        )

    def save(self, path: str | Path) -> None:
        """Writes the file atomically: a reader finds the old file or the new one, never half of it."""
        write_text(file_name(path), self.html())

    def _figure(self, data: bytes, caption: str) -> Report:
        if data.startswith(b"\x89PNG"):
            kind = "image/png"
        elif b"<svg" in data[:2000]:
            # As a data: image rather than inline markup: its ids stay its own and nothing in it can run.
            kind = "image/svg+xml"
        else:
            raise ValueError(f"the picture's bytes start with {data[:8]!r}; give the bytes of a PNG or SVG file")
        source = base64.b64encode(data).decode()
        words = f"<figcaption>{_inline(caption)}</figcaption>" if caption else ""
        image = f'<img alt="{escape(caption or "picture")}" src="data:{kind};base64,{source}">'
        self._blocks.append(f"<figure>{image}{words}</figure>")
        return self


def _markdown(block: str) -> list[str]:
    """One block without empty lines; a heading or a list may stand directly above or below other lines."""
    html: list[str] = []
    kind, lines = "", []

    def close() -> None:
        if lines and kind == "- ":
            html.append("<ul>" + "".join(f"<li>{_inline(line)}</li>" for line in lines) + "</ul>")
        elif lines:
            html.append(f"<p>{_inline(' '.join(lines))}</p>")
        lines.clear()

    for line in (raw.strip() for raw in block.splitlines()):
        heading = re.match(r"(#{1,3}) (.*)", line)
        if heading:
            close()
            level = min(len(heading[1]) + 1, 3)  # the title of the report is the only h1
            html.append(f"<h{level}>{_inline(heading[2])}</h{level}>")
            continue
        now = "- " if line.startswith("- ") else ""
        if now != kind:
            close()
        kind = now
        lines.append(line.removeprefix("- "))
    close()
    return html


def _inline(text: str) -> str:
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)


def _number(value: Any) -> float | None:
    """The value as a number, None for anything that is not one (bool is not)."""
    if isinstance(value, Score):
        return value.value
    if value is None or isinstance(value, bool | str | bytes):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _shown(value: Any) -> str:
    number = _number(value)
    if value is None:
        return "–"
    if isinstance(value, Score) and value.floor is not None:
        error = "" if value.error is None else f" ± {value.error:.1g}"
        return f"{value.value:.4g}{error} (floor {value.floor:.2g})"
    if number is None or isinstance(value, int):
        return ("yes" if value else "no") if isinstance(value, bool) else str(value)
    return f"{number:.4g}"
