"""Checkpoints: everything a run needs to go on, as safetensors and JSON, whole or not there.

    checkpoints/<images>/   model.safetensors  ema.safetensors  optimizer.safetensors  state.json

The learning rate, the data order and all noise are functions of the image counter, so the weights,
their average and the optimiser's moments are all there is to save.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._files import atomic_folder, clean, read_json, read_tensors, write_json, write_tensors

VERSION = 1


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(p for p in (folder / "checkpoints").glob("*") if p.is_dir() and p.name.isdigit())


def save(
    folder: Path, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int
) -> Path:
    """Writes the checkpoint of state["images"], then removes all but the last `keep`."""
    path = folder / "checkpoints" / f"{state['images']:012d}"
    with atomic_folder(path) as new:
        write_tensors(new / "model.safetensors", network.state_dict())
        write_tensors(new / "ema.safetensors", average.state_dict())
        write_tensors(new / "optimizer.safetensors", _moments(network, optimizer))
        write_json(new / "state.json", {"version": VERSION, **state})
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def restore(path: Path, network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Loads a checkpoint into its parts and returns its state. ValueError, in one line, if it does not fit."""
    state = read_state(path)
    load_weights(network, read_tensors(path / "model.safetensors"), path / "model.safetensors")
    load_weights(average, read_tensors(path / "ema.safetensors"), path / "ema.safetensors")
    moments = read_tensors(path / "optimizer.safetensors")
    for name, parameter in network.named_parameters():
        mine = {k.removeprefix(f"{name}|"): v for k, v in moments.items() if k.startswith(f"{name}|")}
        wrong = [k for k, v in mine.items() if v.ndim and v.shape != parameter.shape]
        # A run may so far have skipped every step as non-finite; then there are no moments at all.
        expected = bool(moments) or (state["images"] > 0 and state["skipped"] == 0)
        if wrong or (expected and parameter.requires_grad and not mine):
            what = f"{name}|{wrong[0]} of another shape" if wrong else f"no moments of {name}"
            raise ValueError(f"{path / 'optimizer.safetensors'} has {what}; it belongs to another run")
        if mine:
            # `step` is a scalar that torch keeps on the CPU or beside the weights, as the first step put it.
            optimizer.state[parameter] = {
                k: v.to(parameter.device) if v.ndim or optimizer.defaults.get("fused") else v for k, v in mine.items()
            }
    return state


def read_state(path: Path) -> dict[str, Any]:
    """state.json of a checkpoint, its version checked."""
    state = read_json(path / "state.json")
    if state.get("version") != VERSION:
        raise ValueError(f"{path / 'state.json'} has version {state.get('version')!r}; this unstir reads {VERSION}")
    for key in ("images", "skipped", "in_a_row"):
        if type(state.get(key)) is not int or state[key] < 0:
            raise ValueError(f"{path / 'state.json'}: {key} is {state.get(key)!r}; a number of at least 0 was expected")
    if not isinstance(state.get("identity"), dict):
        raise ValueError(f"{path / 'state.json'}: identity is no object; the file is damaged")
    return state


def tidy(folder: Path) -> None:
    """Removes what a killed run had half written."""
    for place in (folder, folder / "checkpoints"):
        clean(place)


def load_weights(network: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """network ← tensors, every name and shape checked; ValueError names the first that is wrong."""
    wanted = network.state_dict()
    missing, extra = [k for k in wanted if k not in tensors], [k for k in tensors if k not in wanted]
    if missing or extra:
        first = f"lacks {missing[0]!r}" if missing else f"has the unknown {extra[0]!r}"
        raise ValueError(f"{path} {first} ({len(missing)} missing, {len(extra)} unknown); it belongs to another network")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(f"{path}: {name!r} has shape {tuple(tensor.shape)}; the network needs {tuple(wanted[name].shape)}")
    network.load_state_dict(tensors)


def _moments(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as "parameter|moment" -> tensor."""
    return {
        f"{name}|{key}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
