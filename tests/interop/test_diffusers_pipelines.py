"""PlanScheduler inside diffusers' own pipelines, built with tiny random weights."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers", reason="the classes of text-to-image pipelines need transformers")

from tiny_pipelines import NO_CLIP, PIPELINES, SD, Call, ddpm, image_to_image, inpaint, sd3, text_to_image  # noqa: E402

import unstir  # noqa: E402
from unstir.interop.diffusers import PlanScheduler  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
TOLERANCE = 1e-4


@pytest.fixture(autouse=True)
def quiet() -> None:
    diffusers.utils.logging.set_verbosity_error()


def gap(a: Tensor, b: Tensor) -> float:
    """Largest difference over the largest entry."""
    return float((a - b).abs().max() / a.abs().max())


def both(pipe: Any, call: Call, scheduler: Any, steps: int = 5, **options: Any) -> tuple[Tensor, Tensor]:
    """(the peer's result, that of PlanScheduler configured as it)."""
    pipe.scheduler = scheduler
    theirs = call(pipe, steps, **options)
    pipe.scheduler = PlanScheduler.from_config(scheduler, solver="config")
    return theirs, call(pipe, steps, **options)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_pipeline_gives_its_own_result_and_runs_another_solver(name: str) -> None:
    pipe, call = PIPELINES[name]()
    own = pipe.scheduler
    theirs, ours = both(pipe, call, own)
    assert bool(torch.isfinite(theirs).all())
    assert gap(theirs, ours) < TOLERANCE
    for solver, grid in (("dpmpp-3m", "config"), ("auto", "auto"), ("heun", "config")):
        pipe.scheduler = PlanScheduler.from_config(own.config, solver=solver, grid=grid)
        other = call(pipe, 5)
        assert bool(torch.isfinite(other).all())
        assert gap(theirs, other) > 1e-3  # it is a different method


DIFFUSION = [
    ("DDIMScheduler", {**NO_CLIP, **SD}),
    ("DDIMScheduler", {"timestep_spacing": "trailing", **SD}),
    ("EulerDiscreteScheduler", SD),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "timestep_spacing": "leading", **SD}),
    ("EulerAncestralDiscreteScheduler", SD),
    ("DPMSolverMultistepScheduler", SD),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, **SD}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **SD}),
    ("UniPCMultistepScheduler", SD),
    ("HeunDiscreteScheduler", SD),
    (
        "DDIMScheduler",
        {
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "clip_sample": False,
        },
    ),
]


def ids(value: Any) -> str:
    return value if isinstance(value, str) else ",".join(k for k in value if not k.startswith("beta_"))


@pytest.mark.parametrize(("name", "options"), DIFFUSION, ids=ids)
def test_stable_diffusion_pictures_are_the_peers(name: str, options: dict[str, Any]) -> None:
    pipe, call = text_to_image()
    # 5 steps divide 1000: else DDIM steps past its next label (docs/parity.md)
    theirs, ours = both(pipe, call, getattr(diffusers, name)(**options), 5, output_type="pt")
    assert float((theirs - ours).abs().max()) < TOLERANCE
    theirs, ours = both(pipe, call, getattr(diffusers, name)(**options), 5)
    assert gap(theirs, ours) < TOLERANCE


@pytest.mark.parametrize("make", [image_to_image, inpaint], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"]
)
@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
def test_strength_and_masks_agree_with_the_peers(make: Any, name: str, strength: float) -> None:
    pipe, call = make()
    options = {**SD, **(NO_CLIP if name == "DDIMScheduler" else {})}
    theirs, ours = both(pipe, call, getattr(diffusers, name)(**options), 8, strength=strength)
    assert gap(theirs, ours) < TOLERANCE


@pytest.mark.parametrize("options", [{}, {"shift": 1.0}, {"use_karras_sigmas": True}, {"use_dynamic_shifting": True}], ids=str)
def test_flow_pictures_are_the_peers(options: dict[str, Any]) -> None:
    pipe, call = sd3(**options)
    theirs, ours = both(pipe, call, pipe.scheduler, 6, output_type="pt")
    assert float((theirs - ours).abs().max()) < TOLERANCE
    theirs, ours = both(pipe, call, pipe.scheduler, 6)
    assert gap(theirs, ours) < TOLERANCE


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_pixel_pipelines_of_every_prediction(prediction: str) -> None:
    pipe, call = ddpm(prediction_type=prediction)
    theirs, ours = both(pipe, call, pipe.scheduler, 8)
    assert float((theirs - ours).abs().max()) < TOLERANCE


def test_custom_timesteps_and_sigmas_of_a_pipeline_call() -> None:
    pipe, call = text_to_image()
    pipe.scheduler = PlanScheduler.from_config(pipe.scheduler, solver="dpmpp-3m")
    a = call(pipe, 5, timesteps=[999, 700, 400, 200, 50])
    assert pipe.scheduler.timesteps.tolist() == [999, 700, 400, 200, 50]
    b = call(pipe, 5, sigmas=[14.6, 3.0, 1.0, 0.3, 0.05, 0.0])
    assert len(pipe.scheduler.timesteps) == 5
    assert bool(torch.isfinite(a).all())
    assert bool(torch.isfinite(b).all())
    flow, call = sd3()
    theirs, ours = both(flow, call, flow.scheduler, 4, sigmas=[1.0, 0.8, 0.5, 0.2])
    assert gap(theirs, ours) < TOLERANCE


def test_a_batch_with_a_generator_per_picture() -> None:
    pipe, _ = text_to_image()
    pipe.scheduler = PlanScheduler.from_config(pipe.scheduler, solver="ancestral")
    each = [torch.Generator().manual_seed(i) for i in (1, 2)]
    two = call_with(pipe, each)
    one = call_with(pipe, [torch.Generator().manual_seed(2)])
    assert gap(two[1:], one) < 1e-5  # a picture does not change with the batch it is drawn in


def call_with(pipe: Any, generators: list[torch.Generator]) -> Tensor:
    n = len(generators)
    text = (torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(seed)).expand(n, -1, -1) for seed in (7, 8))
    return pipe(
        **dict(zip(("prompt_embeds", "negative_prompt_embeds"), text, strict=True)),
        num_inference_steps=5,
        generator=generators,
        height=16,
        width=16,
        output_type="latent",
    ).images


def test_a_plan_beside_the_pipeline(tmp_path: Path) -> None:
    pipe, call = text_to_image()
    plan = unstir.plan("unipc", unstir.load(pipe).process, nfe=6)
    pipe.save_pretrained(tmp_path)
    plan.save(tmp_path / "unstir_plan.json")
    assert unstir.load(tmp_path).plans[6] == plan
    pipe.scheduler = PlanScheduler.from_plan(tmp_path / "unstir_plan.json", pipe.scheduler)
    out = call(pipe, 6)
    pipe.scheduler = PlanScheduler.from_config(unstir.load(tmp_path).scheduler, solver="unipc", grid="auto")
    assert gap(call(pipe, 6), out) < 1e-5


def test_a_pipeline_with_our_scheduler_saves_and_opens(tmp_path: Path) -> None:
    pipe, call = ddpm()
    pipe.scheduler = PlanScheduler.from_config(pipe.scheduler, solver="dpmpp-3m", grid="auto")
    expected = call(pipe, 4)
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"][1] == "PlanScheduler"
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.scheduler, PlanScheduler)
    assert torch.equal(call(again, 4), expected)


@pytest.mark.parametrize("shared", ["plan", "pipeline"])
def test_eight_threads_give_the_serial_bits(shared: str) -> None:
    """The most repeated complaint about the peers: one pipeline, or one plan, in many threads."""
    made, call = text_to_image()
    peer = made.scheduler
    plan = unstir.plan("dpmpp-3m", unstir.load(made).process, nfe=8)

    def fresh() -> Any:
        pipe = text_to_image()[0]
        pipe.scheduler = PlanScheduler.from_plan(plan, peer)
        return pipe

    one = fresh()
    pipes = [one if shared == "pipeline" else fresh() for _ in range(8)]

    def work(i: int) -> Tensor:
        return call(pipes[i], 8, latents=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)))

    serial = [work(i) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        threaded = list(pool.map(work, range(8)))
    assert all(torch.equal(a, b) for a, b in zip(serial, threaded, strict=True))
    assert not torch.equal(serial[0], serial[1])
