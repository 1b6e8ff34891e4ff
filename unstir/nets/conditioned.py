"""One network for all the ways in which a denoiser is told what to make: concatenation, cross-attention, classes.

    raw = UNet(x ⊕ concat conditions, time, tokens of the cross conditions, label of the class condition)

A `Conditioner` is the map of them: name → (encoder, route, share of images trained without it, null). Conditions are
keywords of the network, given as raw values (`encoders`); one that is left out, or that is given as its null, is the
learned "none", so guidance needs nothing else.

A fresh network is that of the unconditional model: the projections behind its attention to tokens are zero (a block is
then the identity), and so are the weights of the first layer that look at concatenated channels.
(High-Resolution Image Synthesis with Latent Diffusion Models, 2022.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .._extras import need
from .encoders import ENCODERS, Encoder

ROUTES = ("concat", "cross", "class")
DROP = 0.1


class Conditioner(nn.Module):
    """{name: {"encoder": its kind, "route": …, "drop": share, and the encoder's own options}}, with the encoders.

    width: of the tokens.   null, drop: {name: raw value of "none"} and {name: share}, for a model's meta and an `Objective`.

    Raises ValueError for an unknown route or encoder, options that the encoder does not have, two conditions as class.
    """

    def __init__(self, conditions: Mapping[str, Mapping[str, Any]], width: int) -> None:
        super().__init__()
        self.routes: dict[str, str] = {}
        self.drop: dict[str, float] = {}
        encoders: dict[str, Encoder] = {}
        for name, given in conditions.items():
            options = dict(given)
            kind, route, drop = options.pop("encoder", None), options.pop("route", None), options.pop("drop", DROP)
            if not name.isidentifier() or hasattr(nn.ModuleDict, name):
                raise ValueError(f"condition {name!r} must be a word of letters, digits and _ (and no method of ModuleDict)")
            if kind not in ENCODERS:
                raise ValueError(f"condition {name!r}: encoder={kind!r} is unknown; one of {', '.join(ENCODERS)}")
            if route not in ROUTES:
                raise ValueError(f"condition {name!r}: route={route!r} is unknown; one of {', '.join(ROUTES)}")
            if not 0 <= drop < 1:
                raise ValueError(f"condition {name!r}: drop={drop} must be a share, at least 0 and below 1")
            if kind == "tokens" or (kind == "labels" and route == "cross"):
                options["width"] = width
            try:
                encoders[name] = ENCODERS[kind](**options)
            except TypeError as error:
                raise ValueError(f"condition {name!r}: {kind} with {options}: {error}") from None
            if (encoders[name].channels > 0) != (route == "concat") or ((route == "class") and kind != "labels"):
                raise ValueError(f"condition {name!r}: encoder {kind!r} cannot take the route {route!r}")
            self.routes[name], self.drop[name] = route, drop
        if list(self.routes.values()).count("class") > 1:
            raise ValueError(f"conditions {', '.join(self.by('class'))}: only one can take the route 'class'")
        self.encoders = nn.ModuleDict(encoders)

    def encoder(self, name: str) -> Any:
        """The encoder of a condition."""
        return self.encoders[name]

    def by(self, route: str) -> list[str]:
        """The names of the conditions that take a route, in order."""
        return [name for name, taken in self.routes.items() if taken == route]

    @property
    def null(self) -> dict[str, float]:
        """{name: the raw value of "none"}."""
        return {name: self.encoder(name).null for name in self.routes}

    @property
    def channels(self) -> dict[str, int]:
        """{name: channels} of what is concatenated."""
        return {name: self.encoder(name).channels for name in self.by("concat")}

    def encode(self, x: Tensor, given: Mapping[str, Any]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(x with what is concatenated, tokens, label) for raw conditions, null where there are none."""
        unknown = [name for name in given if name not in self.routes]
        if unknown:
            raise TypeError(f"condition {unknown[0]!r} is unknown; the network's are {', '.join(self.routes) or 'none'}")
        out = {name: self.encoder(name)(self._raw(name, given.get(name), x)) for name in self.routes}
        beside = [out[name].to(x.dtype) for name in self.by("concat")]
        for name in self.by("concat"):
            if out[name].shape != (len(x), self.channels[name], *x.shape[2:]):
                raise ValueError(
                    f"condition {name!r} becomes {tuple(out[name].shape)} beside a state of shape {tuple(x.shape)}; it must be "
                    f"({len(x)}, {self.channels[name]}, {', '.join(map(str, x.shape[2:]))})"
                )
        tokens = [out[name] for name in self.by("cross")]
        label = self.by("class")
        return (
            torch.cat([x, *beside], 1) if beside else x,
            torch.cat(tokens, 1) if tokens else None,
            out[label[0]] if label else None,
        )

    def _raw(self, name: str, value: Any, x: Tensor) -> Tensor:
        """A raw value for every sample: none given is null, and one that lacks axes (a number; one a sample) is repeated."""
        blank = self.encoder(name).blank(x)
        if value is None:
            return blank
        value = torch.as_tensor(value, device=x.device)
        if value.ndim < blank.ndim and (value.ndim == 0 or len(value) == len(x)):
            value = value.reshape(value.shape + (1,) * (blank.ndim - value.ndim)).expand(blank.shape)
        return value.to(blank.dtype)


class Conditioned(nn.Module):
    """network(x, time, **conditions) for x (B, channels, h, w), on UNet2DConditionModel, or UNet2DModel without tokens.

    conditions: of `Conditioner`;   widths: channels of the levels, multiples of 8;   attention: which levels attend to
    tokens (the first is the finest; the middle always does);   layers: residual blocks a level;
    width, heads: of the tokens and of the attention.
    """

    def __init__(
        self,
        channels: int,
        conditions: Mapping[str, Mapping[str, Any]] | None = None,
        widths: Sequence[int] = (32, 64, 64),
        attention: Sequence[bool] | None = None,
        layers: int = 1,
        width: int = 64,
        heads: int = 4,
    ) -> None:
        super().__init__()
        conditions = conditions or {}
        attends = [i > 0 for i in range(len(widths))] if attention is None else list(attention)
        if len(attends) != len(widths) or any(w < 8 or w % 8 for w in widths):
            raise ValueError(f"widths={list(widths)} must be multiples of 8, with attention={attention!r} for each of them")
        self.config = {
            "channels": channels,
            "conditions": {name: dict(options) for name, options in conditions.items()},
            "widths": list(widths),
            "attention": attends,
            "layers": layers,
            "width": width,
            "heads": heads,
        }
        self.channels, self.conditioner = channels, Conditioner(conditions, width)
        options: dict[str, Any] = {
            "in_channels": channels + sum(self.conditioner.channels.values()),
            "out_channels": channels,
            "block_out_channels": tuple(widths),
            "layers_per_block": layers,
            "norm_num_groups": 8,
        }
        if label := self.conditioner.by("class"):
            options["num_class_embeds"] = int(self.conditioner.null[label[0]]) + 1
        library = need("diffusers")
        cross = bool(self.conditioner.by("cross"))
        if cross:
            kinds = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends]
            options |= {"cross_attention_dim": width, "attention_head_dim": heads}  # which is the number of heads here
        else:
            kinds = ["DownBlock2D"] * len(widths)
            options["add_attention"] = False
        options["down_block_types"] = tuple(kinds)
        options["up_block_types"] = tuple(kind.replace("Down", "Up") for kind in reversed(kinds))
        self.unet = (library.UNet2DConditionModel if cross else library.UNet2DModel)(**options)
        self._start_unconditional()

    @torch.no_grad()
    def _start_unconditional(self) -> None:
        """Zeros where conditions would enter."""
        self.unet.conv_in.weight[:, self.channels :] = 0
        for block in self.unet.modules():
            if type(block).__name__ == "Transformer2DModel":
                block.proj_out.weight.zero_()
                block.proj_out.bias.zero_()

    @property
    def null(self) -> dict[str, float]:
        """{name: raw value of "none"}, for `Denoiser(…, meta={"null": …})`."""
        return self.conditioner.null

    def forward(self, x: Tensor, time: Tensor, **conditions: Any) -> Tensor:
        if x.shape[1] != self.channels:
            beside = "".join(f" + {n} of {name}" for name, n in self.conditioner.channels.items())
            total = self.channels + sum(self.conditioner.channels.values())
            raise ValueError(f"x has {x.shape[1]} channels; this network takes {self.channels}{beside} = {total}")
        seen, tokens, label = self.conditioner.encode(x, conditions)
        told = {} if tokens is None else {"encoder_hidden_states": tokens}
        out: Any = self.unet(seen, time, **told, class_labels=label, return_dict=False)[0]
        return out
