"""A simulated take asked for as a stranger would ask: its exo video, lens, depth and head poses as single files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from egomill.kernels.cameras import Camera, T_shown_sensor
from egomill.kernels.poses import inverse
from egomill.models import lora
from egomill.schemas.config import Profile
from egomill.schemas.tensors import unpack
from egomill.tasks.media.sources import discover
from egomill.tasks.networks import bases
from egomill.tasks.stages import clips, takes
from egomill.tasks.training import adapters


def first_clip(root: Path, profile: Profile) -> tuple[dict, dict]:
    """The take in a folder and its first chosen clip, made by the stages' workers."""
    (item,) = discover([root])
    take = takes.stage(profile).worker()(item.row)
    assert isinstance(take, dict), take
    rows = clips.stage(profile).worker()({"takes": take})
    assert isinstance(rows, list), rows
    return take, next(row for row in rows if row["chosen"])


def write(folder: Path, take: dict, clip: dict) -> dict:
    """What a request takes, in the world of the take: path, lenses and pose as files in `folder`, video and depth where they lie."""
    exo, ego = json.loads(take["exo"])[clip["exo_cam"]], json.loads(take["ego_camera"])
    T = torch.from_numpy(unpack(take["T_world_ego"])) @ inverse(T_shown_sensor(Camera.from_dict(ego).turns))
    known = torch.isfinite(T).all(dim=-1).all(dim=-1).nonzero().flatten().tolist()
    (folder / "path.txt").write_text(tum([n / take["fps"] for n in known], T[known]))
    for name, value in (("exo.json", exo["camera"]), ("ego.json", ego), ("pose.json", exo["T_world_exo"])):
        (folder / name).write_text(json.dumps(value))
    root = Path(take["root"])
    return {
        "exo": root / exo["video"],
        "trajectory": folder / "path.txt",
        "camera": folder / "exo.json",
        "ego_camera": folder / "ego.json",
        "exo_pose": folder / "pose.json",
        "depth": root / exo["depth"],
        "depth_focal": exo["depth_focal"] if exo["depth_kind"] == "pinhole-z" else None,
        "start": clip["start"] / take["fps"],
    }


def adapter(folder: Path, profile: Profile) -> Path:
    """A small adapter for the profile's base, of random weights, conditioned otherwise than the profile says."""
    transformer = bases.load(profile.model, "transformer").transformer
    torch.manual_seed(3)
    for name, parameter in lora.add(transformer, 4, 4, profile.train.targets).items():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    about = {**adapters.about(profile, bases.revision(profile.model), 1, "r"), "gga": "off", "mask": "paper"}
    adapters.save(lora.state(transformer), lora.config(transformer), {}, folder, about)
    return folder


def tum(seconds: list[float], T: torch.Tensor) -> str:
    """Poses [N, 4, 4] in TUM's format, with all digits."""
    quaternions = Rotation.from_matrix(T[:, :3, :3].numpy()).as_quat()
    rows = np.concatenate([np.array(seconds)[:, None], T[:, :3, 3].numpy(), quaternions], axis=1)
    return "# timestamp tx ty tz qx qy qz qw\n" + "".join(" ".join(map(repr, row)) + "\n" for row in rows.tolist())
