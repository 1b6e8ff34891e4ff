"""Networks, and small things every network needs, that `diffusers` and its like do not have."""

from .condition import default_condition
from .exemplar import Exemplar, ExemplarUNet
from .masking import MaskingUNet
from .skippable import block_calls, skippable, skippable_blocks

__all__ = ["Exemplar", "ExemplarUNet", "MaskingUNet", "block_calls", "default_condition", "skippable", "skippable_blocks"]
