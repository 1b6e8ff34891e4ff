"""Importing unstir is light: heavy and optional packages come when they are first needed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import unstir

HEAVY = ["diffusers", "transformers", "sklearn", "matplotlib", "PIL", "rich", "tyro", "scipy", "pandas", "yaml", "torchvision"]
OWN_HEAVY = ["unstir.train", "unstir.evaluate", "unstir.data", "unstir.interop", "unstir.cli"]


def in_a_fresh_interpreter(code: str) -> dict:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_import_brings_no_heavy_package() -> None:
    """Also not while sampling. What torch itself imports is torch's business."""
    code = """
import json, sys, time
start = time.perf_counter()
import torch
mine = time.perf_counter()
before = set(sys.modules)
import unstir
end = time.perf_counter()
p = unstir.process.VP()
plan = unstir.plan("auto", p, nfe=2)
unstir.sample(unstir.Denoiser(lambda x, t: x, p, "velocity"), plan, shape=(1, 2))
str(plan)
print(json.dumps({"torch": mine - start, "unstir": end - mine, "new": sorted(set(sys.modules) - before)}))
"""
    told = in_a_fresh_interpreter(code)
    print(f"import torch {told['torch']:.2f} s, then unstir {told['unstir']:.2f} s")
    new = set(told["new"])
    assert not new & {*HEAVY, *OWN_HEAVY}
    assert "unstir.solvers" in new


def test_names_that_the_design_promises() -> None:
    for name in ("Denoiser", "Plan", "plan", "sample", "steps", "process", "solvers", "load"):
        assert hasattr(unstir, name), name
    assert all(hasattr(unstir, name) for name in unstir.__all__)
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        _ = unstir.magic


def test_the_function_plan_is_not_hidden_by_the_folder_plan() -> None:
    code = """
import json
import unstir
import unstir.plan.execute, unstir.plan.hooks
from unstir.plan import Plan
print(json.dumps({"callable": callable(unstir.plan), "same": unstir.Plan is Plan}))
"""
    assert in_a_fresh_interpreter(code) == {"callable": True, "same": True}


def test_rooms_come_when_named() -> None:
    code = """
import json, sys
import unstir
before = "unstir.train" in sys.modules
unstir.train
print(json.dumps({"before": before, "after": "unstir.train" in sys.modules}))
"""
    assert in_a_fresh_interpreter(code) == {"before": False, "after": True}
