"""Networks, and small things every network needs, that `diffusers` and its like do not have."""

from .augmented import AugmentedUNet
from .condition import default_condition
from .conditioned import Conditioned, Conditioner
from .dit import ChannelRoutedDiT, DiT, SwitchDiT
from .encoders import ENCODERS, Words, layout_ids
from .exemplar import Exemplar, ExemplarUNet
from .low_rank import Hourglass, LowRank, low_rank
from .masking import MaskingUNet
from .multi_head import MultiHead
from .routing import ChannelRouter, MixtureMask, RoutedBlock, Routes, TimeRouter
from .skippable import block_calls, skippable, skippable_blocks
from .tap import Tapped

__all__ = [
    "ENCODERS",
    "AugmentedUNet",
    "ChannelRoutedDiT",
    "ChannelRouter",
    "Conditioned",
    "Conditioner",
    "DiT",
    "Exemplar",
    "ExemplarUNet",
    "Hourglass",
    "LowRank",
    "MaskingUNet",
    "MixtureMask",
    "MultiHead",
    "RoutedBlock",
    "Routes",
    "SwitchDiT",
    "Tapped",
    "TimeRouter",
    "Words",
    "block_calls",
    "default_condition",
    "layout_ids",
    "low_rank",
    "skippable",
    "skippable_blocks",
]
