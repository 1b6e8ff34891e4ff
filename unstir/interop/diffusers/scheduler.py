"""`PlanScheduler`: a plan as a scheduler of diffusers, for any of its pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput
from torch import Tensor

from ..._files import read_json
from ...plan.plan import Plan
from ...plan.text import from_dict, to_dict
from .convention import alphas_cumprod_of, betas_of, convention
from .limits import limit_of
from .peers import peer_of
from .running import Run, Running, Runs
from .schedule import Schedule, keeps_noise, make_schedule
from .turn import take_turn


@dataclass
class PlanSchedulerOutput(SchedulerOutput):
    """prev_sample: the state after the row. pred_original_sample: the data prediction D."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class PlanScheduler(Running, SchedulerMixin, ConfigMixin):
    """Runs a plan inside a pipeline: `pipe.scheduler = PlanScheduler.from_config(pipe.scheduler, solver="dpmpp-3m")`.

    solver: a name of `unstir.solvers.SOLVERS`, or "config": what the scheduler whose config this is does.
    solver_options: of that solver, such as {"eta": 0.7}.
    grid: "config", the nodes that the config asks for; "auto" or another name of `unstir.solvers.GRIDS`.
    plan: a finished plan as a dictionary (`from_plan` writes it); it replaces solver and grid.

    The other options are those of diffusers' schedulers and mean what they mean there. One iteration of
    the pipeline is one row with a call, so `order` is 1 and num_inference_steps counts network calls
    (with solver="config" it counts the peer's steps). Rows are addressed by number. The states are those
    of the process, x = α x0 + σ z; `scale_model_input` changes nothing except for EDM's networks.

    A plan holds no run state, and the state of a run belongs to the thread that makes it: one scheduler,
    like one plan, may serve any number of threads.
    """

    _compatibles = [kind.name for kind in KarrasDiffusionSchedulers]  # noqa: RUF012  (diffusers reads it from the class)
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: np.ndarray | list[float] | None = None,
        prediction_type: str = "epsilon",
        solver: str = "auto",
        solver_options: dict[str, Any] | None = None,
        grid: str = "config",
        plan: dict[str, Any] | None = None,
        timestep_spacing: str = "trailing",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
        snr_shift_scale: float | None = None,
        set_alpha_to_one: bool = True,
        final_sigmas_type: str = "zero",
        lambda_min_clipped: float = -float("inf"),
        timestep_type: str = "discrete",
        interpolation_type: str = "linear",
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_beta_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma_data: float | None = None,
        sigma_schedule: str = "karras",
        rho: float = 7.0,
        use_flow_sigmas: bool = False,
        flow_shift: float = 1.0,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        base_image_seq_len: int = 256,
        max_image_seq_len: int = 4096,
        shift_terminal: float | None = None,
        invert_sigmas: bool = False,
        stochastic_sampling: bool = False,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        variance_type: str | None = None,
        algorithm_type: str | None = None,
        solver_order: int = 2,
        solver_type: str | None = None,
        lower_order_final: bool = True,
        euler_at_final: bool = False,
        predict_x0: bool = True,
        predictor_order: int = 2,
        corrector_order: int = 2,
        skip_prk_steps: bool = False,
        original_inference_steps: int = 50,
    ) -> None:
        self._plan: Plan | None = None
        self._runs, self._latest = Runs(), None
        self._read()

    def _read(self) -> None:
        """Take what does not change from run to run out of the config; one that we cannot express is refused now."""
        self.convention = convention(self.read)
        self.betas = betas_of(self.read)
        self.alphas_cumprod = alphas_cumprod_of(self.read)
        self.alphas = 1 - self.betas
        self._blank = torch.arange(self.config.num_train_timesteps - 1, -1, -1)

    @property
    def read(self) -> dict[str, Any]:
        """The config as it is understood: with what its first owner's class implies."""
        return {**self.config, **(self.config.get("peer") or {})}

    # -- making one ----------------------------------------------------------------------------------------
    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A `PlanScheduler` with another scheduler's config.

        Give the config, or the scheduler itself, which always says whose it is.
        """
        peer = {}
        if isinstance(config, SchedulerMixin):
            kwargs = {"like": type(config).__name__, **kwargs} if not isinstance(config, cls) else kwargs
            config = config.config  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(config, Mapping):
            peer = peer_of(config, kwargs)
            config = {key: value for key, value in config.items() if key != "peer"}
        kwargs.pop("like", None)
        made = super().from_config(config, return_unused_kwargs=True, **kwargs)
        out, unused = made  # pyright: ignore[reportGeneralTypeIssues]
        if peer:
            out.register_to_config(peer=peer)
            out._read()
        return (out, unused) if return_unused_kwargs else out

    @classmethod
    def from_plan(cls, plan: Plan | str | Path, config: Any = None, **kwargs: Any) -> PlanScheduler:
        """A scheduler that runs this plan (or the plan in this file) for a pipeline whose scheduler or its config is given.

        config: by default that of the pipeline in whose folder the file lies, as `unstir tune FOLDER` writes it.
        The plan's process must be that of the config (`unstir.load(pipeline).process`).
        """
        table = plan if isinstance(plan, Plan) else Plan.load(plan)
        config = config_beside(plan) if config is None else config
        out = cls.from_config(config, plan=to_dict(table), **kwargs)
        out._plan = table
        make_schedule(out.read, None, plan=table)
        return out

    @property
    def plan(self) -> Plan | None:
        """The plan of this thread's latest `set_timesteps`, or the given one."""
        run = self._run
        return self._given if run.schedule is None else run.schedule.plan

    @property
    def _given(self) -> Plan | None:
        if self._plan is None and self.config.plan is not None:
            self._plan = from_dict(dict(self.config.plan), "the config's plan")
        return self._plan

    # -- the run -------------------------------------------------------------------------------------------
    @property
    def init_noise_sigma(self) -> float | Tensor:
        """Standard deviation of the first state: 1, or the process's own where the peer starts at its σ_max."""
        kind, spacing = self.convention.family, self.read["timestep_spacing"]
        if kind == "edm":
            return (float(self.read["sigma_max"] or 80.0) ** 2 + 1.0) ** 0.5
        schedule = self._run.schedule
        if kind == "sigmas" and spacing in ("linspace", "trailing") and schedule is not None:
            return schedule.plan.process.sigma(schedule.times[0]).float()
        return 1.0

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Compile the plan of a run.

        num_inference_steps: network calls.   timesteps, sigmas: the nodes instead, as labels of the
        network or as noise levels (σ/α, or σ of a flow before its shift); the end is added unless the
        last sigma is 0.   mu: of a dynamic shift.
        """
        flow, given = self.convention.family == "flow", timesteps if timesteps is not None else sigmas
        if not flow and sum(v is not None for v in (num_inference_steps, timesteps, sigmas)) > 1:
            raise ValueError("give one of num_inference_steps=, timesteps= and sigmas=, which are ways to say the same")
        if flow and any(v is not None and len(v) != (num_inference_steps or len(v)) for v in (timesteps, sigmas)):
            raise ValueError(f"num_inference_steps={num_inference_steps}, but timesteps= or sigmas= have another length")
        if num_inference_steps is None and given is None and self._given is None:
            raise ValueError("give num_inference_steps=, timesteps= or sigmas=")
        if num_inference_steps is not None and (type(num_inference_steps) is bool or num_inference_steps < 1):
            raise ValueError(f"num_inference_steps={num_inference_steps} must be at least 1")
        labels, levels = (None if v is None else [float(x) for x in v] for v in (timesteps, sigmas))
        if levels is not None and labels is not None:  # of a flow: the labels are told, the sigmas are the nodes
            made = make_schedule(self.read, num_inference_steps, None, levels, mu, self._given)
            made = Schedule(made.plan, labels, made.convention, made.recipe)
        else:
            n = None if num_inference_steps is None else int(num_inference_steps)
            made = make_schedule(self.read, n, labels, levels, mu, self._given)
        integers = made.convention.family in ("labels", "multi") or self.read["use_flow_sigmas"]
        whole = integers and all(x.is_integer() for x in made.labels)
        told = torch.tensor(made.labels, dtype=torch.int64 if whole else torch.float32, device=device)
        made.turns  # noqa: B018  (worked out here, not in the first step)
        self._latest = (made, told, limit_of(self.read), keeps_noise(self.read))
        self._runs.run = Run(*self._latest)

    def scale_model_input(self, sample: Tensor, timestep: Any = None, **ignored: Any) -> Tensor:
        """The network's input: the sample itself, or c_in · sample for EDM's networks. Peers take more and ignore it."""
        run = self._run
        if run.schedule is None or run.schedule.turns[0].scale is None:
            return sample
        if run.index is None:
            run = self._start(timestep)
        scale = run.turns[(run.index or 0) - run.first].scale
        return sample * scale if scale is not None else sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        **options: Any,
    ) -> Any:
        """One row: D from the raw output, F remembered, the state moved on.

        generator: of the row's noise; variance_noise: that noise itself. The arithmetic is in float32
        (float64 for a float64 sample); prev_sample has the dtype of model_output.
        """
        if options:
            _refuse(options)
        run = self._run
        if run.index is None or run.index - run.first >= len(run.turns):
            run = self._start(timestep)
        x, data = take_turn(run, model_output, sample, generator, variance_noise)
        return PlanSchedulerOutput(prev_sample=x, pred_original_sample=data) if return_dict else (x, data)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def config_beside(plan: Any) -> dict[str, Any]:
    """The config of the scheduler in the pipeline's folder that a plan's file lies in."""
    file = None if isinstance(plan, Plan) else Path(plan).parent / "scheduler" / "scheduler_config.json"
    if file is None or not file.is_file():
        raise ValueError(f"plan={plan!r} does not lie in a pipeline's folder; give config=, the pipeline's scheduler")
    return read_json(file)


def _refuse(options: Mapping[str, Any]) -> None:
    """Options of the peers' step: those that ask for nothing pass."""
    for key, value in options.items():
        if key not in ("eta", "use_clipped_model_output", "s_churn", "s_tmin", "s_tmax", "s_noise", "per_token_timesteps"):
            raise TypeError(f"step has no option {key!r}")
        if value not in (None, False, 0.0) and key in ("eta", "use_clipped_model_output", "s_churn", "per_token_timesteps"):
            raise ValueError(f"{key}={value!r} has no effect on a plan: give solver_options (such as eta) to the scheduler")
