"""Files that are either whole or not there: atomic writing, and readers whose errors fit on one line.

Everything is written under a temporary name in the same folder, flushed to the disk, and then
renamed: a reader, or a run that was killed with `kill -9`, finds the old file or the new one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

PARTIAL = ".partial"  # ending of temporary names; `clean` removes what a killed run left
_OLD = ".old"  # a folder that is being replaced


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path; what was written there becomes `path` when the block ends without error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _partial(path)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder that becomes `path`, replacing an earlier one, when the block ends without error.

    A new folder appears in one rename. To replace one takes two: if the machine stops between
    them, the whole old folder is still beside it, and `settle` puts it back.
    """
    path = Path(path)
    settle(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _partial(path), path.with_name(f".{path.name}{_OLD}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for item in sorted(temporary.rglob("*")):
            _sync(item)
        _sync(temporary)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(path, old)
        os.rename(temporary, path)
        _sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def settle(path: str | Path) -> None:
    """Puts a folder back whose replacement was interrupted; otherwise does nothing."""
    path = Path(path)
    old = path.with_name(f".{path.name}{_OLD}")
    if old.is_dir() and not path.exists():
        os.rename(old, path)


def clean(folder: str | Path) -> None:
    """Removes the temporary files and folders that a killed writer left in `folder`."""
    for item in Path(folder).glob(f".*{PARTIAL}"):
        shutil.rmtree(item) if item.is_dir() else item.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON atomically, indented, with a final newline; NaN is refused, since it is not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file. ValueError, in one line, if it is missing, corrupt or no object."""
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error.msg} at line {error.lineno}") from None
    except (OSError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {_one_line(error)}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}; an object was expected")
    return value


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes named tensors as safetensors, atomically."""
    # safetensors refuses tensors that share memory (tied weights): the second one becomes a copy.
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        separate[name] = tensor.clone() if tensor.untyped_storage().data_ptr() in seen else tensor
        seen.add(tensor.untyped_storage().data_ptr())
    with atomic_file(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # safetensors writes files that only their owner may read
        save_file(separate, temporary, metadata={"format": "pt", **(metadata or {})})
        temporary.chmod(mode)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a safetensors file. ValueError, in one line, if it is missing or anything else."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
        with path.open("rb") as file:
            start = file.read(4)
        # Asked only now: a sound file may begin with the byte 0x80, too, the length of its header.
        if start == b"PK\x03\x04" or start[:1] == b"\x80":
            raise ValueError(
                f"{path} is a pickle (torch.save), not safetensors; pickles run code and are never loaded"
            ) from None
        raise ValueError(f"{path} is not a valid safetensors file: {_one_line(error)}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
