"""One trunk, many heads: a network that predicts several things of one state, or of a state of several fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class MultiHead(nn.Module):
    """trunk(x, t, **cond) -> h, and a head for every name: the network of `denoiser.Joint`, or of a dict state.

    For a tensor x, forward returns (heads[main](h), {name: heads[name](h) of all others}).
    For a dict x, every field enters through encoders[field], the trunk sees the sum, and forward returns
    ({field: heads[field](h)}, {name: heads[name](h) of the heads that are no field}).

    main: the head of the prediction for a tensor state.
    encoders: {field: module}, for dict states; field by field of the shape that the trunk reads.

    Raises ValueError for a head or encoder that is missing.
    """

    def __init__(
        self,
        trunk: nn.Module,
        heads: Mapping[str, nn.Module],
        *,
        main: str = "data",
        encoders: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if encoders is None and main not in heads:
            raise ValueError(f"main={main!r} is none of the heads: {', '.join(heads) or 'none'}")
        headless = [field for field in encoders or () if field not in heads]
        if headless:
            raise ValueError(f"no head for {', '.join(headless)}; every field of a dict state needs one")
        self.trunk, self.heads, self.main = trunk, nn.ModuleDict(heads), main
        self.encoders = nn.ModuleDict(encoders or {})

    def forward(self, x: Any, time: Tensor, **cond: Any) -> tuple[Any, dict[str, Tensor]]:
        if isinstance(x, Tensor):
            h = self.trunk(x, time, **cond)
            found = {name: head(h) for name, head in self.heads.items()}
            return found.pop(self.main), found
        missing = [field for field in x if field not in self.encoders]
        if missing:
            raise ValueError(f"no encoder for {', '.join(missing)}; a dict state needs one for each of its fields")
        h = self.trunk(sum(self.encoders[field](value) for field, value in x.items()), time, **cond)
        found = {name: head(h) for name, head in self.heads.items()}
        return {field: found.pop(field) for field in x}, found
