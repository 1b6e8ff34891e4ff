"""Models in and out: model folders (safetensors and JSON); later other libraries' formats."""

from .folder import BUNDLED, load_model, save_model

__all__ = ["BUNDLED", "load_model", "save_model"]
