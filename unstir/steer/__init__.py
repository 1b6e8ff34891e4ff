"""Steering: denoiser → denoiser transforms, hooks and outer loops around plans."""

from . import operators
from .admm import TV, admm, admm_consistency, finite_difference, finite_difference_adjoint
from .boundary import StartState, search_start
from .chain import ProductChain, stacked
from .editing import EDITS, Encoded, decode, edict, edict_invert, edit, edit_plan, encode, sdedit
from .energies import Term, flowchef, steered
from .guidance import Transform, apg, cfg, classifier, energy, threshold
from .inversion import Latent, ddim_invert, invert, regenerate
from .one_way import Impose, OneWay, one_way, one_way_plan
from .operators import check_operator
from .particles import Swarm, particles
from .population import Population, ess, resample
from .posterior import METHODS, posterior
from .ranges import Problem, ValueRange
from .reconstruct import Reconstructor
from .replace import repaint_plan
from .self_trained import SelfTrained
from .start_kernel import Start, search_start_time, start, start_divergence, start_time
from .switch import switch
from .time_shift import matched_time, time_shift
from .variational import red_diff
from .volumes import SliceWise, sliced
from .windows import restore_picture, restore_sound

__all__ = [
    "EDITS",
    "METHODS",
    "TV",
    "Encoded",
    "Impose",
    "Latent",
    "OneWay",
    "Population",
    "Problem",
    "ProductChain",
    "Reconstructor",
    "SelfTrained",
    "SliceWise",
    "Start",
    "StartState",
    "Swarm",
    "Term",
    "Transform",
    "ValueRange",
    "admm",
    "admm_consistency",
    "apg",
    "cfg",
    "check_operator",
    "classifier",
    "ddim_invert",
    "decode",
    "edict",
    "edict_invert",
    "edit",
    "edit_plan",
    "encode",
    "energy",
    "ess",
    "finite_difference",
    "finite_difference_adjoint",
    "flowchef",
    "invert",
    "matched_time",
    "one_way",
    "one_way_plan",
    "operators",
    "particles",
    "posterior",
    "red_diff",
    "regenerate",
    "repaint_plan",
    "resample",
    "restore_picture",
    "restore_sound",
    "sdedit",
    "search_start",
    "search_start_time",
    "sliced",
    "stacked",
    "start",
    "start_divergence",
    "start_time",
    "steered",
    "switch",
    "threshold",
    "time_shift",
]
