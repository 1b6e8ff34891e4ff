"""Tiny pipelines of diffusers with random weights: the code paths of the real ones. Each is (pipeline, call).

call(pipeline, steps, **options) -> latents or pictures, float32; the same seed every time. Embeddings are
given instead of prompts, so no tokenizer and no text encoder is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor

Call = Callable[..., Tensor]
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
NO_CLIP = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def _random(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def vae(latents: int = 4, **options: Any) -> Any:
    torch.manual_seed(1)
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=latents,
        norm_num_groups=2,
        **options,
    ).eval()


def unet(**options: Any) -> Any:
    torch.manual_seed(0)
    base: dict[str, Any] = {
        "block_out_channels": (4, 8),
        "layers_per_block": 1,
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "norm_num_groups": 2,
        "attention_head_dim": 2,
    }
    return diffusers.UNet2DConditionModel(**{**base, **options}).eval()


def ddpm(**scheduler: Any) -> tuple[Any, Call]:
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).eval()
    pipe = _quiet(diffusers.DDPMPipeline(unet=net, scheduler=diffusers.DDPMScheduler(**scheduler)))
    return pipe, lambda p, n=4, **o: torch.from_numpy(
        p(batch_size=2, num_inference_steps=n, generator=_generator(), output_type="np", **o).images
    )


def _text(n: int = 16) -> dict[str, Tensor]:
    return {"prompt_embeds": _random(1, 5, n), "negative_prompt_embeds": _random(1, 5, n, seed=8)}


def _latent_call(given: dict[str, Any]) -> Call:
    base = {"guidance_scale": 3.0, "output_type": "latent", **given}
    return lambda p, n=4, **o: p(num_inference_steps=n, generator=_generator(), **{**base, **o}).images


def _parts(**options: Any) -> dict[str, Any]:
    return {
        "vae": vae(),
        "text_encoder": None,
        "tokenizer": None,
        "unet": unet(**options),
        "scheduler": diffusers.DDIMScheduler(**NO_CLIP, **SD),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


SIZE = {"height": 16, "width": 16}


def text_to_image() -> tuple[Any, Call]:
    return _quiet(diffusers.StableDiffusionPipeline(**_parts())), _latent_call({**_text(), **SIZE})


def image_to_image() -> tuple[Any, Call]:
    picture = _random(1, 3, 16, 16, seed=3).clamp(-1, 1)
    pipe = _quiet(diffusers.StableDiffusionImg2ImgPipeline(**_parts()))
    return pipe, _latent_call({**_text(), "image": picture, "strength": 0.6})


def inpaint() -> tuple[Any, Call]:
    picture, mask = _random(1, 3, 16, 16, seed=3).clamp(-1, 1), torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    pipe = _quiet(diffusers.StableDiffusionInpaintPipeline(**_parts()))
    return pipe, _latent_call({**_text(), **SIZE, "image": picture, "mask_image": mask, "strength": 0.75})


def version_two() -> tuple[Any, Call]:
    """Stable Diffusion 2: the network predicts the velocity, at zero terminal signal."""
    parts = _parts()
    parts["scheduler"] = diffusers.DDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False, **SD
    )
    return _quiet(diffusers.StableDiffusionPipeline(**parts)), _latent_call({**_text(), **SIZE})


def control(**options: Any) -> Any:
    torch.manual_seed(2)
    net = diffusers.ControlNetModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        in_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        conditioning_embedding_out_channels=(4, 8),
        cross_attention_dim=16,
        norm_num_groups=2,
        attention_head_dim=2,
        **options,
    ).eval()
    torch.nn.init.normal_(net.controlnet_down_blocks[0].weight)  # zero in a fresh one: it would control nothing
    return net


def controlnet() -> tuple[Any, Call]:
    pipe = _quiet(diffusers.StableDiffusionControlNetPipeline(controlnet=control(), **_parts()))
    return pipe, _latent_call({**_text(), **SIZE, "image": _random(1, 3, 16, 16, seed=4).sigmoid()})


XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
    "transformer_layers_per_block": 1,
}


def _xl(kind: Any, given: dict[str, Any], **parts: Any) -> tuple[Any, Call]:
    """A pipeline class of SDXL, called with embeddings and what else it takes."""
    known = {key: _parts(**XL)[key] for key in ("vae", "text_encoder", "tokenizer", "unet")}
    scheduler = diffusers.EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1, **SD)
    pipe = kind(text_encoder_2=None, tokenizer_2=None, scheduler=scheduler, **known, **parts)
    pooled = {"pooled_prompt_embeds": _random(1, 16, seed=5), "negative_pooled_prompt_embeds": _random(1, 16, seed=6)}
    return _quiet(pipe), _latent_call({**_text(), **pooled, **given})


def xl() -> tuple[Any, Call]:
    return _xl(diffusers.StableDiffusionXLPipeline, SIZE)


def xl_image_to_image() -> tuple[Any, Call]:
    picture = _random(1, 3, 16, 16, seed=3).clamp(-1, 1)
    return _xl(diffusers.StableDiffusionXLImg2ImgPipeline, {"image": picture, "strength": 0.6})


def xl_inpaint() -> tuple[Any, Call]:
    picture, mask = _random(1, 3, 16, 16, seed=3).clamp(-1, 1), torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    given = {**SIZE, "image": picture, "mask_image": mask, "strength": 0.75}
    return _xl(diffusers.StableDiffusionXLInpaintPipeline, given)


def xl_controlnet() -> tuple[Any, Call]:
    given = {**SIZE, "image": _random(1, 3, 16, 16, seed=4).sigmoid()}
    return _xl(diffusers.StableDiffusionXLControlNetPipeline, given, controlnet=control(**XL))


def sd3(**scheduler: Any) -> tuple[Any, Call]:
    torch.manual_seed(0)
    net = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
    ).eval()
    empty = dict.fromkeys(f"{k}{i}" for k in ("text_encoder", "tokenizer") for i in ("", "_2", "_3"))
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=net,
        vae=vae(shift_factor=0.1, scaling_factor=1.3),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        **empty,
    )
    pooled = {"pooled_prompt_embeds": _random(1, 16, seed=5), "negative_pooled_prompt_embeds": _random(1, 16, seed=6)}
    return _quiet(pipe), _latent_call({**_text(), **pooled, **SIZE})


def flux() -> tuple[Any, Call]:
    torch.manual_seed(0)
    net = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    pipe = diffusers.FluxPipeline(
        transformer=net,
        vae=vae(1, shift_factor=0.0, scaling_factor=1.5),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
    )
    given = {"prompt_embeds": _random(1, 5, 16), "pooled_prompt_embeds": _random(1, 16, seed=5), **SIZE}
    return _quiet(pipe), _latent_call(given)


def dit() -> tuple[Any, Call]:
    torch.manual_seed(0)
    net = diffusers.DiTTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_zero",
        norm_elementwise_affine=False,
    ).eval()
    pipe = _quiet(diffusers.DiTPipeline(transformer=net, vae=vae(), scheduler=diffusers.DDIMScheduler(clip_sample=False)))
    return pipe, lambda p, n=4, **o: torch.from_numpy(
        p(class_labels=[1, 2], guidance_scale=2.0, num_inference_steps=n, generator=_generator(), output_type="np", **o).images
    )


def pixart() -> tuple[Any, Call]:
    torch.manual_seed(0)
    net = diffusers.PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=16,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    ).eval()
    pipe = diffusers.PixArtAlphaPipeline(
        transformer=net, vae=vae(), scheduler=diffusers.DPMSolverMultistepScheduler(), text_encoder=None, tokenizer=None
    )
    mask = {"prompt_attention_mask": torch.ones(1, 5), "negative_prompt_attention_mask": torch.ones(1, 5)}
    given = {"negative_prompt": None, "use_resolution_binning": False}
    return _quiet(pipe), _latent_call({**_text(), **mask, **given, **SIZE})


def animate() -> tuple[Any, Call]:
    motion = diffusers.MotionAdapter(
        block_out_channels=(4, 8), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2
    ).eval()
    parts = _parts()
    for key in ("safety_checker", "requires_safety_checker"):
        parts.pop(key)
    parts["scheduler"] = diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False)
    pipe = _quiet(diffusers.AnimateDiffPipeline(motion_adapter=motion, **parts))
    base = {**_text(), **SIZE, "num_frames": 2, "guidance_scale": 2.0, "output_type": "latent"}
    return pipe, lambda p, n=4, **o: p(num_inference_steps=n, generator=_generator(), **{**base, **o}).frames


def audio() -> tuple[Any, Call]:
    from transformers import ClapTextConfig, ClapTextModelWithProjection, SpeechT5HifiGan, SpeechT5HifiGanConfig

    torch.manual_seed(3)
    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=8,
            sampling_rate=16000,
            upsample_initial_channel=16,
            upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4],
            resblock_kernel_sizes=[3, 7],
            resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
            normalize_before=False,
        )
    ).eval()
    parts = _parts(
        cross_attention_dim=(4, 8),
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=16,
        class_embeddings_concat=True,
    )
    for key in ("safety_checker", "requires_safety_checker", "feature_extractor"):
        parts.pop(key)
    text = ClapTextConfig(
        hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=50, projection_dim=16
    )
    mono = diffusers.AutoencoderKL(
        block_out_channels=(4, 8),
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
    ).eval()
    pipe = _quiet(
        diffusers.AudioLDMPipeline(
            vocoder=vocoder, **{**parts, "vae": mono, "text_encoder": ClapTextModelWithProjection(text).eval()}
        )
    )
    given = {"prompt_embeds": _random(1, 16), "negative_prompt_embeds": _random(1, 16, seed=8)}
    base = {**given, "guidance_scale": 2.0, "audio_length_in_s": 0.016, "output_type": "latent"}
    return pipe, lambda p, n=4, **o: torch.as_tensor(p(num_inference_steps=n, generator=_generator(), **{**base, **o}).audios)


def tokenizer() -> Any:
    """One token a letter."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(97, 123)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    out = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    out.model_max_length = 8
    return out


def text_encoder(projected: bool = False, seed: int = 0) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=16,
        intermediate_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        projection_dim=16,
        max_position_embeddings=8,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def with_prompts() -> dict[str, tuple[Any, Call]]:
    """Pipelines that read prompts."""
    sd = diffusers.StableDiffusionPipeline(**{**_parts(), "tokenizer": tokenizer(), "text_encoder": text_encoder()})
    big, _ = xl()
    wide = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64,
        transformer_layers_per_block=1,
        cross_attention_dim=32,
    )
    big = diffusers.StableDiffusionXLPipeline(
        vae=big.vae,
        unet=wide,
        scheduler=big.scheduler,
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        text_encoder=text_encoder(),
        text_encoder_2=text_encoder(True, 1),
    )
    return {name: (_quiet(pipe), _latent_call(SIZE)) for name, pipe in (("SD", sd), ("SDXL", big))}


PIPELINES: dict[str, Callable[[], tuple[Any, Call]]] = {
    "DDPM": ddpm,
    "SD": text_to_image,
    "SD2": version_two,
    "SD img2img": image_to_image,
    "SD inpaint": inpaint,
    "ControlNet": controlnet,
    "SDXL": xl,
    "SDXL img2img": xl_image_to_image,
    "SDXL inpaint": xl_inpaint,
    "SDXL ControlNet": xl_controlnet,
    "SD3": sd3,
    "Flux": flux,
    "DiT": dit,
    "PixArt": pixart,
    "AnimateDiff": animate,
    "AudioLDM": audio,
}
