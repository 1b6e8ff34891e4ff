"""Prompts as conditions of a pipeline's network."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

Conditions = dict[str, Any]


def prompt_conditions(
    source: Any, prompts: str | Sequence[str], negative: str | Sequence[str] = ""
) -> tuple[Conditions, Conditions]:
    """(conditions, unconditional ones) of a pipeline, or of a denoiser loaded from one, for a batch of prompts.

    They are the keywords of the network: unstir.sample(model, plan, shape=len(prompts), **conditions).
    Stable Diffusion 1, 2 and XL, 3, PixArt, and whatever encodes a prompt to one pair of embeddings.
    Raises ValueError for other pipelines: give their network's keywords yourself.
    """
    pipe = getattr(source, "pipeline", source)
    if not hasattr(pipe, "encode_prompt"):
        raise ValueError(f"{type(pipe).__name__} has no encode_prompt; give the conditions as keywords of its network")
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    against = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
    names = inspect.signature(pipe.encode_prompt).parameters
    given: dict[str, Any] = {"prompt": prompts, "negative_prompt": against, "do_classifier_free_guidance": True}
    given |= {"num_images_per_prompt": 1, "device": next(_network(pipe).parameters()).device}
    given |= dict.fromkeys(("prompt_2", "prompt_3"))  # the same prompt for every text encoder
    with torch.no_grad():
        out = pipe.encode_prompt(**{key: value for key, value in given.items() if key in names})
    if not isinstance(out, tuple) or len(out) not in (2, 4):
        raise ValueError(f"the prompts of {type(pipe).__name__} are not understood; give its network's keywords yourself")
    if len(out) == 2:
        return {"encoder_hidden_states": out[0]}, {"encoder_hidden_states": out[1]}
    if "prompt_attention_mask" in names:
        sizes = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
        texts = ((out[0], out[1]), (out[2], out[3]))
        return tuple({"encoder_hidden_states": e, "encoder_attention_mask": m, **sizes} for e, m in texts)  # pyright: ignore
    texts = ((out[0], out[2]), (out[1], out[3]))
    if getattr(pipe, "unet", None) is None:
        return tuple({"encoder_hidden_states": e, "pooled_projections": p} for e, p in texts)  # pyright: ignore
    side = float(pipe.unet.config.sample_size * pipe.vae_scale_factor)
    ids = torch.tensor([[side, side, 0.0, 0.0, side, side]], device=out[0].device, dtype=out[0].dtype).expand(len(prompts), -1)
    return tuple(  # pyright: ignore
        {"encoder_hidden_states": e, "added_cond_kwargs": {"text_embeds": p, "time_ids": ids}} for e, p in texts
    )


def _network(pipe: Any) -> torch.nn.Module:
    return pipe.unet if getattr(pipe, "unet", None) is not None else pipe.transformer
