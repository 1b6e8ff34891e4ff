"""Frames of anchored plans: the same result where it must be, files that keep them, and a warning that is printed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import unstir
from unstir import process as pr
from unstir.plan.frames import blind

F64 = torch.float64


class Net(nn.Module):
    sees_anchor = True

    def forward(self, x, t, anchor):
        return torch.tanh(1.5 * x + float(t)) - 0.3 * anchor


def framed(plan: unstir.Plan, frame: str) -> unstir.Plan:
    return unstir.Plan(plan.rows, plan.process, frame=frame)


def given(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, dtype=F64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m-sde", "heun", "unipc", "dpm-2m", "bridge"])
@pytest.mark.parametrize(
    "process", [pr.MeanReverting(), pr.RDDM(), pr.OUVE(), pr.BrownianBridge()], ids=lambda p: type(p).__name__
)
def test_centred_and_residual_agree_where_constant_data_land_on_alpha(process: pr.Process, name: str) -> None:
    plan, y = unstir.plan(name, process, nfe=6, start=0.95), given(0)
    results = [unstir.sample(Net(), framed(plan, f), x=given(1), anchor=y, seed=2) for f in ("centred", "residual")]
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
    drawn = [unstir.sample(Net(), framed(plan, f), anchor=y, seed=2, dtype=F64) for f in ("centred", "residual")]
    torch.testing.assert_close(*drawn, rtol=1e-9, atol=1e-9)


def test_raw_rows_are_those_of_the_bridge() -> None:
    """Where y cancels, x' = r x + (1 − r) D + s z needs no frame at all."""
    p = pr.ResShift()
    plan, y = unstir.plan("bridge", p, nfe=6), given(0)
    results = [unstir.sample(Net(), framed(plan, f), x=given(1), anchor=y, seed=2) for f in ("centred", "raw")]
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)
    assert blind(framed(plan, "raw"))
    assert blind(plan)
    assert not blind(unstir.plan("ddim", p, nfe=6))
    assert not blind(plan.map_rows(lambda i, row: replace(row, a=torch.tensor(row.a))))  # not known


def test_every_step_shows_x(tmp_path: Path) -> None:
    plan, y = unstir.solvers.reverse_diffusion(pr.OUVE(), [1.0, 0.6, 0.2]), given(0)
    head, tail = plan.split(1)
    assert head.frame == tail.frame == "residual"
    whole = [step.x for step in unstir.steps(Net(), plan, given(1), anchor=y, seed=3)]
    state = unstir.sample(Net(), head, x=given(1), anchor=y, seed=3, full=True)
    torch.testing.assert_close(state.x + y, whole[0], rtol=1e-14, atol=1e-14)
    assert torch.equal(unstir.sample(Net(), tail, x=state, anchor=y), whole[1])


def test_files_keep_the_frame(tmp_path: Path) -> None:
    plan = unstir.solvers.reverse_diffusion(pr.OUVE(), [1.0, 0.6, 0.2])
    again = unstir.Plan.load(plan.save(tmp_path / "plan.json"))
    assert (again.frame, again) == ("residual", plan)
    assert framed(plan, "centred") != plan
    with pytest.raises(ValueError, match="frame='own'"):
        framed(plan, "own")


def test_a_start_that_is_off_is_said() -> None:
    assert "off by 0.22 (x0 − y)" in str(unstir.plan("auto", pr.OUVE(), nfe=3))
    assert "off by" not in str(unstir.plan("auto", pr.OUVE(), nfe=3, start=0.5))
    assert "off by" not in str(unstir.plan("auto", pr.ResShift(), nfe=3))


def test_steered_data_are_moved_as_the_data_are() -> None:
    """carry="noise" in the residual frame: both D and its base lose y, so a shift of D means the same in every frame."""
    from unstir.denoiser.inner import Steered

    class Shifted(Net):
        def forward(self, x, t, anchor):
            data = super().forward(x, t, anchor)
            return Steered(data + 0.1, data, "noise")

    plan, y = unstir.plan("ddim", pr.RDDM(), nfe=5, start=0.95), given(0)
    results = [unstir.sample(Shifted(), framed(plan, f), x=given(1), anchor=y) for f in ("centred", "residual")]
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)
