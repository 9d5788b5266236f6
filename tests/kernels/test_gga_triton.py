"""The fused kernel: proven in Triton's interpreter, compiled for the GPU it was written for (which needs none), and run where one is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from egomill.kernels.gga import HAS_TRITON, Geometry
from tests.kernels.test_gga import geometry, parity, qkv

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")


def test_in_the_interpreter():
    cases = Path(__file__).with_name("gga_interpreted.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(cases)]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "9 passed" in done.stdout


@pytest.mark.parametrize("which", ["first", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["_forward", "_backward_queries", "_backward_keys"])
def test_candidates_compile_for_hopper_and_use_its_matrix_units(name, which):
    """At the size of the paper in bfloat16. Triton carries its own assembler, so this needs no GPU."""
    from triton import compile as build
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from egomill.kernels import gga_triton

    tuned = getattr(gga_triton, name)
    names = tuned.fn.arg_names
    sizes = {"FRAMES": 13, "PER": 784, "W_EXO": 49, "W_EGO": 28, "D": 128, "BLOCK_D": 128, "BENDS": False, "PRECISION": "tf32"}
    kinds = {"qg": "*fp16", "kg": "*fp16", "lse": "*fp32", "delta": "*fp32"} | dict.fromkeys(("low", "slope", "offset", "scale"), "fp32")
    kinds |= dict.fromkeys(("q", "k", "v", "out", "grad", "dq", "dk", "dv"), "*bf16")
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if kinds.get(n, n)[0] == "*" or n.endswith("_step")}
    for config in tuned.configs[: 1 if which == "first" else None]:
        fixed = sizes | config.kwargs
        source = ASTSource(tuned.fn, {n: "constexpr" if n in fixed else kinds.get(n, "i32") for n in names}, fixed, aligned)
        options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
        made = build(source, target=GPUTarget("cuda", 90, 32), options=options)
        assert "wgmma.mma_async" in made.asm["ptx"]
        assert made.metadata.shared <= 227 * 1024, (config, made.metadata.shared)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float16, 3e-3), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("formula", "lam", "channels"), [("paper", 1.0, 128), ("egox-released", 3.0, 64), ("paper", 2.0, 48)])
def test_on_the_gpu(dtype, tolerance, formula, lam, channels):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    here = geometry(batch=2, f=3, h=14, w_exo=25, w_ego=14)
    geo = Geometry(*(t.cuda() for t in (here.exo_points, here.exo_valid, here.ego_rays, here.ego_valid, here.centres)), lam, formula)
    q, k, v = (t.detach().to("cuda", dtype).requires_grad_() for t in qkv(here, channels=channels))
    parity(geo, "triton", q, k, v, forward=tolerance, backward=tolerance)
