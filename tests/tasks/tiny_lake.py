"""A lake of tiny real clips: a textured wall, a ball that moves before it, a fixed exo camera and a head that turns."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch

from egomill.kernels import directions as rays
from egomill.kernels.cameras import Camera, aria_rgb
from egomill.kernels.poses import inverse, transform
from egomill.kernels.prior import render_prior
from egomill.schemas.fingerprint import content_of
from egomill.schemas.outcome import Rejected
from egomill.schemas.tables import NO_CONTENT, as_stored, silent
from egomill.schemas.tensors import pack, pack_depth, unpack
from egomill.tasks.lake.rows import finished, handed, read_rows
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.tables import Lake
from egomill.tasks.media import video, views

FRAMES, FPS = 5, 10.0
EXO = Camera("pinhole", (55.0, 55.0, 47.5, 31.5), 96, 64)
EGO = aria_rgb(64)


def look(camera: Camera, T_world_cam: torch.Tensor, ball: torch.Tensor, phase: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Picture uint8 [H, W, 3], depth along the ray [H, W] and static mask of the wall z = 2 m with a ball of 25 cm before it."""
    local, inside = camera.rays()
    origin, direction = T_world_cam[:3, 3], transform(T_world_cam, local) - T_world_cam[:3, 3]
    wall = (2 - origin[2]) / direction[..., 2].clamp_min(0.05)
    offset = origin - ball
    b = (direction * offset).sum(-1)
    root = b * b - offset.dot(offset) + 0.25**2
    hit = root > 0
    depth = torch.where(hit, -b - root.clamp_min(0).sqrt(), wall)
    point = origin + direction * depth[..., None]
    x, y = point[..., 0], point[..., 1]
    waves = torch.stack([torch.sin(5 * x + phase), torch.sin(4 * y), torch.sin(3 * (x + y))], -1)
    colour = torch.where(hit[..., None], torch.tensor([220.0, 60.0, 40.0]), 128 + 90 * waves)
    picture = torch.where(inside[..., None], colour, 0).clamp(0, 255).to(torch.uint8)
    return picture.numpy(), torch.where(inside, depth, 0).numpy(), (~hit | ~inside).numpy()


def build(lake: Lake, clips: int = 4, takes: int = 2, held_out: int = 2, source: str = "") -> list[str]:
    """Fill takes, clips, depth, priors, directions and captions; the last `held_out` clips are in split "unseen". Returns the clip ids.

    Videos are written to the folder `source`, or beside the tables.
    """
    tables: dict[str, list[dict]] = {t: [] for t in ("takes", "clips", "depth", "priors", "directions", "captions")}
    root = source or f"{lake.uri}/source"
    ids = []
    Path(root).mkdir(parents=True, exist_ok=True)
    for i in range(clips):
        made = {"fingerprint": f"f{i}", "run_id": "run"}
        key, take = f"take{i % takes}.cam01.{i}", f"take{i % takes}"
        ids.append(key)
        T_exo = torch.eye(4)
        T_ego = torch.eye(4).repeat(FRAMES, 1, 1)
        exo, ego, depth, static = [], [], [], []
        for f in range(FRAMES):
            turn = 0.1 * math.sin(f + i)
            T_ego[f, 0, 0] = T_ego[f, 2, 2] = math.cos(turn)
            T_ego[f, 0, 2], T_ego[f, 2, 0] = math.sin(turn), -math.sin(turn)
            T_ego[f, :3, 3] = torch.tensor([0.3, 0.1, 0.5])
            ball = torch.tensor([0.2 + 0.08 * f, 0.05 * i, 1.5])
            picture, metres, still = look(EXO, T_exo, ball, i)
            exo.append(picture), depth.append(metres), static.append(still)
            ego.append(look(EGO, T_ego[f], ball, i)[0])
        exo, ego, depth, static = (np.stack(x) for x in (exo, ego, depth, static))
        for name, frames in (("exo", exo), ("ego", ego)):
            Path(f"{root}/{i}-{name}.mp4").write_bytes(video.encode(frames, FPS))
        arrays = [torch.from_numpy(a) for a in (exo, depth, static)]
        prior, valid = render_prior(*arrays, EXO, T_exo, EGO, T_ego)
        centres = rays.latent_centres(T_ego)
        points, points_valid = rays.exo_points(arrays[1], EXO, T_exo, centres)
        looks, looks_valid = rays.ego_rays(EGO, T_ego)
        tables["clips"].append(
            made
            | {"clip_id": key, "take_uid": take, "take_name": take, "split": "unseen" if i >= clips - held_out else "train", "chosen": True}
            | {"why": "chosen", "exo_cam": "cam01", "start": 0, "stride": 1, "frames": FRAMES, "fps": FPS, "root": root}
            | {"exo_video": f"{i}-exo.mp4", "ego_video": f"{i}-ego.mp4", "exo_camera": json.dumps(EXO.to_dict())}
            | {"exo_lens": "", "exo_crop": [0, 0, EXO.width, EXO.height], "ego_camera": json.dumps(EGO.to_dict())}
            | {
                "T_world_exo": pack(T_exo.double().numpy()),
                "T_world_ego": pack(T_ego.double().numpy()),
                "depth_path": "",
                "depth_kind": "",
                "depth_focal": 1.0,
            }
            | {"depth_files": "", "overlap": 0.5, "motion": 0.1, "blur": 0.1, "exposure": 0.1, "pose_coverage": 1.0}
        )
        ones = np.ones(FRAMES, np.float32)
        fit = {"alpha": pack(ones), "beta": pack(0 * ones), "inliers": pack(ones), "estimator": "exact", "known": 1.0}
        fit["head_scale"] = 1.4 if i else None
        tables["depth"].append({**made, "clip_id": key, "depth": pack_depth(depth), "static": pack(static), **fit})
        covered = float(valid.float().mean())
        stored = video.encode(prior.numpy(), FPS, lossless=True)
        tables["priors"].append({**made, "clip_id": key, "video": stored, "valid": pack(valid.numpy()), "coverage": covered})
        tables["directions"].append(
            {**made, "clip_id": key, "exo_points": pack(points.numpy()), "exo_valid": pack(points_valid.numpy())}
            | {"ego_rays": pack(looks.half().numpy()), "ego_valid": pack(looks_valid.numpy()), "centres": pack(centres.numpy())}
        )
        tables["captions"].append({**made, "clip_id": key, "text": f"A ball rolls along wall {i}.", "source": "template"})
    files = json.dumps({"exo.mp4": {"sha256": "ab" * 32, "bytes": 1, "mtime_ns": 0}})
    for t in range(takes):
        tables["takes"].append(
            {"take_uid": f"take{t}", "fingerprint": "f", "run_id": "run", "content": "c", "take_name": f"take{t}", "layout": "egoexo4d"}
            | {"root": root, "fps": FPS, "frames": FRAMES, "files": files}
        )
    for table, rows in tables.items():
        stored = as_stored(table, rows)
        lake.upsert(table, [{**row, "content": row["content"] or content_of(row, NO_CONTENT)} for row in stored])
    return ids


def square(lake: Lake, keys: list[str]) -> None:
    """Cut the exo views of clips to the middle, as wide as the ego view is."""
    edge = (EXO.width - EXO.height) // 2
    cut = {"exo_camera": json.dumps(EXO.crop(edge, 0, EXO.height, EXO.height).to_dict()), "exo_crop": [edge, 0, EXO.height, EXO.height]}
    rows = [{**row, **cut} for row in lake.rows("clips", keys)]
    lake.upsert("clips", [{**row, "content": content_of(row, silent("clips", row))} for row in rows])


def hands(lake: Lake, keys: list[str], seed: int = 0) -> None:
    """Two hands before each clip's head, as both cameras have them, and the exo picture."""
    from tests.kernels.hands import two

    rows = []
    for number, clip in enumerate(lake.rows("clips", keys)):
        T_world_exo, T_world_ego = (torch.from_numpy(unpack(clip[name])) for name in ("T_world_exo", "T_world_ego"))
        moves = torch.tensor([0.0, 0.02, 0.0]) * torch.arange(FRAMES)[:, None, None, None]
        ego = two(seed + number) + torch.tensor([0.1, 0.1, 0.5]) + moves
        exo = transform((inverse(T_world_exo) @ T_world_ego)[:, None], ego)
        picture = np.ascontiguousarray(views.read_exo(clip, (32, 32)).transpose(0, 3, 1, 2))
        made = {"fingerprint": "f", "run_id": "run", "clip_id": clip["clip_id"], "picture": pack(picture), "frames": FRAMES}
        joints = {name: pack(value.float().numpy()) for name, value in (("joints_exo", exo), ("joints_ego", ego))}
        rows.append({**made, **joints, "estimator": "exact"})
    lake.upsert("hands", [{**row, "content": content_of(row, NO_CONTENT)} for row in as_stored("hands", rows)])


def run_here(lake: Lake, stage: Stage, keys: list[str]) -> list[dict]:
    """A stage's worker without Ray, and its rows into the lake."""
    worker, made = stage.worker(), []
    for key in keys:
        rows, _ = read_rows(lake, stage.reads, {table: lake.version(table) for table in stage.reads}, [key], stage.where)
        result = worker(handed(stage.reads, rows[key]))
        assert not isinstance(result, Rejected)
        made += [{**r, "fingerprint": "f", "run_id": "run"} for r in finished(stage, key, result)]
    lake.upsert(stage.name, made)
    return made


def base(folder: Path, seed: int = 0) -> Path:
    """A base of stock classes in the diffusers layout with random weights, a few hundred kilobytes."""
    from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

    from egomill.models.codec import CELL, PatchCodec

    torch.manual_seed(seed)
    codec = PatchCodec(layers=0)
    codec.fit(torch.nn.functional.interpolate(torch.randn(2000, 3, 3), CELL // 3, mode="linear").movedim(1, -1).flatten(1))
    transformer = WanTransformer3DModel(patch_size=(1, 2, 2), in_channels=36, out_channels=16, **TRANSFORMER)
    return _written(folder, {"transformer": transformer, "vae": codec, "scheduler": FlowMatchEulerDiscreteScheduler()}, {})


def wan22(folder: Path, seed: int = 0) -> Path:
    """Wan 2.2 TI2V-5B's classes, layout and configuration, as its release has them, with random weights: 48 channels, cells of 4×16×16."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel

    torch.manual_seed(seed)
    codec = AutoencoderKLWan(
        base_dim=8, decoder_base_dim=8, z_dim=48, dim_mult=[1, 2, 4, 4], num_res_blocks=1, is_residual=True, patch_size=2,
        in_channels=12, out_channels=12, scale_factor_spatial=16, scale_factor_temporal=4, latents_mean=[0.1] * 48, latents_std=[0.5] * 48,
    )  # fmt: skip
    parts = {
        "transformer": WanTransformer3DModel(patch_size=(1, 2, 2), in_channels=48, out_channels=48, **TRANSFORMER),
        "vae": codec,
        "scheduler": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0),
    }
    told = {"_class_name": "WanPipeline", "boundary_ratio": None, "expand_timesteps": True, "transformer_2": [None, None]}
    return _written(folder, parts, told)


TRANSFORMER: dict = {"num_attention_heads": 2, "attention_head_dim": 16, "text_dim": 32, "freq_dim": 32, "ffn_dim": 64, "num_layers": 2}


def _written(folder: Path, parts: dict, told: dict) -> Path:
    """A base in the diffusers layout, with a text encoder beside its parts."""
    from transformers import ByT5Tokenizer, UMT5Config, UMT5EncoderModel

    encoder = UMT5EncoderModel(UMT5Config(vocab_size=384, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    index = dict(told)
    for name, part in {**parts, "text_encoder": encoder, "tokenizer": ByT5Tokenizer()}.items():
        part.save_pretrained(folder / name)
        index[name] = ["transformers" if name in ("text_encoder", "tokenizer") else "diffusers", type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
