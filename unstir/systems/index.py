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
        "autodiffusion",
        "AutoDiffusion",
        "AutoDiffusion: Training-Free Optimization of Time Steps and Architectures for Automated Diffusion Model "
        "Acceleration, 2023",
        "time steps and network blocks, searched together",
    ),
    System(
        "bdia",
        "BDIA",
        "Exact Diffusion Inversion via Bi-directional Integration Approximation, 2024",
        "picture → latent → picture without error, one call a step",
    ),
    System(
        "conprediff",
        "ConPreDiff",
        "Improving Diffusion-Based Image Synthesis with Context Prediction, 2023",
        "points that foretell what surrounds them, in training only",
    ),
    System(
        "cow",
        "Cyclic one-way diffusion",
        "Diffusion in Diffusion: Cyclic One-Way Diffusion for Text-Vision-Conditioned Generation, 2024",
        "one region survives, all the rest grows to suit it",
    ),
    System(
        "cyclediffusion",
        "CycleDiffusion",
        "Unifying Diffusion Models' Latent Space, with Applications to CycleDiffusion and Guidance, 2022",
        "pictures as the noises of a sampler; edits and translation",
    ),
    System(
        "dds2m",
        "DDS2M",
        "DDS2M: Self-Supervised Denoising Diffusion Spatio-Spectral Model for Hyperspectral Image Restoration, 2023",
        "restores one hyperspectral cube, learning from it alone",
    ),
    System(
        "deis",
        "DEIS",
        "Fast Sampling of Diffusion Models with Exponential Integrator, 2023",
        "extrapolates the noise in t or σ̂: good samples in 10 calls",
    ),
    System(
        "difface",
        "DifFace",
        "DifFace: Blind Face Restoration with Diffused Error Contraction, 2024",
        "restore with anything, add noise, let a model finish",
    ),
    System(
        "diffusion-mbir",
        "DiffusionMBIR",
        "Solving 3D Inverse Problems using Pre-trained 2D Diffusion Models, 2023",
        "volumes from few views, with a model of single slices",
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
        "ebdm",
        "EBDM",
        "EBDM: Exemplar-guided Image Translation with Brownian-bridge Diffusion Models, 2024",
        "structure map to photograph, in the manner of one example",
    ),
    System(
        "fk-steering",
        "Feynman–Kac steering",
        "A General Framework for Inference-time Scaling and Steering of Diffusion Models, 2025",
        "particles weighed and resampled by any reward",
    ),
    System(
        "flowchef",
        "FlowChef",
        "Steering Rectified Flow Models in the Vector Field for Controlled Image Generation, 2025",
        "restores and edits with a flow, no gradient of the network",
    ),
    System(
        "forward-models",
        "Diffusion with forward models",
        "Diffusion with Forward Models: Solving Stochastic Inverse Problems Without Direct Supervision, 2023",
        "samples what was only ever measured, from its measurements",
    ),
    System(
        "ghvb",
        "Generalised heavy ball",
        "Diffusion Sampling with Momentum for Mitigating Divergence Artifacts, 2024",
        "momentum that keeps high-order solvers stable",
    ),
    System(
        "ldm",
        "Latent diffusion",
        "High-Resolution Image Synthesis with Latent Diffusion Models, 2022",
        "compress once, then diffuse small latents, many times faster",
    ),
    System(
        "mrs",
        "MR Sampler",
        "MRS: A Fast Sampler for Mean Reverting Diffusion based on ODE and SDE Solvers, 2025",
        "mean-reverting restorers in 10 calls, by ordinary solvers",
    ),
    System(
        "mt-diffusion",
        "MT-Diffusion",
        "Diffusion Models for Multi-Task Generative Modeling, 2024",
        "pictures and labels from one network, either given the other",
    ),
    System(
        "optimal-bc-sr",
        "Optimal boundary conditions",
        "Solving Diffusion ODEs with Optimal Boundary Conditions for Better Image Super-Resolution, 2024",
        "one searched start serves every later input",
    ),
    System(
        "overview-guided",
        "Reward-directed diffusion",
        "An Overview of Diffusion Models: Applications, Guided Generation, Statistical Rates and Optimization, 2024",
        "designs with a high reward, and when to distrust them",
    ),
    System(
        "pfgmpp",
        "PFGM++",
        "PFGM++: Unlocking the Potential of Physics-Inspired Generative Models, 2023",
        "heavy-tailed noise, a dial from robust to diffusion",
    ),
    System(
        "rddm",
        "RDDM",
        "Residual Denoising Diffusion Models, 2024",
        "restores by removing a residual and noise, in 2 to 5 calls",
    ),
    System(
        "red-diff",
        "RED-diff",
        "A Variational Perspective on Solving Inverse Problems with Diffusion Models, 2024",
        "one reconstruction by optimisation, network never derived",
    ),
    System(
        "resshift",
        "ResShift",
        "ResShift: Efficient Diffusion Model for Image Super-Resolution by Residual Shifting, 2023",
        "sharp restoration in 4 calls from the degraded picture",
    ),
    System(
        "sgmse",
        "SGMSE+",
        "Speech Enhancement and Dereverberation with Diffusion-based Generative Models, 2023",
        "noisy speech made clean, from the noisy recording on",
    ),
    System(
        "steered-diffusion",
        "Steered Diffusion",
        "Steered Diffusion: A Generalized Framework for Plug-and-Play Conditional Image Synthesis, 2023",
        "any inverse model steers an unconditional model",
    ),
    System(
        "stochastic-interpolants",
        "Stochastic interpolants",
        "Stochastic Interpolants: A Unifying Framework for Flows and Diffusions, 2023",
        "any law to any other, by an ODE or an SDE of any noise",
    ),
    System(
        "switch-dit",
        "Switch-DiT",
        "Switch Diffusion Transformer: Synergizing Denoising Tasks with Sparse Mixture-of-Experts, 2024",
        "a transformer whose blocks have experts for noise levels",
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
    System(
        "usf-s3",
        "USF and S³",
        "A Unified Sampling Framework for Solver Searching of Diffusion Probabilistic Models, 2024",
        "every step decides how it is solved; a search decides for it",
    ),
)

SYSTEMS: dict[str, System] = {system.id: system for system in _ROWS}
