"""Models in and out: model folders (safetensors and JSON), diffusers both ways, k-diffusion's samplers."""

from typing import Any

from .folder import BUNDLED, load_model, save_model

# Found in modules that are imported when they are first named: `diffusers` needs the library of that name.
_ELSEWHERE = {"PlanScheduler": "diffusers", "save_diffusers": "diffusers", "sampler": "kdiffusion"}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _ELSEWHERE.values():
        return importlib.import_module(f".{name}", __name__)
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(f".{_ELSEWHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["BUNDLED", "load_model", "save_model"]
