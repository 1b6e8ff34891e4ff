"""The table of systems, in alphabetical order of their ids. Data only: the files are imported when one is run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class System:
    """A published method: its id on the command line, its name, its paper's title and year, one line on what it does."""

    id: str
    title: str
    paper: str
    summary: str

    @property
    def module(self) -> str:
        """The file that holds it: `unstir.systems.some_name` for the id `some-name`."""
        return f"unstir.systems.{self.id.replace('-', '_')}"


_ROWS: tuple[System, ...] = (
    # System("some-name", "Some Name", "Title of the Paper, 2024", "what it does, in at most 60 letters"),
    System(
        "bdia",
        "BDIA",
        "Exact Diffusion Inversion via Bi-directional Integration Approximation, 2024",
        "picture → latent → picture without error, one call a step",
    ),
    System(
        "deis",
        "DEIS",
        "Fast Sampling of Diffusion Models with Exponential Integrator, 2023",
        "extrapolates the noise in t or σ̂: good samples in 10 calls",
    ),
    System(
        "dmcmc",
        "Denoising MCMC",
        "Denoising MCMC for Accelerating Diffusion-Based Generative Models, 2023",
        "a chain near the data: each further sample in 10 calls",
    ),
    System(
        "dpm-solver",
        "DPM-Solver",
        "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps, 2022",
        "one-step solvers of order 1, 2, 3 in log-SNR time",
    ),
    System(
        "dpm-solver-pp",
        "DPM-Solver++",
        "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models, 2022",
        "data-form solvers, stable at strong guidance; thresholding",
    ),
    System(
        "dpm-solver-v3",
        "DPM-Solver-v3",
        "DPM-Solver-v3: Improved Diffusion ODE Solver with Empirical Model Statistics, 2023",
        "a solver fitted to measured statistics of one model",
    ),
    System(
        "ghvb",
        "Generalised heavy ball",
        "Diffusion Sampling with Momentum for Mitigating Divergence Artifacts, 2024",
        "momentum that keeps high-order solvers stable",
    ),
    System(
        "ts-dpm",
        "Time-shift sampler",
        "Alleviating Exposure Bias in Diffusion Models through Sampling with Shifted Time Steps, 2024",
        "tells the network the noise level a drifted state really has",
    ),
    System(
        "tune",
        "Learned plans",
        "Learned plans, 2026",
        "our own: the table itself is fitted to one model and budget",
    ),
)

SYSTEMS: dict[str, System] = {system.id: system for system in _ROWS}
