"""diffusers, both ways: our plans in its pipelines, its pipelines as our denoisers, our models as its folders.

pipe.scheduler = PlanScheduler.from_config(pipe.scheduler, solver="dpmpp-3m")   # out
model = unstir.load(pipe)                                                       # in
save_diffusers(model, "folder")                                                 # a DDPMPipeline folder
"""

try:
    import diffusers as _diffusers  # noqa: F401
except ImportError as error:
    raise ImportError(f'unstir.interop.diffusers needs diffusers: pip install "unstir[diffusers]" ({error})') from None

from .conditions import Asked, conditions_of
from .convention import Convention, convention
from .pipeline import Codec, PipelineDenoiser, is_pipeline_folder, load_pipeline, sample_as_pipeline, save_plans
from .prompts import prompt_conditions
from .save import save_diffusers
from .scheduler import PlanScheduler, PlanSchedulerOutput

__all__ = [
    "Asked",
    "Codec",
    "Convention",
    "PipelineDenoiser",
    "PlanScheduler",
    "PlanSchedulerOutput",
    "conditions_of",
    "convention",
    "is_pipeline_folder",
    "load_pipeline",
    "prompt_conditions",
    "sample_as_pipeline",
    "save_diffusers",
    "save_plans",
]
