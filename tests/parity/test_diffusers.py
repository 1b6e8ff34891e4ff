"""Our plans equal diffusers' schedulers on the same nodes, denoiser, start and noise; where not, who is right."""

from __future__ import annotations

import pytest

from benchmarks import parity, peers, weak

if reason := peers.why_not_diffusers():
    pytest.skip(reason, allow_module_level=True)

from unstir.solvers import find


@pytest.fixture(autouse=True)
def quiet() -> None:
    import diffusers

    diffusers.utils.logging.set_verbosity_error()


@pytest.mark.parametrize("pair", parity.DIFFUSERS, ids=lambda pair: f"{pair.label} = {pair.ours}")
@pytest.mark.filterwarnings("ignore")
def test_same_end_state(pair: parity.Pair) -> None:
    if pair.peer == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde", reason="DPMSolverSDEScheduler needs torchsde")
    assert parity.compare(pair) < pair.tolerance


@pytest.mark.filterwarnings("ignore")
def test_third_order_multistep_of_diffusers_is_second_order() -> None:
    theirs, mine = weak.orders({"solver_order": 3}, "dpmpp-3m")
    assert theirs < 2.4
    assert mine > find("dpmpp-3m").order - 0.15


@pytest.mark.filterwarnings("ignore")
def test_third_order_stochastic_multistep_of_diffusers_is_weakly_first_order() -> None:
    theirs, mine = weak.orders({"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}, "dpmpp-3m-sde")
    assert theirs < 1.3
    assert mine > find("dpmpp-3m-sde").order - 0.15


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.filterwarnings("ignore")
def test_ddim_of_diffusers_steps_past_its_next_label(spacing: str) -> None:
    theirs, mine = weak.ddim_spacing(600, spacing)
    assert theirs > 10 * mine


@pytest.mark.filterwarnings("ignore")
def test_unipc_bh1_of_diffusers_is_nan_at_its_default_end() -> None:
    assert not weak.unipc_bh1_is_finite()


@pytest.mark.filterwarnings("ignore")
def test_flow_match_euler_shifts_its_clean_end_twice() -> None:
    last, once = weak.flow_shift_end(3.0)
    assert last > 2 * once
