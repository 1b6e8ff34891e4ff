"""Pipelines of diffusers as denoisers, and our models as folders that diffusers opens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers", reason="the classes of text-to-image pipelines need transformers")

from tiny_pipelines import SD, ddpm, dit, flux, sd3, text_to_image, with_prompts, xl  # noqa: E402

import unstir  # noqa: E402
from unstir.interop import save_diffusers  # noqa: E402
from unstir.interop.diffusers import prompt_conditions, sample_as_pipeline  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
TEXT = {"encoder_hidden_states": torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(7))}
NO_TEXT = {"encoder_hidden_states": torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(8))}


@pytest.fixture(autouse=True)
def quiet() -> None:
    diffusers.utils.logging.set_verbosity_error()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def guided(scale: float, conditional: dict[str, Any], unconditional: dict[str, Any]) -> Any:
    """Classifier-free guidance, written out: D_u + s (D_c − D_u)."""

    def make(model: Any) -> Any:
        def call(x: Tensor, t: Any) -> Tensor:
            low, high = model(x, t, **unconditional), model(x, t, **conditional)
            return low + scale * (high - low)

        return call

    return make


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest entry."""
    return float((a - b).abs().max() / a.abs().max())


@pytest.mark.parametrize(
    "options", [{}, {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"}, {"clip_sample": False}]
)
def test_ddpm_pipelines_are_reproduced(options: dict[str, Any]) -> None:
    pipe, call = ddpm(**options)
    theirs = call(pipe, 6)
    g = torch.Generator().manual_seed(0)
    first = torch.randn(2, 3, 8, 8, generator=g)
    ours = sample_as_pipeline(pipe, 6, first, generator=g)
    picture = (ours / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert float((theirs - picture).abs().max()) < 1e-5


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **SD),
        diffusers.DDIMScheduler(**SD),
        diffusers.EulerDiscreteScheduler(use_karras_sigmas=True, **SD),
        diffusers.DPMSolverMultistepScheduler(**SD),
        diffusers.UniPCMultistepScheduler(**SD),
        diffusers.EulerAncestralDiscreteScheduler(**SD),
    ],
    ids=lambda s: type(s).__name__,
)
def test_stable_diffusion_with_guidance_is_reproduced(scheduler: Any) -> None:
    pipe, call = text_to_image()
    pipe.scheduler = scheduler
    latents, g = noise(1, 4, 8, 8), torch.Generator().manual_seed(0)
    theirs = call(pipe, 6, latents=latents)
    ours = sample_as_pipeline(pipe, 6, latents, generator=g, guidance=guided(3.0, TEXT, NO_TEXT))
    assert gap(theirs, ours) < 1e-5


def test_decoded_pictures_are_the_pipelines() -> None:
    pipe, call = text_to_image()
    model, latents = unstir.load(pipe), noise(1, 4, 8, 8)
    theirs = call(pipe, 5, latents=latents, output_type="pt")
    ours = model.codec.decode(sample_as_pipeline(pipe, 5, latents, guidance=guided(3.0, TEXT, NO_TEXT)))
    assert float((theirs - (ours / 2 + 0.5).clamp(0, 1)).abs().max()) < 1e-5
    picture = noise(1, 3, 16, 16, seed=3).clamp(-1, 1)
    scale = pipe.vae.config.scaling_factor
    assert torch.allclose(model.codec.encode(picture), pipe.vae.encode(picture).latent_dist.mode() * scale)
    assert unstir.load(ddpm()[0]).codec is None


def test_class_conditional_transformers_are_reproduced() -> None:
    pipe, call = dit()
    theirs = call(pipe, 5)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = guided(2.0, {"class_labels": torch.tensor([1, 2])}, {"class_labels": torch.tensor([1000, 1000])})

    ours = sample_as_pipeline(pipe, 5, latents, guidance=labels)
    picture = (unstir.load(pipe).codec.decode(ours) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    assert float((theirs - picture).abs().max()) < 1e-5


def test_added_conditions_and_flows_are_reproduced() -> None:
    pipe, call = xl()
    latents = noise(1, 4, 8, 8)
    theirs = call(pipe, 5, latents=latents)
    ids = torch.tensor([[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]])
    pair = [
        {**text, "added_cond_kwargs": {"text_embeds": noise(1, 16, seed=seed), "time_ids": ids}}
        for text, seed in ((TEXT, 5), (NO_TEXT, 6))
    ]
    assert gap(theirs, sample_as_pipeline(pipe, 5, latents, guidance=guided(3.0, *pair))) < 1e-5
    pipe, call = sd3()
    theirs = call(pipe, 5, latents=latents)
    pair = [{**text, "pooled_projections": noise(1, 16, seed=seed)} for text, seed in ((TEXT, 5), (NO_TEXT, 6))]
    assert gap(theirs, sample_as_pipeline(pipe, 5, latents, guidance=guided(3.0, *pair))) < 1e-5


@pytest.mark.parametrize("name", ["SD", "SDXL"])
def test_prompts_become_conditions(name: str) -> None:
    pipe, call = with_prompts()[name]
    latents = noise(2, 4, 8, 8)
    theirs = call(pipe, 5, prompt=["a cat", "two dogs"], negative_prompt=["", "fog"], latents=latents)
    pair = prompt_conditions(unstir.load(pipe), ["a cat", "two dogs"], ["", "fog"])
    ours = sample_as_pipeline(pipe, 5, latents, guidance=lambda m: unstir.steer.cfg(m, 3.0, null=pair[1]), **pair[0])
    assert gap(theirs, ours) < 1e-5
    assert gap(theirs[:1], theirs[1:]) > 1e-2
    with pytest.raises(ValueError, match="has no encode_prompt"):
        prompt_conditions(ddpm()[0], "a cat")


def test_the_denoiser_of_a_pipeline_is_exact() -> None:
    pipe, _ = text_to_image()
    model = unstir.load(pipe)
    assert torch.equal(model.process.alphas_cumprod, pipe.scheduler.alphas_cumprod.double())
    assert (model.prediction.kind, model.time, model.shape) == ("noise", "label", (4, 8, 8))
    x, bar = noise(2, 4, 8, 8), pipe.scheduler.alphas_cumprod.double()
    text = TEXT["encoder_hidden_states"].expand(2, -1, -1)
    with torch.no_grad():
        raw = pipe.unet(x, torch.tensor(321), encoder_hidden_states=text).sample
        data = (x - (1 - bar[321]).sqrt().float() * raw) / bar[321].sqrt().float()
        assert torch.allclose(model(x, 322 / 1000, encoder_hidden_states=text), data, atol=1e-5)
    out = unstir.sample(model, nfe=4, shape=2, encoder_hidden_states=text)
    assert out.shape == (2, 4, 8, 8)
    assert bool(torch.isfinite(out).all())


def test_flows_are_told_their_own_time() -> None:
    model = unstir.load(sd3()[0])
    assert isinstance(model.process, unstir.process.Shifted)
    t = torch.tensor(0.3, dtype=torch.float64)
    assert float(model.decoder(t).time) == pytest.approx(1000 * float(model.process.sigma(t)))
    told: list[float] = []
    pipe = flux()[0]
    pipe.transformer.register_forward_pre_hook(lambda m, a, k: told.append(float(k["timestep"])), with_kwargs=True)
    ids = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3)}
    model = unstir.load(pipe)
    model(noise(1, 16, 4), 0.25, pooled_projections=noise(1, 16), **TEXT, **ids)
    assert told == [pytest.approx(0.25)]


def test_zero_terminal_snr_is_exact() -> None:
    pipe, _ = ddpm(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert float(unstir.load(pipe).process.alpha(1.0)) == 0


def test_folders_open_as_the_live_pipeline_does_and_nothing_is_unpickled(tmp_path: Path) -> None:
    pipe, _ = ddpm()
    pipe.save_pretrained(tmp_path / "safe")
    x = noise(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(unstir.load(str(tmp_path / "safe"))(x, 0.4), unstir.load(pipe)(x, 0.4))
    pipe.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(ValueError, match="cannot be read as a pipeline"):
        unstir.load(tmp_path / "pickled")
    with pytest.raises(TypeError, match="give a diffusers pipeline or a folder"):
        unstir.load(torch.nn.Linear(2, 2))


# -- out: our models as their folders -----------------------------------------------------------------------
def small_unet() -> Any:
    return ddpm()[0].unet


@pytest.mark.parametrize("predicts", ["noise", "data", "velocity"])
@pytest.mark.parametrize(
    "process", [unstir.process.VP(), unstir.process.from_betas([0.01 * (i + 1) for i in range(20)])], ids=str
)
def test_our_models_open_in_ddpm_pipeline(predicts: str, process: Any, tmp_path: Path) -> None:
    model = unstir.Denoiser(small_unet(), process, predicts, time="label", clip=(-1.0, 1.0)).eval()
    save_diffusers(model, tmp_path)
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(num_inference_steps=3, output_type="np").images.shape == (1, 8, 8, 3)
    back, x = unstir.load(tmp_path), noise(2, 3, 8, 8)
    levels = back.process.levels
    with torch.no_grad():
        for label in (0, levels // 2, levels - 1):
            t = (label + 1) / levels
            assert float(back.process.logsnr(t)) == pytest.approx(float(process.logsnr(t)), abs=2e-3)  # float32 betas
            assert torch.allclose(back(x, t), model(x, t), atol=1e-3)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"predicts": "edm"}, "predicts='edm' has no name"),
        ({"predicts": "flow"}, "predicts='flow' has no name"),
        ({"time": "unit"}, "only time='label'"),
        ({"process": unstir.process.EDM()}, "not variance-preserving"),
        ({"network": torch.nn.Identity()}, "a DDPMPipeline holds"),
        ({"clip": (0.0, 1.0)}, "clips symmetrically"),
    ],
)
def test_what_a_folder_cannot_express_is_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    given = {"network": small_unet(), "process": unstir.process.VP(), "predicts": "noise", "time": "label", **change}
    with pytest.raises(ValueError, match=told):
        save_diffusers(unstir.Denoiser(**given), tmp_path)
