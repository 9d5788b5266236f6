"""Geometry-guided attention beside plain attention, in one run: the ego queries on CPU, a whole layer on a GPU where there is one.

    python benchmarks/gga.py [--frames 7] [--height 14] [--exo 24] [--ego 14] [--json]

CPU: the chunked path over the ego queries, against one plain attention of the same queries. GPU: at the paper's size (28,028 tokens), exo
queries by the stock kernel and ego queries by the fused one, against the stock kernel over all queries. The least of several interleaved
rounds, so that a busy machine does not decide.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.nn.functional import normalize, scaled_dot_product_attention

from egomill.kernels.gga import Geometry, attend

PAPER = (13, 28, 49, 28)


def clip(layout: tuple[int, int, int, int], device: str = "cpu") -> Geometry:
    """Geometry as it is stored for a clip: points in a room around a walking person, a tenth of them missing."""
    f, h, w_exo, w_ego = layout
    g = torch.Generator().manual_seed(0)
    points = torch.randn(1, f, h, w_exo, 3, generator=g) * 2
    rays = normalize(torch.randn(1, f, h, w_ego, 3, generator=g) * 0.4 + torch.tensor([0.0, 0.0, 1.0]), dim=-1)
    valid = [torch.rand(1, f, h, w, generator=g) > 0.1 for w in (w_exo, w_ego)]
    centres = torch.randn(1, f, 3, generator=g) * 0.2
    return Geometry(*(t.to(device) for t in (points, valid[0], rays, valid[1], centres)))


def qkv(geometry: Geometry, heads: int, channels: int, **more) -> list[Tensor]:
    f, h, w_exo, w_ego = geometry.layout
    torch.manual_seed(1)
    return [torch.randn(1, f * h * (w_exo + w_ego), heads, channels, **more).transpose(1, 2) for _ in range(3)]


def split(q: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Exo and ego queries, contiguous."""
    f, h, w_exo, w_ego = geometry.layout
    exo, ego = q.unflatten(2, (f, h, w_exo + w_ego)).split((w_exo, w_ego), dim=4)
    return exo.flatten(2, 4), ego.flatten(2, 4)


def least(rounds: int, **ways: Callable[[], object]) -> dict[str, float]:
    """Seconds of the fastest of some interleaved rounds, the first of which is thrown away."""
    best = dict.fromkeys(ways, float("inf"))
    for i in range(rounds + 1):
        for name, way in ways.items():
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            start = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def on_cpu(layout: tuple[int, int, int, int], heads: int, channels: int, threads: int, rounds: int) -> dict[str, float | int]:
    torch.set_num_threads(threads)
    geometry = clip(layout)
    q, k, v = qkv(geometry, heads, channels)
    ego = split(q, geometry)[1]
    ways = {"plain": lambda: scaled_dot_product_attention(ego, k, v), "chunked": lambda: attend(q, k, v, geometry, "chunked")}
    with torch.no_grad():
        seconds = least(rounds, **ways)
        error = (attend(q, k, v, geometry, "chunked") - attend(q, k, v, geometry, "dense")).abs().max()
    return {
        "cpu_ratio_ego": seconds["chunked"] / seconds["plain"],
        "cpu_seconds_plain": seconds["plain"],
        "cpu_seconds_chunked": seconds["chunked"],
        "cpu_tokens": q.shape[2],
        "cpu_threads": threads,
        "cpu_max_error": float(error),
    }


def on_gpu(heads: int, channels: int, rounds: int) -> dict[str, float | None]:
    names = ["ratio_forward", "ratio_backward", "seconds_plain_forward", "seconds_forward", "seconds_plain_backward", "seconds_backward"]
    names += ["peak_plain_bytes", "peak_bytes", "ratio_ego", "max_error"]
    if not torch.cuda.is_available():
        return {f"gpu_{name}": None for name in names}
    geometry = clip(PAPER, "cuda")
    q, k, v = (t.requires_grad_() for t in qkv(geometry, heads, channels, device="cuda", dtype=torch.bfloat16))
    f, h, w_exo, w_ego = PAPER

    def plain() -> Tensor:
        return scaled_dot_product_attention(q, k, v)

    def guided() -> Tensor:
        exo = scaled_dot_product_attention(split(q, geometry)[0], k, v).unflatten(2, (f, h, w_exo))
        return torch.cat((exo, attend(q, k, v, geometry, "triton").unflatten(2, (f, h, w_ego))), dim=4).flatten(2, 4)

    def peak(way: Callable[[], Tensor]) -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.autograd.grad(way().sum(), (q, k, v))
        return torch.cuda.max_memory_allocated() - before

    ego = split(q, geometry)[1].detach()
    with torch.no_grad():
        forward = least(rounds, plain=plain, guided=guided)
        part = least(rounds, plain=lambda: scaled_dot_product_attention(ego, k, v), guided=lambda: attend(q, k, v, geometry, "triton"))
        few = [t[:, :1] for t in (q, k, v)]
        reference = attend(*(t.float() for t in few), geometry, "chunked")
        error = (attend(*few, geometry, "triton").float() - reference).abs().max()
    outs = {"plain": plain(), "guided": guided()}
    grad = torch.randn_like(q)
    steps = {name: lambda out=out: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True) for name, out in outs.items()}
    backward = least(rounds, **steps)
    outs.clear()
    steps.clear()
    values = [forward["guided"] / forward["plain"], backward["guided"] / backward["plain"], forward["plain"], forward["guided"]]
    values += [backward["plain"], backward["guided"], peak(plain), peak(guided), part["guided"] / part["plain"], float(error)]
    return {f"gpu_{name}": value for name, value in zip(names, values, strict=True)}


def main(
    frames: Annotated[int, typer.Option(help="Latent frames, on CPU.")] = 7,
    height: Annotated[int, typer.Option(help="Rows of tokens, on CPU.")] = 14,
    exo: Annotated[int, typer.Option(help="Exo columns, on CPU.")] = 24,
    ego: Annotated[int, typer.Option(help="Ego columns, on CPU.")] = 14,
    heads: Annotated[int, typer.Option(help="Heads on CPU; a GPU takes 40.")] = 2,
    channels: Annotated[int, typer.Option(help="Channels a head.")] = 128,
    threads: Annotated[int, typer.Option(help="Threads on CPU.")] = 1,
    rounds: Annotated[int, typer.Option(help="Interleaved rounds; the least counts.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    tokens = PAPER[0] * PAPER[1] * (PAPER[2] + PAPER[3])
    found = on_cpu((frames, height, exo, ego), heads, channels, threads, rounds)
    found |= {"geometry_bytes": clip(PAPER).bytes, "dense_bytes": 4 * tokens**2, "tokens": tokens}
    found |= on_gpu(40, channels, rounds)
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:28} {'no GPU' if value is None else format(value, '.6g')}")


if __name__ == "__main__":
    typer.run(main)
