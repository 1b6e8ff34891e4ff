"""Conditions of a network that may be left out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn


def default_condition(network: nn.Module, null: Mapping[str, Any]) -> nn.Module:
    """Lets `network` be called without its conditions: network(x, t) means network(x, t, **null).

    null: keyword -> the learned null condition, for instance {"class_labels": 10}. A condition
    given as one number or tensor without a batch axis is repeated for every sample, so
    `class_labels=3` asks for a batch of threes. The network itself is returned: this is a hook, it
    adds no layer and no name to the weights.
    """
    network.register_forward_pre_hook(partial(_fill, dict(null)), with_kwargs=True)
    return network


def _fill(null: dict[str, Any], network: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    x = args[0] if args else kwargs["sample"]
    filled = dict(kwargs)
    for name, missing in null.items():
        given = kwargs.get(name)
        value = torch.as_tensor(missing if given is None else given, device=x.device)
        filled[name] = value.expand(x.shape[0]) if value.ndim == 0 else value
    return args, filled
