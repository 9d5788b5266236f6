"""The fused kernel's programs in Triton: one forward, two backward (for queries, for keys and values). Called by kernels/gga_triton.py.

Ego rows are counted (f, h, w_ego). Rows of a block past the end are loaded as zeros and their log-sum as infinity, which makes their
weights zero. Keys past the last token are kept out by a logit of -inf, in one block after the loop over the full ones.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs


def _configs(*candidates: tuple[int, int, int, int]) -> list[triton.Config]:
    """(queries a block, keys a block, warps, stages). The interpreter has nothing to choose."""
    chosen = candidates[:1] if knobs.runtime.interpret else candidates
    return [triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=w, num_stages=s) for m, n, w, s in chosen]


SINGLE = _configs((64, 32, 4, 1))


def _fitting(configs: list[triton.Config], named: dict, **more) -> list[triton.Config]:
    """Single precision is for comparing, and fits the shared memory in small blocks only."""
    return SINGLE if named["q"].element_size() == 4 else configs


def _tuned(*candidates: tuple[int, int, int, int]):
    return triton.autotune(_configs(*candidates), key=["tokens", "FRAMES", "D"], prune_configs_by={"early_config_prune": _fitting})


@triton.jit
def _rows(x, rows, step, inside, D: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr):
    """Rows of a matrix as a block, zero outside; WHOLE where every row is inside."""
    channels = tl.arange(0, BLOCK_D)
    places = x + rows[:, None] * step + channels[None, :]
    if WHOLE and D == BLOCK_D:
        return tl.load(places)
    if D == BLOCK_D:
        return tl.load(places, mask=inside[:, None], other=0.0)
    return tl.load(places, mask=inside[:, None] & (channels < D)[None, :], other=0.0)


@triton.jit
def _keep(x, rows, step, inside, block, D: tl.constexpr, BLOCK_D: tl.constexpr):
    channels = tl.arange(0, BLOCK_D)
    places = x + rows[:, None] * step + channels[None, :]
    tl.store(places, block.to(x.dtype.element_ty), mask=inside[:, None] & (channels < D)[None, :])


@triton.jit
def _token(row, W_EXO: tl.constexpr, W_EGO: tl.constexpr):
    """Where ego rows stand among all tokens."""
    return row // W_EGO * (W_EXO + W_EGO) + W_EXO + row % W_EGO


@triton.jit
def _weight(x, low, slope, offset, BENDS: tl.constexpr):
    if BENDS:
        x = tl.maximum(x, x * slope + offset)
    return tl.maximum(x, low)


@triton.jit
def _biased(q, k, qg, kg, frame, first, k_step, cols, inside, tokens, scale, low, slope, offset, FRAMES: tl.constexpr, SPAN: tl.constexpr,
            D: tl.constexpr, BLOCK_D: tl.constexpr, BENDS: tl.constexpr, PRECISION: tl.constexpr, WHOLE: tl.constexpr):  # fmt: skip
    """A block of keys, its logits in powers of two, and the weights, for queries of the SPAN frames from `first` on."""
    keys = _rows(k, cols, k_step, inside, D, BLOCK_D, WHOLE)
    s = tl.dot(q, tl.trans(keys), input_precision=PRECISION) * scale
    if not WHOLE:
        s = tl.where(inside[None, :], s, -float("inf"))
    x = tl.dot(qg, tl.trans(_rows(kg + first.to(tl.int64) * tokens * 16, cols, 16, inside, 16, 16, WHOLE)))
    for i in tl.static_range(1, SPAN):
        table = kg + tl.minimum(first + i, FRAMES - 1).to(tl.int64) * tokens * 16
        other = tl.dot(qg, tl.trans(_rows(table, cols, 16, inside, 16, 16, WHOLE)))
        x = tl.where((frame == first + i)[:, None], other, x)
    return keys, s, _weight(x, low, slope, offset, BENDS)


@triton.jit
def _forward_keys(q, qg, k, v, kg, frame, first, k_step, v_step, tokens, scale, low, slope, offset,
                  FRAMES: tl.constexpr, SPAN: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BENDS: tl.constexpr,
                  PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    top = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    whole = tokens // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        acc, total, top = _forward_block(acc, total, top, q, qg, k, v, kg, frame, first, k_step, v_step, start, tokens, scale,
                                         low, slope, offset, FRAMES, SPAN, D, BLOCK_D, BENDS, PRECISION, BLOCK_N, True)  # fmt: skip
    if whole < tokens:
        acc, total, top = _forward_block(acc, total, top, q, qg, k, v, kg, frame, first, k_step, v_step, whole, tokens, scale,
                                         low, slope, offset, FRAMES, SPAN, D, BLOCK_D, BENDS, PRECISION, BLOCK_N, False)  # fmt: skip
    return acc, total, top


@triton.jit
def _forward_block(acc, total, top, q, qg, k, v, kg, frame, first, k_step, v_step, start, tokens, scale, low, slope, offset,
                   FRAMES: tl.constexpr, SPAN: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BENDS: tl.constexpr,
                   PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE: tl.constexpr):  # fmt: skip
    cols = start + tl.arange(0, BLOCK_N)
    inside = cols < tokens
    _, s, g = _biased(q, k, qg, kg, frame, first, k_step, cols, inside, tokens, scale, low, slope, offset, FRAMES, SPAN,  # type: ignore[misc]
                      D, BLOCK_D, BENDS, PRECISION, WHOLE)  # fmt: skip
    new = tl.maximum(top, tl.max(s, 1))
    p = tl.exp2(s - new[:, None]) * g
    shrink = tl.exp2(top - new)
    values = _rows(v, cols, v_step, inside, D, BLOCK_D, WHOLE)
    acc = tl.dot(p.to(values.dtype), values, acc * shrink[:, None], input_precision=PRECISION)
    return acc, total * shrink + tl.sum(p, 1), new


@_tuned((64, 64, 4, 3), (128, 64, 8, 3), (128, 64, 8, 2), (128, 128, 8, 2), (128, 32, 4, 4), (64, 32, 4, 3))
@triton.jit
def _forward(q, k, v, qg, kg, qg_batch, kg_batch, out, lse,
             q_batch, q_head, q_step, k_batch, k_head, k_step, v_batch, v_head, v_step, o_batch, o_head, o_step,
             low, slope, offset, scale, heads, tokens,
             FRAMES: tl.constexpr, PER: tl.constexpr, W_EXO: tl.constexpr, W_EGO: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
             BENDS: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """A program per block of ego rows and per head. A block that lies in one frame reads one table of directions; the few that do not
    read all that their rows need."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = row < FRAMES * PER
    frame = row // PER
    first = tl.program_id(0) * BLOCK_M // PER
    last = tl.minimum(tl.program_id(0) * BLOCK_M + BLOCK_M - 1, FRAMES * PER - 1) // PER
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    kg += batch * kg_batch
    queries = _rows(q + batch * q_batch + head * q_head, _token(row, W_EXO, W_EGO), q_step, inside, D, BLOCK_D, False)
    looks = _rows(qg + batch * qg_batch, row, 16, inside, 16, 16, False)

    scale *= 1.4426950408889634
    if first == last:
        acc, total, top = _forward_keys(queries, looks, k, v, kg, frame, first, k_step, v_step, tokens, scale, low, slope, offset,
                                        FRAMES, 1, D, BLOCK_D, BENDS, PRECISION, BLOCK_M, BLOCK_N)  # fmt: skip
    else:
        acc, total, top = _forward_keys(queries, looks, k, v, kg, frame, first, k_step, v_step, tokens, scale, low, slope, offset,
                                        FRAMES, min(FRAMES, (BLOCK_M - 2) // PER + 2), D, BLOCK_D, BENDS, PRECISION,
                                        BLOCK_M, BLOCK_N)  # fmt: skip
    _keep(out + batch * o_batch + head * o_head, row, o_step, inside, acc / total[:, None], D, BLOCK_D)
    tl.store(lse + tl.program_id(1).to(tl.int64) * FRAMES * PER + row, top + tl.log2(total), mask=inside)


@triton.jit
def _queries_keys(q, qg, grad, lse, delta, k, v, kg, frame, first, k_step, v_step, tokens, scale, low, slope, offset,
                  FRAMES: tl.constexpr, SPAN: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BENDS: tl.constexpr,
                  PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    whole = tokens // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        dq = _queries_block(dq, q, qg, grad, lse, delta, k, v, kg, frame, first, k_step, v_step, start, tokens, scale, low, slope, offset,
                            FRAMES, SPAN, D, BLOCK_D, BENDS, PRECISION, BLOCK_N, True)  # fmt: skip
    if whole < tokens:
        dq = _queries_block(dq, q, qg, grad, lse, delta, k, v, kg, frame, first, k_step, v_step, whole, tokens, scale, low, slope, offset,
                            FRAMES, SPAN, D, BLOCK_D, BENDS, PRECISION, BLOCK_N, False)  # fmt: skip
    return dq


@triton.jit
def _queries_block(dq, q, qg, grad, lse, delta, k, v, kg, frame, first, k_step, v_step, start, tokens, scale, low, slope, offset,
                   FRAMES: tl.constexpr, SPAN: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, BENDS: tl.constexpr,
                   PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, WHOLE: tl.constexpr):  # fmt: skip
    cols = start + tl.arange(0, BLOCK_N)
    inside = cols < tokens
    keys, s, g = _biased(q, k, qg, kg, frame, first, k_step, cols, inside, tokens, scale, low, slope, offset, FRAMES, SPAN,  # type: ignore[misc]
                         D, BLOCK_D, BENDS, PRECISION, WHOLE)  # fmt: skip
    p = tl.exp2(s - lse[:, None]) * g
    dp = tl.dot(grad, tl.trans(_rows(v, cols, v_step, inside, D, BLOCK_D, WHOLE)), input_precision=PRECISION)
    return tl.dot((p * (dp - delta[:, None])).to(keys.dtype), keys, dq, input_precision=PRECISION)


@_tuned((64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3), (128, 32, 8, 3), (64, 32, 4, 3))
@triton.jit
def _backward_queries(q, k, v, qg, kg, qg_batch, kg_batch, out, grad, lse, delta, dq,
                      q_batch, q_head, q_step, k_batch, k_head, k_step, v_batch, v_head, v_step, o_batch, o_head, o_step,
                      g_batch, g_head, g_step, dq_batch, dq_head, dq_step, low, slope, offset, scale, heads, tokens,
                      FRAMES: tl.constexpr, PER: tl.constexpr, W_EXO: tl.constexpr, W_EGO: tl.constexpr, D: tl.constexpr,
                      BLOCK_D: tl.constexpr, BENDS: tl.constexpr, PRECISION: tl.constexpr,
                      BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """Programs as in the forward kernel. Also writes delta = Σ out·grad of each query, which the other backward kernel reads."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = row < FRAMES * PER
    frame = row // PER
    first = tl.program_id(0) * BLOCK_M // PER
    last = tl.minimum(tl.program_id(0) * BLOCK_M + BLOCK_M - 1, FRAMES * PER - 1) // PER
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    k += batch * k_batch + head * k_head
    v += batch * v_batch + head * v_head
    kg += batch * kg_batch
    at = _token(row, W_EXO, W_EGO)
    queries = _rows(q + batch * q_batch + head * q_head, at, q_step, inside, D, BLOCK_D, False)
    looks = _rows(qg + batch * qg_batch, row, 16, inside, 16, 16, False)
    grads = _rows(grad + batch * g_batch + head * g_head, row, g_step, inside, D, BLOCK_D, False)
    outs = _rows(out + batch * o_batch + head * o_head, row, o_step, inside, D, BLOCK_D, False)
    sums = tl.sum(outs.to(tl.float32) * grads.to(tl.float32), 1)
    one = tl.program_id(1).to(tl.int64) * FRAMES * PER + row
    tl.store(delta + one, sums, mask=inside)
    total = tl.load(lse + one, mask=inside, other=float("inf"))

    log2_scale = scale * 1.4426950408889634
    if first == last:
        acc = _queries_keys(queries, looks, grads, total, sums, k, v, kg, frame, first, k_step, v_step, tokens, log2_scale,
                            low, slope, offset, FRAMES, 1, D, BLOCK_D, BENDS, PRECISION, BLOCK_M, BLOCK_N)  # fmt: skip
    else:
        acc = _queries_keys(queries, looks, grads, total, sums, k, v, kg, frame, first, k_step, v_step, tokens, log2_scale,
                            low, slope, offset, FRAMES, min(FRAMES, (BLOCK_M - 2) // PER + 2), D, BLOCK_D, BENDS, PRECISION,
                            BLOCK_M, BLOCK_N)  # fmt: skip
    _keep(dq + batch * dq_batch + head * dq_head, at, dq_step, inside, acc * scale, D, BLOCK_D)


@_tuned((64, 64, 4, 2), (64, 128, 8, 2), (64, 128, 8, 3), (32, 128, 8, 3), (32, 64, 4, 3))
@triton.jit
def _backward_keys(q, k, v, qg, kg, qg_batch, kg_batch, grad, lse, delta, dk, dv,
                   q_batch, q_head, q_step, k_batch, k_head, k_step, v_batch, v_head, v_step, g_batch, g_head, g_step,
                   dk_batch, dk_head, dk_step, dv_batch, dv_head, dv_step, low, slope, offset, scale, heads, tokens,
                   FRAMES: tl.constexpr, PER: tl.constexpr, W_EXO: tl.constexpr, W_EGO: tl.constexpr, D: tl.constexpr,
                   BLOCK_D: tl.constexpr, BENDS: tl.constexpr, PRECISION: tl.constexpr,
                   BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """A program per block of keys and per head, over all ego rows, a block of one frame at a time. Everything is transposed here,
    [keys, queries], so that no product's left side need be turned. Keys past the end are not kept."""
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = cols < tokens
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    q += batch * q_batch + head * q_head
    grad += batch * g_batch + head * g_head
    qg += batch * qg_batch
    kg += batch * kg_batch
    lse += tl.program_id(1).to(tl.int64) * FRAMES * PER
    delta += tl.program_id(1).to(tl.int64) * FRAMES * PER
    keys = _rows(k + batch * k_batch + head * k_head, cols, k_step, inside, D, BLOCK_D, False)
    values = _rows(v + batch * v_batch + head * v_head, cols, v_step, inside, D, BLOCK_D, False)

    log2_scale = scale * 1.4426950408889634
    dkeys = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    dvalues = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    blocks = tl.cdiv(PER, BLOCK_M)
    for i in range(FRAMES * blocks):
        frame = i // blocks
        within = i % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
        real = within < PER
        row = frame * PER + within
        queries = _rows(q, _token(row, W_EXO, W_EGO), q_step, real, D, BLOCK_D, False)
        looks = _rows(qg, row, 16, real, 16, 16, False)
        table = _rows(kg + tl.cast(frame, tl.int64) * tokens * 16, cols, 16, inside, 16, 16, False)
        total = tl.load(lse + row, mask=real, other=float("inf"))
        sums = tl.load(delta + row, mask=real, other=0.0)
        s = tl.dot(keys, tl.trans(queries), input_precision=PRECISION) * log2_scale
        g = _weight(tl.dot(table, tl.trans(looks)), low, slope, offset, BENDS)
        p = tl.exp2(s - total[None, :]) * g
        grads = _rows(grad, row, g_step, real, D, BLOCK_D, False)
        dvalues = tl.dot(p.to(grads.dtype), grads, dvalues, input_precision=PRECISION)
        dp = tl.dot(values, tl.trans(grads), input_precision=PRECISION)
        dkeys = tl.dot((p * (dp - sums[None, :])).to(queries.dtype), queries, dkeys, input_precision=PRECISION)
    _keep(dk + batch * dk_batch + head * dk_head, cols, dk_step, inside, dkeys * scale, D, BLOCK_D)
    _keep(dv + batch * dv_batch + head * dv_head, cols, dv_step, inside, dvalues, D, BLOCK_D)
