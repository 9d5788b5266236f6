"""One spelling for every array in a table: a struct of dtype, shape and compressed bytes.

Arrow, Ray and Lance each spell fixed-shape tensors differently, refuse one another's, and store them uncompressed. Bytes of our own
making compress (byte shuffle, then zstd: neighbouring exponents line up), may vary in shape from row to row, and read back anywhere.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import zstandard

TENSOR = pa.struct([("dtype", pa.string()), ("shape", pa.list_(pa.int32())), ("data", pa.large_binary())])
_DTYPES = {"bool", "uint8", "int16", "uint16", "int32", "int64", "float16", "float32", "float64"}


def pack(array: np.ndarray, level: int = 3) -> dict:
    """An array as a value of type `TENSOR`. Booleans take a bit each. Deterministic: equal arrays give equal bytes."""
    array = np.ascontiguousarray(array)
    name = array.dtype.name
    if name not in _DTYPES:
        raise ValueError(f"no tensor of dtype {name} in tables; known: {', '.join(sorted(_DTYPES))}")
    raw = np.packbits(array).tobytes() if name == "bool" else array.view(np.uint8).reshape(-1, array.itemsize).T.tobytes()
    return {"dtype": name, "shape": list(array.shape), "data": zstandard.ZstdCompressor(level=level).compress(raw)}


def unpack(value: dict) -> np.ndarray:
    """The array back. ValueError where dtype, shape and bytes disagree."""
    name, shape = value["dtype"], tuple(value["shape"])
    if name not in _DTYPES or any(n < 0 for n in shape):
        raise ValueError(f"not a tensor of ours: dtype {name}, shape {shape}")
    count = int(np.prod(shape, dtype=np.int64))
    dtype = np.dtype(name)
    size = -(-count // 8) if name == "bool" else count * dtype.itemsize
    raw = np.frombuffer(zstandard.ZstdDecompressor().decompress(value["data"], max_output_size=max(size, 1)), np.uint8)
    if raw.size != size:
        raise ValueError(f"tensor of {shape} {name} should hold {size} bytes, holds {raw.size}")
    if name == "bool":
        return np.unpackbits(raw, count=count).astype(bool).reshape(shape)
    return np.ascontiguousarray(raw.reshape(dtype.itemsize, -1).T).view(dtype).reshape(shape)


def pack_depth(depth: np.ndarray, relative_error: float = 1e-3, near: float = 0.05, far: float = 500.0) -> dict:
    """Depth in metres [F, H, W] (0, NaN or outside near..far = unknown) as logarithmic uint16 steps, differenced in time.

    |stored − true| / true ≤ relative_error. Read back with `unpack_depth`.
    """
    step = 2 * np.log1p(relative_error)
    known = np.isfinite(depth) & (depth >= near) & (depth <= far)
    code = np.zeros(depth.shape, np.uint16)
    code[known] = 1 + np.round(np.log(depth[known].astype(np.float64) / near) / step).astype(np.uint16)
    code[1:] = code[1:] - code[:-1]  # wraps modulo 2^16, and so does the running sum
    return {**pack(code, level=9), "step": float(step), "near": near}


def unpack_depth(value: dict) -> np.ndarray:
    """float32 metres [F, H, W]; 0 where unknown."""
    code = np.cumsum(unpack(value), axis=0, dtype=np.uint16)
    table = np.exp(np.arange(int(code.max()) + 1 if code.size else 1) * value["step"] - value["step"]) * value["near"]
    table[0] = 0.0
    return table.astype(np.float32)[code]


DEPTH = pa.struct([*TENSOR, pa.field("step", pa.float64()), pa.field("near", pa.float64())])
