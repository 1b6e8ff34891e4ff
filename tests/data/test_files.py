"""Atomic files, and safetensors of every header length."""

import pytest
import torch

from unstir._files import atomic_file, atomic_folder, clean, read_json, read_tensors, write_json, write_tensors


def test_every_header_length_is_read(tmp_path):
    """The first byte of a safetensors file is its header's length: 0x80 there is no pickle."""
    first = set()
    for length in range(0, 256, 8):
        file = tmp_path / f"{length}.safetensors"
        write_tensors(file, {"a" * (length + 1): torch.ones(2)})
        assert torch.equal(read_tensors(file)["a" * (length + 1)], torch.ones(2))
        first.add(file.read_bytes()[0])
    assert 0x80 in first


def test_no_tensors_at_all(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {})
    assert read_tensors(tmp_path / "x.safetensors") == {}


def test_files_are_as_readable_as_others(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(1)})
    (tmp_path / "plain").touch()
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def fail(writer, path, inside=""):
    with writer(path) as temporary:
        (temporary / inside if inside else temporary).write_text("{")
        raise RuntimeError("interrupted")


def test_a_failing_writer_changes_nothing(tmp_path):
    write_json(tmp_path / "a.json", {"n": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"n": float("nan")})
    with pytest.raises(RuntimeError, match="interrupted"):
        fail(atomic_file, tmp_path / "a.json")
    with pytest.raises(RuntimeError, match="interrupted"):
        fail(atomic_folder, tmp_path / "f", "x")
    assert read_json(tmp_path / "a.json") == {"n": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_what_a_killed_writer_left_is_cleaned(tmp_path):
    (tmp_path / ".a.json.17.partial").write_text("")
    (tmp_path / ".f.17.partial").mkdir()
    (tmp_path / "keep").write_text("")
    clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["keep"]
