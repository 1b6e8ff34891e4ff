"""The model folder: a denoiser as plain files that any program can read and no program runs.

    config.json          format, network class and options, process, prediction, shape, classes, figures
    model.safetensors    the weights
    ema.safetensors      averaged weights (optional; then the ones that are loaded)
    plans/<nfe>.json     sampling plans made for this model (optional)
    codec/               of a model of latents: the autoencoder that makes pictures of its samples (`unstir.codecs`)

A network is named as "package:Class" and only classes of a few known packages are ever imported, so
a folder from a stranger can build networks but not run code. Your own class is given as network=.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import codecs
from .._files import atomic_folder, read_json, read_tensors, settle, write_json, write_tensors
from ..denoiser import TIMES, Denoiser
from ..denoiser.parts import tree
from ..nets import default_condition
from ..process import from_spec
from ..train.checkpoint import load_weights
from ..train.config import device_of

FORMAT, VERSION = "unstir-model", 1
PACKAGES = ("diffusers", "unstir.nets", "monai", "torch_geometric")
MODELS = Path(__file__).parent.parent / "models"
BUNDLED = ("digits", "cifar10")
_TYPES: dict[str, type | tuple[type, ...]] = {
    "network": dict,
    "process": dict,
    "predicts": str,
    "sigma_data": (int, float),
    "time": str,
    "sees_anchor": bool,
    "meta": dict,
}


def save_model(
    model: Denoiser,
    folder: str | Path,
    *,
    ema_weights: Mapping[str, Tensor] | None = None,
    plans: Mapping[int, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Writes a model folder, replacing an earlier one; the folder is whole at every moment.

    ema_weights: averaged weights of the network, by the names of its state_dict.
    plans: NFE -> plan, by default `model.plans`.
    dtype: floating-point type of the stored weights (torch.float16 halves the files); loading gives float32.

    Raises TypeError if `model` is no `Denoiser` around an nn.Module, ValueError if its time
    conditioning is a function, which no file can hold, or if the folder exists and is something else.
    """
    if not isinstance(model, Denoiser) or not isinstance(model.network, nn.Module):
        raise TypeError(f"model is {type(model).__name__}; only a Denoiser around an nn.Module can be saved")
    if not isinstance(model.time, str):
        raise ValueError(f"time={model.time!r} is a function and cannot be saved; use one of {', '.join(TIMES)}")
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and ((folder / "config.json").is_file() or not any(folder.iterdir()))):
        raise ValueError(f"folder={str(folder)!r} exists and is no model folder; it will not be replaced")
    network = _plain(model.network)
    config = {
        "format": FORMAT,
        "version": VERSION,
        "network": _describe(network),
        "process": model.process.spec(),
        "predicts": model.prediction.kind,
        "sigma_data": model.prediction.sigma_data,
        "time": model.time,
        "sees_anchor": model.sees_anchor,
        "clip": None if model.clip is None else list(model.clip),
        "shape": None if model.shape is None else tree(list, model.shape),
        "meta": model.meta,
    }
    with atomic_folder(folder) as new:
        write_json(new / "config.json", config)
        write_tensors(new / "model.safetensors", _cast(network.state_dict(), dtype))
        if ema_weights is not None:
            write_tensors(new / "ema.safetensors", _cast(ema_weights, dtype))
        if isinstance(model.codec, codecs.Codec):
            (new / "codec").mkdir()
            codecs.write(model.codec, new / "codec")
        for nfe, plan in (model.plans if plans is None else plans).items():
            (new / "plans").mkdir(exist_ok=True)
            plan.save(new / "plans" / f"{int(nfe)}.json")
    return folder


def load_model(
    path_or_name: str | Path | Any, *, network: nn.Module | None = None, device: str | torch.device = "cpu", ema: bool = True
) -> Denoiser:
    """The denoiser in a model folder, in a run's folder (its model/), or a bundled one ("digits").

    Also that of a diffusers pipeline, live or in a folder: see `unstir.interop.diffusers.load_pipeline`.

    network: an instance of your own class, for folders whose network is none of the known packages'.
    ema: the averaged weights, if the folder has them.

    The model is in float32, in evaluation mode, and conditions may be left out (null condition).
    Raises ValueError, in one line, naming the file and the cause: a missing or corrupt file, a
    pickle, weights of another network, an unknown format, class or process.
    """
    device = device_of(device) if isinstance(device, str) else device
    if not isinstance(path_or_name, str | Path) or (Path(path_or_name) / "model_index.json").is_file():
        from .diffusers import load_pipeline  # diffusers is imported only for its own

        return load_pipeline(path_or_name, device=device if isinstance(path_or_name, str | Path) else None)
    folder = _find(path_or_name)
    config_file = folder / "config.json"
    config = read_json(config_file)
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{config_file} has format {config.get('format')!r}, not {FORMAT!r}: this is no model folder of unstir"
        )
    if config.get("version") != VERSION:
        raise ValueError(f"{config_file} has version {config.get('version')!r}; this unstir reads version {VERSION}")
    for key, kind in _TYPES.items():
        if not isinstance(config.get(key), kind):
            raise ValueError(f"{config_file}: {key} is {config.get(key)!r}, of the wrong type or missing")
    net = _build(config["network"], config_file) if network is None else network
    weights = folder / "ema.safetensors"
    if not (ema and weights.is_file()):
        weights = folder / "model.safetensors"
    load_weights(_plain(net), {k: v.float() if v.is_floating_point() else v for k, v in read_tensors(weights).items()}, weights)
    null = config["meta"].get("null", {})
    try:
        model = Denoiser(
            default_condition(net, null) if null and network is None else net,
            from_spec(config["process"]),
            config["predicts"],
            time=config["time"],
            sigma_data=config["sigma_data"],
            sees_anchor=config["sees_anchor"],
            clip=None if config.get("clip") is None else tuple(config["clip"]),
            shape=config.get("shape"),
            meta=config["meta"],
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{config_file}: {' '.join(str(error).split())}") from None
    model.plans = _plans(folder / "plans")
    if (folder / "codec").is_dir():
        model.codec = codecs.load(folder / "codec")
    return model.to(device).eval()


def _find(path_or_name: str | Path) -> Path:
    """The model folder meant by a bundled name, a folder, or the folder of a run."""
    if isinstance(path_or_name, str) and path_or_name in BUNDLED and not (Path(path_or_name) / "config.json").exists():
        return MODELS / path_or_name
    path = Path(path_or_name)
    settle(path)
    if path.is_dir():
        settle(path / "model")
        if not (path / "config.json").exists() and (path / "model" / "config.json").exists():
            return path / "model"
        return path
    if path.exists():
        raise ValueError(f"{path} is a file; give the model folder it lies in")
    raise ValueError(f"model {str(path_or_name)!r} is neither a folder nor a bundled name; bundled: {', '.join(BUNDLED)}")


def _plain(network: nn.Module) -> nn.Module:
    """The network without the wrappers of torch.compile and of data parallelism, whose names prefix the weights."""
    while True:
        inner = getattr(network, "_orig_mod", None) or getattr(network, "module", None)
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def _describe(network: nn.Module) -> dict[str, Any]:
    """{"class": "package:Class", "options": {…}}; the class is null if only its owner can build it."""
    kind = type(network)
    config = getattr(network, "config", None)
    package = next((p for p in PACKAGES if kind.__module__ == p or kind.__module__.startswith(f"{p}.")), None)
    if package is None or not isinstance(config, Mapping):
        return {"class": None, "name": f"{kind.__module__}.{kind.__qualname__}", "options": {}}
    return {"class": f"{package}:{kind.__name__}", "options": {k: v for k, v in config.items() if not k.startswith("_")}}


def _build(spec: dict[str, Any], file: Path) -> nn.Module:
    name, options = spec.get("class"), spec.get("options", {})
    if name is None:
        raise ValueError(f"{file}: the network is the class {spec.get('name')!r} of its owner; pass an instance as network=")
    package, _, kind = str(name).partition(":")
    if package not in PACKAGES:
        raise ValueError(
            f"{file}: network class {name!r} is not of {', '.join(PACKAGES)}, and will not be imported; pass network="
        )
    try:
        found = getattr(importlib.import_module(package), kind, None) if kind.isidentifier() and kind[0] != "_" else None
    except ImportError as error:
        raise ValueError(f'{file}: network class {name!r} needs {package}: pip install "{package}" ({error})') from None
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ValueError(f"{file}: {package} has no network class {kind!r}")
    try:
        return found(**options)
    except Exception as error:  # whatever a constructor makes of wrong options
        raise ValueError(f"{file}: {name} cannot be built with these options: {' '.join(str(error).split())}") from None


def _cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    return {k: v.to(dtype) if dtype is not None and v.is_floating_point() else v for k, v in tensors.items()}


def _plans(folder: Path) -> dict[int, Any]:
    files = sorted(folder.glob("*.json"))
    if not files:
        return {}
    from ..plan import Plan

    wrong = [file for file in files if not file.stem.isdigit()]
    if wrong:
        raise ValueError(f"{wrong[0]} must be named by its number of evaluations, for instance 10.json")
    return {int(file.stem): Plan.load(file) for file in sorted(files, key=lambda f: int(f.stem))}
