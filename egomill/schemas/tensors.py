"""One spelling for every array in a table: a struct of dtype, shape and compressed bytes.

Arrow, Ray and Lance each spell fixed-shape tensors differently, refuse one another's, and store them uncompressed. Bytes of our own
making compress (byte shuffle, then zstd: neighbouring exponents line up), may vary in shape from row to row, and read back anywhere.
"""

from __future__ import annotations

import zlib
from fractions import Fraction
from typing import Any

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
    """Depth in metres [F, H, W] (0, NaN or outside near..far = unknown) as logarithmic steps, differenced in time, coded without loss.

    |stored − true| / true ≤ relative_error. Read back with `unpack_depth`. The steps' coder is FFV1, an archive's video codec: it predicts
    from three neighbours and adapts to what surrounds a pixel, which no byte compressor does (a third smaller than shuffled zstd).
    Deterministic: equal arrays give equal bytes.
    """
    step = 2 * np.log1p(relative_error)
    known = np.isfinite(depth) & (depth >= near) & (depth <= far)
    code = np.zeros(depth.shape, np.uint16)
    code[known] = 1 + np.round(np.log(depth[known].astype(np.float64) / near) / step).astype(np.uint16)
    code[1:] = code[1:] - code[:-1]  # wraps modulo 2^16, and so does the running sum
    small = code.ndim != 3 or min(code.shape) == 0 or min(code.shape[1:]) < 16  # less than the codec cuts into slices
    stored = pack(code, level=9) if small else {"dtype": "uint16", "shape": list(code.shape), "data": _encode(code)}
    return {**stored, "step": float(step), "near": near}


def unpack_depth(value: dict) -> np.ndarray:
    """float32 metres [F, H, W]; 0 where unknown. ValueError where shape and bytes disagree."""
    steps = unpack(value) if value["data"][:4] == _ZSTD else _decode(value["data"], tuple(value["shape"]))
    code = np.cumsum(steps, axis=0, dtype=np.uint16)
    table = np.exp(np.arange(int(code.max()) + 1 if code.size else 1) * value["step"] - value["step"]) * value["near"]
    table[0] = 0.0
    return table.astype(np.float32)[code]


_MIDDLE = np.uint16(1 << 15)  # so that small steps up and down are neighbours, not the two ends of the range
_ZSTD = b"\x28\xb5\x2f\xfd"


def _encode(frames: np.ndarray) -> bytes:
    """uint16 [F, H, W] as FFV1: check sum, height, width, number and lengths of the parts, then these: the codec's header, the frames.

    The codec conceals damage, as one does for viewers; hence a check sum of our own.
    """
    import av

    frames = np.concatenate([frames[:1], frames[1:] + _MIDDLE])
    codec: Any = av.CodecContext.create("ffv1", "w")
    codec.height, codec.width = frames.shape[1:]
    codec.pix_fmt, codec.time_base, codec.thread_count = "gray16le", Fraction(1, 1), 1
    codec.options = {"level": "3", "coder": "1", "context": "1", "slices": "4", "slicecrc": "0", "g": "1000"}
    parts = [bytes(p) for frame in frames for p in codec.encode(av.VideoFrame.from_ndarray(frame, format="gray16le"))]
    parts = [codec.extradata, *parts, *(bytes(p) for p in codec.encode(None))]
    body = np.array([*frames.shape[1:], len(parts), *map(len, parts)], "<u4").tobytes() + b"".join(parts)
    return zlib.crc32(body).to_bytes(4, "little") + body


def _decode(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    import av

    check, data = data[:4], data[4:]
    if len(shape) != 3 or zlib.crc32(data).to_bytes(4, "little") != check:
        raise ValueError(f"{len(data)} bytes are no depth of shape {shape}, or damaged")
    height, width, count = np.frombuffer(data, "<u4", 3)
    if (count - 1, height, width) != shape:
        raise ValueError(f"depth of shape {(int(count) - 1, int(height), int(width))}, not of shape {shape}")
    table = np.frombuffer(data, "<u4", count + 3).astype(int)
    lengths = table[3:]
    ends = np.cumsum(lengths) + table.size * 4
    header, *parts = (data[end - length : end] for length, end in zip(lengths, ends, strict=True))
    codec: Any = av.CodecContext.create("ffv1", "r")
    codec.extradata, codec.height, codec.width, codec.pix_fmt, codec.thread_count = header, shape[1], shape[2], "gray16le", 1
    frames = np.empty(shape, np.uint16)
    try:
        for frame, part in zip(frames, parts, strict=True):
            (picture,) = codec.decode(av.Packet(part))
            frame[:] = picture.to_ndarray()
    except (av.FFmpegError, ValueError) as error:
        raise ValueError(f"depth of shape {shape} does not decode: {error}") from None
    frames[1:] -= _MIDDLE
    return frames


DEPTH = pa.struct([*TENSOR, pa.field("step", pa.float64()), pa.field("near", pa.float64())])
