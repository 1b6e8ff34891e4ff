"""Networks, and small things every network needs, that `diffusers` and its like do not have."""

from .condition import default_condition

__all__ = ["default_condition"]
