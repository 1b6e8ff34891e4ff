"""Checkpoints: everything a run needs to go on, as safetensors and JSON, whole or not there.

    checkpoints/<images>/   model.safetensors  ema.safetensors (ema-0.05.safetensors …)  optimizer.safetensors  state.json
                            learned.safetensors  learned-optimizer.safetensors, if anything is trained besides the network
    averages/<images>-0.05.safetensors     snapshots of power-function averages, in half precision (`power_ema`)

The learning rate, the data order and all noise are functions of the image counter, so the weights,
their average and the optimiser's moments are all there is to save.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._files import clean, read_json, write_json
from .parallel import World, read_into, shapes, write

VERSION = 1
_MOMENTS = {"model": "optimizer.safetensors", "learned": "learned-optimizer.safetensors"}


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted(p for p in (folder / "checkpoints").glob("*") if p.is_dir() and p.name.isdigit())


def earlier(folder: Path, resume: bool) -> list[Path]:
    """The checkpoints that a run in `folder` goes on from; ValueError if there are some and it is not to."""
    found = checkpoints(folder)
    if found and not resume:
        raise ValueError(f"out={str(folder)!r} already holds a run; pass resume=True (--resume) or another folder")
    return found


def check_unchanged(folder: Path, changed: str, override: bool) -> None:
    """ValueError if a run is resumed otherwise than it was started, `changed` says how, and that is not wanted."""
    if changed and not override:
        raise ValueError(f"the run in {folder} was started otherwise: {changed}; pass override=True (--override) to go on")


def save(
    folder: Path,
    network: nn.Module,
    averages: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
    best: int = 0,
    world: World | None = None,
    learned: nn.Module | None = None,
) -> Path:
    """Writes the checkpoint of state["images"], then removes all but the last `keep` and the `best` of lowest state["score"].

    learned: what is trained besides the network.
    Every process of a run calls it; whole tensors are written, whatever the processes hold.
    """
    world, trained = world or World(), _trained(network, learned)
    path = folder / "checkpoints" / f"{state['images']:012d}"
    with world.folder(path) as new:
        for name, module in {**trained, **averages}.items():
            write(new / f"{name}.safetensors", module.state_dict(), world)
        idle: list[str] = []
        for name, module in trained.items():
            write(new / _MOMENTS[name], _moments(module, optimizer), world)
            idle += [f"{name}|{k}" for k, p in module.named_parameters() if p.requires_grad and p not in optimizer.state]
        if world.first:
            write_json(new / "state.json", {"version": VERSION, **state, "idle": idle})
    if world.first:
        found = checkpoints(folder)
        ranked = sorted(found, key=_score) if best else []
        for old in set(found) - set(found[-keep:]) - set(ranked[:best]):
            shutil.rmtree(old, ignore_errors=True)
    world.wait()
    return path


def _score(path: Path) -> float:
    score = read_state(path).get("score")
    return math.inf if score is None else float(score)


def snapshot(folder: Path, averages: Mapping[str, nn.Module], images: int, world: World) -> None:
    """Stores the power-function averages of a run at this moment, in half precision."""
    for name, average in averages.items():
        if name != "ema":
            half = {k: v.half() if v.is_floating_point() else v for k, v in average.state_dict().items()}
            write(folder / "averages" / f"{images:012d}-{name.removeprefix('ema-')}.safetensors", half, world)


def restore(
    path: Path,
    network: nn.Module,
    averages: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    learned: nn.Module | None = None,
) -> dict[str, Any]:
    """Loads a checkpoint into its parts and returns its state. ValueError, in one line, if it does not fit."""
    state, trained = read_state(path), _trained(network, learned)
    # A run may so far have skipped every step as non-finite; then there are no moments at all.
    begun = state["images"] > 0 and state["skipped"] == 0
    for name, module in {**trained, **averages}.items():
        _load(module, path / f"{name}.safetensors")
    for name, module in trained.items():
        idle = {k.partition("|")[2] for k in state.get("idle", []) if k.startswith(f"{name}|")}
        _restore_moments(path / _MOMENTS[name], module, optimizer, begun, idle)
    return state


def _trained(network: nn.Module, learned: nn.Module | None) -> dict[str, nn.Module]:
    """What has moments, by the name of its file."""
    return {"model": network} | ({"learned": learned} if learned is not None and len(learned.state_dict()) else {})


def _restore_moments(file: Path, module: nn.Module, optimizer: torch.optim.Optimizer, begun: bool, idle: set[str]) -> None:
    """The optimiser's state of a module's weights; idle: those that had had no gradient."""
    moments = shapes(file)
    for name, parameter in module.named_parameters():
        mine = [k for k in moments if k.startswith(f"{name}|")]
        wrong = [k for k in mine if moments[k] and moments[k] != tuple(parameter.shape)]
        expected = (bool(moments) or begun) and name not in idle
        if wrong or (expected and parameter.requires_grad and not mine):
            what = f"{wrong[0]} of another shape" if wrong else f"no moments of {name}"
            raise ValueError(f"{file} has {what}; it belongs to another run")
        if not mine:
            continue
        slot: dict[str, Tensor] = {}

        def put(key: str, tensor: Tensor, slot: dict[str, Tensor] = slot, parameter: Tensor = parameter) -> None:
            # `step` is a scalar that torch keeps on the CPU or beside the weights, as the first step put it.
            there = tensor.ndim > 0 or optimizer.defaults.get("fused")
            slot[key.rpartition("|")[2]] = tensor.to(parameter.device) if there else tensor

        read_into(file, {k: parameter if moments[k] else torch.empty(()) for k in mine}, put)
        optimizer.state[parameter] = slot


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


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """network ← tensors of the file `path`, every name and shape checked; ValueError names the first that is wrong."""
    _fit(network.state_dict(), {name: tuple(tensor.shape) for name, tensor in tensors.items()}, path)
    network.load_state_dict(tensors)


def _load(network: nn.Module, path: Path) -> None:
    """`load_weights` of a file whose tensors are read one at a time, into weights that may be cut in parts."""
    wanted = network.state_dict()
    _fit(wanted, shapes(path), path)
    with torch.no_grad():
        read_into(path, wanted, lambda name, tensor: wanted[name].copy_(tensor))


def _fit(wanted: Mapping[str, Tensor], found: Mapping[str, tuple[int, ...]], path: Path) -> None:
    missing, extra = [k for k in wanted if k not in found], [k for k in found if k not in wanted]
    if missing or extra:
        first = f"lacks {missing[0]!r}" if missing else f"has the unknown {extra[0]!r}"
        raise ValueError(f"{path} {first} ({len(missing)} missing, {len(extra)} unknown); it belongs to another network")
    for name, shape in found.items():
        if shape != tuple(wanted[name].shape):
            raise ValueError(f"{path}: {name!r} has shape {shape}; the network needs {tuple(wanted[name].shape)}")


def _moments(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as "parameter|moment" -> tensor."""
    return {
        f"{name}|{key}": value
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
