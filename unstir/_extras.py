"""Optional packages, imported when they are needed, with an error that says what to install."""

from __future__ import annotations

import importlib
from typing import Any

EXTRA = {
    **{"PIL": "cli", "matplotlib": "cli", "sklearn": "cli", "torchmetrics": "metrics", "pesq": "pesq"},
    **{"soundfile": "speech", "scipy": "speech", "pystoi": "speech", "espeakng_loader": "espeak", "nilearn": "medical"},
    **{"diffusers": "diffusers", "skimage": "pictures", "transformers": "text"},
    **{"tensorly": "hyperspectral"},
}


def need(module: str) -> Any:
    """An optional module, or an ImportError that names the extra of unstir that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        name = module.split(".")[0]
        raise ImportError(f"{name} is needed for this and is not installed: pip install 'unstir[{EXTRA[name]}]'") from None
