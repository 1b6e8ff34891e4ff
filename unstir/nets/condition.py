"""Conditions of a network that may be left out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn


def default_condition(network: nn.Module, null: Mapping[str, Any]) -> nn.Module:
    """Lets `network` be called without its conditions: network(x, t) means network(x, t, **null).

    null: keyword -> the null condition: a number such as a class, {"class_labels": 10}, or a nested
    list of the shape of one sample's condition. A condition that is given as one number or list is
    repeated for every sample, so `class_labels=3` asks for a batch of threes; a tensor has the batch
    axis. The network itself is returned: this is a hook, it adds no layer and no name to the weights.
    """
    network.register_forward_pre_hook(partial(_fill, dict(null)), with_kwargs=True)
    return network


def _fill(null: dict[str, Any], network: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    x = args[0] if args else kwargs["sample"]
    filled = dict(kwargs)
    for name, missing in null.items():
        given = kwargs.get(name)
        chosen = missing if given is None else given
        value = torch.as_tensor(chosen, device=x.device)
        one = value.ndim == 0 or isinstance(chosen, list | tuple)
        filled[name] = value.expand(x.shape[0], *value.shape) if one else value
    return args, filled
