"""PlanScheduler does what diffusers expects of every scheduler, and what each of its classes does."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

diffusers = pytest.importorskip("diffusers")

import unstir  # noqa: E402
from unstir.interop.diffusers import PlanScheduler  # noqa: E402

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
V = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **SD}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
WEIGHTS = 0.3 * torch.randn(8, 8, generator=torch.Generator().manual_seed(0))


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def quiet() -> None:
    diffusers.utils.logging.set_verbosity_error()


def network(x: Tensor, t: Any) -> Tensor:
    """Not linear in x, and different at every label."""
    phase = float(torch.as_tensor(t).flatten()[0]) / 300
    return (0.7 * (x.float() @ WEIGHTS).tanh() + 0.1 * torch.sin(torch.tensor(phase)) * x.float()).to(x.dtype)


def start(seed: int = 0) -> Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def loop(scheduler: Any, x: Tensor | None = None, first: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """What every pipeline does between its text encoder and its decoder."""
    x = (start() * getattr(scheduler, "init_noise_sigma", 1.0) if x is None else x).to(dtype)
    takes = "generator" in inspect.signature(scheduler.step).parameters
    options = {"generator": torch.Generator().manual_seed(5)} if takes else {}
    for t in scheduler.timesteps[first:]:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(seen, t), t, x, return_dict=False, **options)[0]
    return x


def run(scheduler: Any, n: int = 10, **options: Any) -> Tensor:
    scheduler.set_timesteps(n, **options)
    return loop(scheduler)


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / a.abs().max())


# -- the same as the peers ------------------------------------------------------------------------------------
PEERS = [
    ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, **SD}),
    ("DDIMScheduler", {}),  # clips, and keeps the noise estimate
    ("DDIMScheduler", {**V, "clip_sample": False}),
    ("DDIMScheduler", {"prediction_type": "sample", "thresholding": True, "sample_max_value": 1.5}),
    ("DDPMScheduler", {}),
    ("DDPMScheduler", {"variance_type": "fixed_large", "clip_sample": False, "beta_schedule": "squaredcos_cap_v2"}),
    ("EulerDiscreteScheduler", SD),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, **SD}),
    ("EulerDiscreteScheduler", {"use_exponential_sigmas": True, **SD}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1, **SD}),
    ("EulerDiscreteScheduler", V),
    (
        "EulerDiscreteScheduler",
        {
            "timestep_type": "continuous",
            "prediction_type": "v_prediction",
            "use_karras_sigmas": True,
            "sigma_min": 0.002,
            "sigma_max": 700.0,
            "timestep_spacing": "leading",
        },
    ),
    ("EulerAncestralDiscreteScheduler", SD),
    ("HeunDiscreteScheduler", SD),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True, **SD}),
    ("LMSDiscreteScheduler", {"use_karras_sigmas": True}),
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1, **SD}),
    ("DPMSolverMultistepScheduler", SD),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, **SD}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True, "solver_order": 3, **SD}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", **SD}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", **SD}),
    ("DPMSolverMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading", "solver_type": "heun", **SD}),
    ("DPMSolverMultistepScheduler", FLOW),
    ("UniPCMultistepScheduler", SD),
    ("UniPCMultistepScheduler", {"solver_order": 3, "timestep_spacing": "trailing", **SD}),
    ("UniPCMultistepScheduler", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", **SD}),
    ("UniPCMultistepScheduler", FLOW),
    ("DEISMultistepScheduler", SD),
    ("EDMEulerScheduler", {}),
    ("EDMDPMSolverMultistepScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1, "use_karras_sigmas": True}),
    ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    ("LCMScheduler", {"timestep_scaling": 1e4}),
    ("CogVideoXDDIMScheduler", V),
]


@pytest.mark.parametrize(("name", "options"), PEERS, ids=lambda v: v if isinstance(v, str) else ",".join(map(str, v)))
@pytest.mark.parametrize("n", [1, 10, 25])
@pytest.mark.filterwarnings("ignore")
def test_config_means_what_it_means_to_its_owner(name: str, options: dict[str, Any], n: int) -> None:
    theirs = getattr(diffusers, name)(**options)
    if n == 1 and (name.startswith(("PNDM", "LMS")) or options.get("shift_terminal") or "final_sigmas_type" in options):
        pytest.skip("the peer has no single step")
    a, ours = run(theirs, n), PlanScheduler.from_config(theirs, solver="config")
    b = run(ours, n)
    assert ours.timesteps.shape == theirs.timesteps.shape
    assert ours.timesteps.dtype == theirs.timesteps.dtype or name.startswith(("EDM", "LCM"))
    assert float((ours.timesteps.double() - theirs.timesteps.double()).abs().max()) < 1e-3
    # One step from σ̂ = 80 … 4096 costs the peers, who carry x/α in float32, four digits.
    assert gap(a, b) < (1e-3 if n == 1 else 3e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_dynamic_shift_needs_mu_and_agrees() -> None:
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    ours = PlanScheduler.from_config(theirs, solver="config")
    sigmas = [1.0, 0.75, 0.5, 0.25]
    theirs.set_timesteps(sigmas=sigmas, mu=0.8)
    ours.set_timesteps(sigmas=sigmas, mu=0.8)
    assert torch.allclose(ours.sigmas, theirs.sigmas, atol=1e-6)
    assert gap(loop(theirs), loop(ours)) < 1e-5
    with pytest.raises(ValueError, match="mu must be given"):
        ours.set_timesteps(4)


# -- what the test base of diffusers asks of every scheduler ------------------------------------------------
def plain(**options: Any) -> PlanScheduler:
    return PlanScheduler(**{"solver": "dpmpp-3m", **SD, **options})


def test_save_and_load_keep_the_config_and_the_steps(tmp_path: Path) -> None:
    for i, one in enumerate((plain(), plain(solver="heun", grid="auto"), PlanScheduler.from_config(diffusers.DDIMScheduler()))):
        one.save_pretrained(tmp_path / str(i))
        twin = PlanScheduler.from_pretrained(str(tmp_path / str(i)))
        mine = {k: v for k, v in one.config.items() if not k.startswith("_")}
        assert {k: v for k, v in twin.config.items() if not k.startswith("_")} == mine
        assert torch.equal(run(one), run(twin))


def test_the_owner_of_a_config_is_remembered_and_may_be_changed(tmp_path: Path) -> None:
    one = PlanScheduler.from_config(diffusers.EulerDiscreteScheduler(**SD).config)
    assert one.read["like"] == "EulerDiscreteScheduler"
    assert one.read["timestep_spacing"] == "linspace"  # a default of Euler, ours is trailing
    one.save_pretrained(tmp_path)
    again = PlanScheduler.from_pretrained(str(tmp_path))
    assert PlanScheduler.from_config(again.config, timestep_spacing="leading").read["timestep_spacing"] == "leading"
    assert PlanScheduler.from_config(again.config, like="HeunDiscreteScheduler").read["like"] == "HeunDiscreteScheduler"


def test_configs_travel_through_every_compatible_class() -> None:
    one = plain()
    assert len(one.compatibles) > 10
    for cls in one.compatibles:
        try:
            other = cls.from_config(one.config)
        except ImportError:  # a class with a requirement of its own
            continue
        back = PlanScheduler.from_config(other.config)
        assert {k: back.config[k] for k in one.config if not k.startswith("_")} == {
            k: v for k, v in one.config.items() if not k.startswith("_")
        }


@pytest.mark.parametrize("name", [n for n in dir(diffusers) if n.endswith("Scheduler")])
@pytest.mark.filterwarnings("ignore")
def test_every_scheduler_of_diffusers_is_read_or_refused_with_a_reason(name: str) -> None:
    try:
        other = getattr(diffusers, name)()
    except (TypeError, ImportError):
        pytest.skip("needs arguments")
    if not hasattr(other, "config"):
        pytest.skip("no config")
    try:
        ours = PlanScheduler.from_config(other.config, solver="unipc")
        ours.set_timesteps(4, **({"mu": 1.0} if ours.read["use_dynamic_shifting"] else {}))
    except ValueError as error:
        assert len(str(error)) > 20  # noqa: PT017
    else:
        assert len(ours.timesteps) == 4
        assert bool(torch.isfinite(loop(ours)).all())


def test_unknown_keys_are_kept() -> None:
    assert PlanScheduler.from_config({**diffusers.DDIMScheduler().config, "shade": "green"}).config["shade"] == "green"


def test_step_keeps_the_shape_and_both_forms_of_output_agree() -> None:
    for solver in ("ddim", "unipc", "ancestral", "heun", "auto"):
        one, x = plain(solver=solver), start()
        one.set_timesteps(10)
        t0, t1 = one.timesteps[:2]
        named = one.step(0.1 * x, t0, x, generator=torch.Generator().manual_seed(0))
        assert named.prev_sample.shape == one.step(0.1 * x, t1, x).prev_sample.shape == x.shape
        one.set_timesteps(10)
        pair = one.step(0.1 * x, t0, x, generator=torch.Generator().manual_seed(0), return_dict=False)
        assert torch.equal(pair[0], named.prev_sample)
        assert torch.equal(pair[1], named.pred_original_sample)


def test_generators_make_runs_repeat_and_seeds_differ() -> None:
    one = plain(solver="ancestral")
    assert torch.equal(run(one), run(one))
    one.set_timesteps(2)
    x, each = start(), [torch.Generator().manual_seed(i) for i in (3, 4)]
    out = one.step(0.1 * x, one.timesteps[0], x, generator=each).prev_sample
    one.set_timesteps(2)
    alone = one.step(0.1 * x[:1], one.timesteps[0], x[:1], generator=torch.Generator().manual_seed(3)).prev_sample
    assert torch.equal(out[:1], alone)  # a generator per sample: no sample depends on its batch


@pytest.mark.parametrize("n", [1, 2, 3, 5, 10, 50, 100, 999, 1000])
@pytest.mark.parametrize("solver", ["dpmpp-2m", "auto", "heun", "plms", "sa-solver"])
def test_any_number_of_steps(solver: str, n: int) -> None:
    if n > 50 and solver != "dpmpp-2m":
        pytest.skip("one solver is enough for the long ones")
    one = plain(solver=solver)
    one.set_timesteps(n)
    assert len(one.timesteps) == one.num_inference_steps == len(one.plan) == n
    assert bool((one.timesteps.diff() <= 0).all())
    if n <= 50:
        assert bool(torch.isfinite(loop(one)).all())


@pytest.mark.parametrize("levels", [25, 50, 100, 999, 1000])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_any_number_of_training_steps_even_with_repeated_labels(levels: int, spacing: str) -> None:
    one = plain(num_train_timesteps=levels, timestep_spacing=spacing)
    n = 25 if spacing != "leading" or levels > 25 else 24
    one.set_timesteps(n)
    assert len(one.timesteps) == n
    assert bool(torch.isfinite(loop(one)).all())


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp"])
def test_beta_schedules_are_those_of_the_peers(schedule: str) -> None:
    owner = diffusers.HeunDiscreteScheduler if schedule == "exp" else diffusers.DDPMScheduler
    theirs = owner(beta_schedule=schedule, beta_start=0.001, beta_end=0.02)
    ours = PlanScheduler(beta_schedule=schedule, beta_start=0.001, beta_end=0.02)
    assert torch.allclose(ours.betas, theirs.betas.float(), rtol=1e-6, atol=0)
    run(ours, 5)


@pytest.mark.parametrize("betas", [(0.01, 0.2), (0.1, 2.0)])
def test_schedules_that_destroy_everything_stay_finite(betas: tuple[float, float]) -> None:
    one = plain(beta_schedule="linear", beta_start=betas[0], beta_end=betas[1], prediction_type="v_prediction")
    assert bool((one.alphas_cumprod.diff() < 0).all())
    assert bool(torch.isfinite(run(one)).all())


def test_trained_betas_come_back(tmp_path: Path) -> None:
    one = plain(trained_betas=[0.1, 0.3])
    one.save_pretrained(tmp_path)
    assert PlanScheduler.from_pretrained(str(tmp_path)).betas.tolist() == one.betas.tolist()


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow_prediction"])
def test_a_perfect_network_of_every_kind_gives_the_data(prediction: str) -> None:
    """Oracle: a network that knows x0 exactly; every prediction type must lead to it, whatever the solver."""
    x0 = start(1)
    for solver in ("ddim", "dpmpp-3m", "heun", "unipc", "ancestral", "auto"):
        one = PlanScheduler(prediction_type=prediction, solver=solver, **({} if prediction == "flow_prediction" else SD))
        one.set_timesteps(6)
        x, process = start(), one.plan.process
        for i, t in enumerate(one.timesteps):
            time = torch.tensor(one._run.schedule.times[i])
            a, s = float(process.alpha(time)), float(process.sigma(time))
            z = (x - a * x0) / s
            raw = {"epsilon": z, "sample": x0, "v_prediction": a * z - s * x0, "flow_prediction": z - x0}[prediction]
            x = one.step(raw, t, x).prev_sample
        assert torch.allclose(x, x0, atol=2e-4)


def test_custom_timesteps_and_sigmas_reproduce_the_run_they_came_from() -> None:
    for options in ({}, {"timestep_spacing": "linspace"}, {"final_sigmas_type": "sigma_min"}):
        one, twin = plain(**options), plain(**options)
        expected = run(one)
        twin.set_timesteps(timesteps=one.timesteps)
        assert gap(expected, loop(twin)) < 1e-6
        twin.set_timesteps(sigmas=one.sigmas)
        assert twin.num_inference_steps == 10
        assert gap(expected, loop(twin)) < 1e-5  # float32 sigmas


def test_align_your_steps_sigmas_run_with_every_solver() -> None:
    from diffusers.schedulers import AysSchedules

    for solver in ("ddim", "dpmpp-3m", "unipc", "auto", "lms", "sa-solver"):
        one = plain(solver=solver)
        one.set_timesteps(sigmas=AysSchedules["StableDiffusionSigmas"])
        assert len(one.timesteps) == 10
        assert torch.allclose(one.sigmas, torch.tensor(AysSchedules["StableDiffusionSigmas"]), rtol=1e-3)
        assert bool(torch.isfinite(loop(one)).all())


def test_add_noise_and_velocity_are_the_process() -> None:
    theirs = diffusers.DDPMScheduler(**SD)
    ours, x, z = PlanScheduler.from_config(theirs), start(1), start(2)
    labels = torch.tensor([3, 700])
    for _ in range(2):  # before and after set_timesteps: training labels stay what they are
        assert torch.allclose(ours.add_noise(x, z, labels), theirs.add_noise(x, z, labels), atol=1e-6)
        assert torch.allclose(ours.get_velocity(x, z, labels), theirs.get_velocity(x, z, labels), atol=1e-6)
        ours.set_timesteps(7)
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = PlanScheduler.from_config(flow)
    flow.set_timesteps(6)
    ours.set_timesteps(6)
    t = flow.timesteps[2:3]
    assert torch.allclose(ours.scale_noise(x, ours.timesteps[2:3], z), flow.scale_noise(x, t, z), atol=1e-6)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp-3m", "unipc", "heun", "etd-4", "auto", "plms"])
@pytest.mark.parametrize("first", [0, 1, 3, 4, 7])
def test_a_run_may_begin_anywhere(solver: str, first: int) -> None:
    """With a network that knows x0, an image-to-image run from any row arrives at x0."""
    one, x0, z = plain(solver=solver), start(1), start(2)
    one.set_timesteps(8)
    one.set_begin_index(first)
    assert one.begin_index == first
    x = one.add_noise(x0, z, one.timesteps[first : first + 1])
    for i, t in enumerate(one.timesteps[first:], first):
        time = one._run.schedule.times[i]
        a, s = (float(f(time)) for f in (one.plan.process.alpha, one.plan.process.sigma))
        x = one.step((x - a * x0) / s, t, x).prev_sample
        assert one.step_index == i + 1
    assert torch.allclose(x, x0, atol=1e-4)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DDIMScheduler"])
def test_a_run_that_begins_late_is_the_peers(name: str) -> None:
    theirs = getattr(diffusers, name)(**SD, **({"clip_sample": False} if name == "DDIMScheduler" else {}))
    ours = PlanScheduler.from_config(theirs, solver="config")
    out = []
    for one in (theirs, ours):
        one.set_timesteps(12)
        if hasattr(one, "set_begin_index"):
            one.set_begin_index(5)
        x = one.add_noise(start(1), start(2), one.timesteps[5:6])
        out.append(loop(one, x, first=5))
    assert gap(*out) < 1e-5


def test_repeated_labels_are_addressed_by_number() -> None:
    one = plain(solver="heun", grid="uniform")
    one.set_timesteps(9)
    assert len(one.timesteps.unique()) < 9
    expected = loop(one)
    one.set_timesteps(9)
    one.set_begin_index(0)
    assert torch.equal(loop(one), expected)
    assert one.step_index == 9


def test_half_precision_in_and_out_and_a_bfloat16_network_stays_close() -> None:
    for dtype, near in ((torch.float16, 5e-3), (torch.bfloat16, 4e-2)):
        one = plain()
        one.set_timesteps(10)
        out = loop(one, dtype=dtype)
        assert out.dtype == dtype
        assert gap(run(one), out.float()) < near


def test_two_of_a_kind_of_channels_are_a_learned_variance() -> None:
    one, x = plain(), start()
    one.set_timesteps(4)
    a = one.step(torch.cat([0.1 * x, x], 1), one.timesteps[0], x).prev_sample
    one.set_timesteps(4)
    assert torch.equal(a, one.step(0.1 * x, one.timesteps[0], x).prev_sample)


def test_attributes_like_every_scheduler() -> None:
    one = plain()
    assert one.order == 1
    assert len(one) == 1000
    assert one.init_noise_sigma == 1
    assert one.scale_model_input(start(), 0.0).shape == start().shape
    assert one.timesteps[0] == 999
    assert one.step_index is None
    with pytest.raises(AttributeError, match="'PlanScheduler' object has no attribute 'does_not_exist'"):
        _ = one.does_not_exist


# -- plans --------------------------------------------------------------------------------------------------
def test_a_plan_from_a_file_runs_and_travels_with_the_config(tmp_path: Path) -> None:
    peer = diffusers.DDIMScheduler(**SD, clip_sample=False)
    process = PlanScheduler.from_config(peer).convention.process
    plan = unstir.plan("unipc", process, nfe=5)
    plan.save(tmp_path / "plan.json")
    one = PlanScheduler.from_plan(tmp_path / "plan.json", peer.config)
    expected = run(one, 5)

    def model(x: Tensor, t: float) -> Tensor:
        t64 = torch.tensor(t)
        a, s = float(process.alpha(t64)), float(process.sigma(t64))
        return (x - s * network(x, 1000 * t - 1)) / a

    assert gap(unstir.sample(model, plan, x=start()), expected) < 1e-5
    one.save_pretrained(tmp_path / "s")
    assert torch.equal(run(PlanScheduler.from_pretrained(str(tmp_path / "s")), 5), expected)
    with pytest.raises(ValueError, match="pass num_inference_steps=5"):
        one.set_timesteps(6)
    with pytest.raises(ValueError, match="the plan was made for"):
        PlanScheduler.from_plan(plan, diffusers.DDIMScheduler().config)


def test_a_plan_without_a_recipe_begins_anywhere_too() -> None:
    peer, x0, z = diffusers.DDIMScheduler(**SD, clip_sample=False), start(1), start(2)
    plan = unstir.plan("unipc", PlanScheduler.from_config(peer).convention.process, nfe=6).map_rows(lambda i, row: row)
    one = PlanScheduler.from_plan(plan, peer)
    one.set_timesteps(6)
    one.set_begin_index(3)
    x = one.add_noise(x0, z, one.timesteps[3:4])
    for i, t in enumerate(one.timesteps[3:], 3):
        time = one._run.schedule.times[i]
        a, s = (float(f(time)) for f in (one.plan.process.alpha, one.plan.process.sigma))
        x = one.step((x - a * x0) / s, t, x).prev_sample
    assert torch.allclose(x, x0, atol=1e-4)


def test_a_plan_of_a_shifted_flow_runs_on_the_flow() -> None:
    peer = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    plan = unstir.plan("auto", unstir.process.shifted(unstir.process.Flow(), 3.0), nfe=5)
    one = PlanScheduler.from_plan(plan, peer)
    run(one, 5)
    assert torch.allclose(one.timesteps, 1000 * one.sigmas[:-1])


# -- threads ----------------------------------------------------------------------------------------------
def in_threads(work: Callable[[int], Tensor]) -> list[Tensor]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(work, range(8)))


@pytest.mark.parametrize("shared", ["plan", "scheduler"])
def test_eight_threads_give_the_serial_bits(shared: str) -> None:
    peer = diffusers.DDIMScheduler(**SD, clip_sample=False)
    process = PlanScheduler.from_config(peer).convention.process
    plan = unstir.plan("dpmpp-3m", process, nfe=12)
    one = PlanScheduler.from_plan(plan, peer.config)

    def work(seed: int) -> Tensor:
        scheduler = one if shared == "scheduler" else PlanScheduler.from_plan(plan, peer.config)
        scheduler.set_timesteps(12)
        return loop(scheduler, start(seed))

    serial = [work(seed) for seed in range(8)]
    assert all(torch.equal(a, b) for a, b in zip(serial, in_threads(work), strict=True))


def test_a_schedule_made_in_one_thread_is_followed_in_another() -> None:
    one = plain()
    expected = run(one)
    assert all(torch.equal(out, expected) for out in in_threads(lambda i: loop(one)))


def test_copies_and_pickles() -> None:
    one = plain()
    one.set_timesteps(6)
    x = one.step(0.1 * start(), one.timesteps[0], start()).prev_sample
    twin = copy.deepcopy(one)  # in mid-run
    a, b = (s.step(0.1 * x, s.timesteps[1], x).prev_sample for s in (one, twin))
    assert torch.equal(a, b)
    assert twin.step_index == one.step_index == 2
    assert torch.equal(run(pickle.loads(pickle.dumps(one))), run(one))


# -- wrong input ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: plain(solver="dpmp-3m").set_timesteps(4), "did you mean"),
        (lambda: plain(grid="nodes").set_timesteps(4), "unknown grid 'nodes'"),
        (lambda: plain().set_timesteps(0), "must be at least 1"),
        (lambda: plain().set_timesteps(), "give num_inference_steps="),
        (lambda: plain().set_timesteps(2, timesteps=[900, 100]), "give one of"),
        (lambda: plain().set_timesteps(timesteps=[100, 900]), "must decrease"),
        (lambda: plain().set_timesteps(timesteps=[1200, 900]), "must lie in 0 … 999"),
        (lambda: plain(use_karras_sigmas=True).set_timesteps(timesteps=[900, 100]), "use_karras_sigmas=True"),
        (lambda: plain(use_karras_sigmas=True, use_beta_sigmas=True).set_timesteps(4), "only one of"),
        (lambda: plain(prediction_type="noise"), "prediction_type='noise' must be one of"),
        (lambda: plain(beta_schedule="cosine"), "beta_schedule='cosine' must be"),
        (lambda: plain(timestep_spacing="even").set_timesteps(4), "timestep_spacing='even' must be"),
        (lambda: plain(solver="config").set_timesteps(4), "does not say whose it is"),
        (lambda: plain(solver_options={"eta": 1.0}).set_timesteps(4), None),
        (lambda: plain(solver_options={"size": 1.0}).set_timesteps(4), "has no option 'size'"),
    ],
)
def test_wrong_options_say_what_is_right(make: Callable[[], Any], told: str | None) -> None:
    if told is None:
        make()
        return
    with pytest.raises(ValueError, match=told):
        make()


def test_step_refuses_what_a_plan_cannot_heed() -> None:
    one, x = plain(), start()
    one.set_timesteps(4)
    one.step(x, one.timesteps[0], x, eta=0.0)
    with pytest.raises(ValueError, match="solver_options"):
        one.step(x, one.timesteps[1], x, eta=0.5)
    with pytest.raises(TypeError, match="no option 'temperature'"):
        one.step(x, one.timesteps[1], x, temperature=1.0)
    with pytest.raises(ValueError, match="they must agree"):
        one.step(x[:, :1], one.timesteps[1], x)


def test_an_ambiguous_config_asks_for_the_scheduler() -> None:
    peer = diffusers.KDPM2DiscreteScheduler()
    with pytest.raises(ValueError, match="pass the scheduler itself"):
        PlanScheduler.from_config(peer.config, solver="config").set_timesteps(4)
    PlanScheduler.from_config(peer, solver="config").set_timesteps(4)
    PlanScheduler.from_config(peer.config, solver="dpm2").set_timesteps(4)


def test_noise_prediction_at_zero_snr_is_kept_off_zero_or_refused() -> None:
    one = plain(rescale_betas_zero_snr=True)
    assert 0 < float(one.alphas_cumprod[-1]) < 1e-7
    assert bool(torch.isfinite(run(one)).all())
    exact = unstir.process.Table([*one.alphas_cumprod[:-1].double().tolist(), 0.0])
    heard = dataclasses.replace(one.convention, process=exact)
    with pytest.raises(ValueError, match="says nothing about the data where α = 0"):
        heard.decode(torch.tensor([1.0]))


def test_the_core_does_not_import_diffusers() -> None:
    code = "import sys, unstir, unstir.interop; assert not any(m.split('.')[0] == 'diffusers' for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_diffusers_the_error_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "try: from unstir.interop.diffusers import PlanScheduler\n"
        "except ImportError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert 'pip install "unstir[diffusers]"' in out


# -- needs of users that only a scheduler shows (docs/needs.md) ---------------------------------------------------
@pytest.mark.parametrize("solver", ["dpmpp-3m", "unipc", "heun", "auto"])
def test_a_step_never_waits_for_the_device(solver: str) -> None:
    """On the meta device every .item(), bool() and copy to the host is an error."""
    one, x = plain(solver=solver), torch.empty(2, 4, 8, 8, device="meta")
    one.set_timesteps(8)
    one.set_begin_index(0)
    for t in one.timesteps:
        x = one.step(one.scale_model_input(x, t), t, x, return_dict=False)[0]
    assert x.device.type == "meta"


def test_one_schedule_serves_states_of_any_shape() -> None:
    one = plain(solver="ancestral")
    for shape in ((1, 4, 8, 8), (3, 2, 5), (2, 1, 2, 8, 8)):
        one.set_timesteps(4)
        x = torch.randn(shape)
        for t in one.timesteps:
            x = one.step(0.1 * x, t, x).prev_sample
        assert x.shape == shape
