"""Geometry-guided attention beside plain attention, in one run: the ego queries on CPU, a whole layer on a GPU where there is one.

    python benchmarks/gga.py [--frames 7] [--height 14] [--exo 24] [--ego 14] [--json]

CPU: the chunked path over the ego queries, against one plain attention of the same queries. GPU: at the paper's size (28,028 tokens), exo
queries by the stock kernel and ego queries by the fused one, against the stock kernel over all queries. Of several interleaved rounds the
least counts, on one thread in processor time, so that a busy machine does not decide. `max_error` is against the dense reference
in double precision on CPU, against the chunked path in single precision on a GPU.
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
    return Geometry(points.to(device), valid[0].to(device), rays.to(device), valid[1].to(device), centres.to(device))


def qkv(geometry: Geometry, heads: int, channels: int, **more) -> tuple[Tensor, Tensor, Tensor]:
    f, h, w_exo, w_ego = geometry.layout
    torch.manual_seed(1)
    q, k, v = torch.randn(3, 1, f * h * (w_exo + w_ego), heads, channels, **more).transpose(2, 3)
    return q, k, v


def split(q: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Exo and ego queries, contiguous."""
    f, h, w_exo, w_ego = geometry.layout
    exo, ego = q.unflatten(2, (f, h, w_exo + w_ego)).split((w_exo, w_ego), dim=4)
    return exo.flatten(2, 4), ego.flatten(2, 4)


def least(rounds: int, clock: Callable[[], float], **ways: Callable[[], object]) -> dict[str, float]:
    """Seconds of the fastest of some interleaved rounds, after one that is thrown away."""
    best = dict.fromkeys(ways, float("inf"))
    for i in range(rounds + 1):
        for name, way in ways.items():
            start = clock()
            way()
            best[name] = min(best[name], clock() - start) if i else best[name]
    return best


def on_cpu(layout: tuple[int, int, int, int], heads: int, channels: int, threads: int, rounds: int) -> dict[str, float | int]:
    torch.set_num_threads(threads)
    geometry = clip(layout)
    q, k, v = qkv(geometry, heads, channels)
    ego = split(q, geometry)[1]
    clock = time.process_time if threads == 1 else time.perf_counter
    with torch.no_grad():
        chunked = attend(q, k, v, geometry, "chunked")
        error = (chunked - attend(q.double(), k.double(), v.double(), geometry, "dense")).abs().max()
        seconds = least(
            rounds,
            clock,
            plain=lambda: scaled_dot_product_attention(ego, k, v),
            chunked=lambda: attend(q, k, v, geometry, "chunked"),
        )
    q, k, v, ego = (t.clone().requires_grad_() for t in (q, k, v, ego))
    both = least(
        max(1, rounds // 2),
        clock,
        plain=lambda: torch.autograd.grad(scaled_dot_product_attention(ego, k, v).sum(), (ego, k, v)),
        chunked=lambda: torch.autograd.grad(attend(q, k, v, geometry, "chunked").sum(), (q, k, v)),
    )
    return {
        "cpu_ratio_ego": seconds["chunked"] / seconds["plain"],
        "cpu_ratio_ego_with_backward": both["chunked"] / both["plain"],
        "cpu_seconds_plain": seconds["plain"],
        "cpu_seconds_chunked": seconds["chunked"],
        "cpu_tokens": q.shape[2],
        "cpu_threads": threads,
        "cpu_max_error": float(error),
    }


def gpu_clock() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def on_gpu(heads: int, channels: int, rounds: int) -> dict[str, float | None]:
    names = ["ratio_forward", "ratio_backward", "seconds_plain_forward", "seconds_forward", "seconds_plain_backward", "seconds_backward"]
    names += ["peak_plain_bytes", "peak_bytes", "ratio_ego", "max_error"]
    if not torch.cuda.is_available():
        return {f"gpu_{name}": None for name in names}
    geometry = clip(PAPER, "cuda")
    q, k, v = (t.detach().requires_grad_() for t in qkv(geometry, heads, channels, device="cuda", dtype=torch.bfloat16))
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
        forward = least(rounds, gpu_clock, plain=plain, guided=guided)
        part = least(
            rounds,
            gpu_clock,
            plain=lambda: scaled_dot_product_attention(ego, k, v),
            guided=lambda: attend(q, k, v, geometry, "triton"),
        )
        one = q[:, :1], k[:, :1], v[:, :1]
        reference = attend(one[0].float(), one[1].float(), one[2].float(), geometry, "chunked")
        error = (attend(*one, geometry, "triton").float() - reference).abs().max()
    outs = {"plain": plain(), "guided": guided()}
    grad = torch.randn_like(q)
    steps = {name: lambda out=out: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True) for name, out in outs.items()}
    backward = least(rounds, gpu_clock, **steps)
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
