"""WebDataset shards: .tar files whose members with the same name up to the first dot make one sample.

    00017.jpg   the picture          00017.cls   its class, a number or a name
    00017.txt   its caption          00017.json  {"label": …, "caption": …}, where the former are missing

A shard is indexed once (names, offsets, sizes) and then read by number, so that training may shuffle it and resume inside
an epoch as with any other data.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .dataset import Dataset, encode_labels
from .images import PICTURES, Picture, gather, require_pillow


class Member(NamedTuple):
    """Where the bytes of one file lie."""

    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise OSError(f"{self.shard} ends {self.size - len(content)} bytes early")
        return content


def from_tars(shards: Sequence[Path], *, size: int | None, channels: int | None, labels: Any) -> Dataset:
    """The data set in one or more WebDataset shards; see the module and `load`.

    Raises ValueError for a file that is no tar, shards without pictures, labels that only some samples have, or labels=
    other than "auto" and "none".
    """
    if labels is not None and not (isinstance(labels, str) and labels in ("auto", "none")):
        raise ValueError(f"labels={labels!r} must be 'auto' (.cls or .json members) or 'none' for WebDataset shards")
    require_pillow()
    samples: dict[str, dict[str, Member]] = {}
    for shard in shards:
        for key, ending, member in _index(shard):
            samples.setdefault(f"{shard.name}/{key}", {})[ending] = member
    name = str(shards[0]) if len(shards) == 1 else f"{len(shards)} shards in {shards[0].parent}"
    pictures, parts = [], []
    for key, files in samples.items():
        ending = next((e for e in PICTURES if e in files), None)
        if ending is not None:
            pictures.append(_picture(key + ending, files[ending]))
            parts.append(files)
    if not pictures:
        raise ValueError(
            f"source={name!r} holds no pictures among {len(samples)} samples; known endings: {', '.join(PICTURES)}"
        )
    found = gather(pictures, size, channels, f"source={name!r}")
    notes = [_notes(parts[i], pictures[i].name) for i in found.kept]
    given = [label for label, _ in notes if label is not None] if labels == "auto" else []
    if given and len(given) < len(notes):
        lacking = next(pictures[i].name for i, (label, _) in zip(found.kept, notes, strict=True) if label is None)
        raise ValueError(
            f"source={name!r}: {len(notes) - len(given)} pictures have no label (first: {lacking}); or labels='none'"
        )
    target, classes = encode_labels(given) if given else (None, ())
    captions = [caption for _, caption in notes] if any(caption for _, caption in notes) else None
    return Dataset(
        found.read,
        len(found.kept),
        found.shape,
        labels=target,
        classes=classes,
        captions=captions,
        name=name,
        skipped=found.skipped,
    )


def _index(shard: Path) -> list[tuple[str, str, Member]]:
    """(key, ending, where) of every file in a shard."""
    try:
        with tarfile.open(shard, "r:") as archive:
            members = [(m.name, m.offset_data, m.size) for m in archive if m.isfile()]
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard} cannot be read as an uncompressed tar: {error}") from None
    entries = []
    for path, offset, size in members:
        folder, _, base = path.rpartition("/")
        stem, dot, ending = base.partition(".")
        entries.append((f"{folder}/{stem}" if folder else stem, (dot + ending).lower(), Member(shard, offset, size)))
    return entries


def _picture(name: str, member: Member) -> Picture:
    def opened() -> Any:
        from PIL import Image

        return Image.open(io.BytesIO(member.read()))

    return Picture(name, opened)


def _notes(files: dict[str, Member], name: str) -> tuple[int | str | None, str]:
    """(label or None, caption or "") of one sample."""
    extra: Any = {}
    if ".json" in files:
        try:
            extra = json.loads(files[".json"].read())
        except ValueError as error:
            raise ValueError(f"{name}: its .json cannot be read: {error}") from None
    label = files[".cls"].read().decode("utf-8", "replace").strip() if ".cls" in files else extra.get("label")
    caption = files[".txt"].read().decode("utf-8", "replace").strip() if ".txt" in files else extra.get("caption", "")
    if isinstance(label, str) and label.lstrip("-").isdigit():
        label = int(label)
    return label, str(caption)
