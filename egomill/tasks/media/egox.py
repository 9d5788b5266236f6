"""A take of EgoX's examples, as the rest sees it: one exo camera, the typical Aria lens, 49 of 50 frames."""

from __future__ import annotations

from pathlib import Path

from egomill.kernels.cameras import GOPRO_TYPICAL
from egomill.schemas.config import Ingest
from egomill.tasks.media import pictures
from egomill.tasks.media.annotations import check_frames, check_reach, ego_lens, egox_exo, fixed_pose, lens_of
from egomill.tasks.media.checked import agree, check_steps, exo_entry, head, known
from egomill.tasks.media.untrusted import Bad, inside, regular


def take(row: dict, settings: Ingest) -> dict:
    """An entry of meta.json. Bad or VideoError where it cannot be used."""
    root, entry = Path(row["root"]), row["entry"]
    if not entry.get("ego_gt_path"):
        raise Bad("no_ego_video", "no ego_gt_path")
    allow = settings.allow
    paths = {k: entry[k] for k in ("exo_path", "ego_gt_path", "ego_prior_path") if entry.get(k)}
    for key, reason in (("exo_path", "no_exo_video"), ("ego_gt_path", "no_ego_video")):
        if not inside(root, paths[key], allow).exists():
            raise Bad(reason, f"{paths[key]}: neither there below {root.name} nor without the folders that it begins with")
    exo, ego = (pictures.inspect(regular(root, paths[key], allow)) for key in ("exo_path", "ego_gt_path"))
    agree(settings, {paths["exo_path"]: exo, paths["ego_gt_path"]: ego})
    frames = min(exo.frames, ego.frames)
    listed = entry.get("ego_extrinsics")
    if not isinstance(listed, list) or not listed:
        raise Bad("no_camera_pose", "no ego_extrinsics")
    frames = min(frames, max(len(listed), frames - settings.frame_slack))  # 50 frames are stored, 49 count
    T_world_ego = head(settings, dict(enumerate(listed[: frames + settings.frame_slack + 1])), frames)
    lens = lens_of(entry, "exo", list(GOPRO_TYPICAL.params[4:]))
    camera = egox_exo(lens, exo)
    depth = next((str(Path(file).parent) for file in row["files"] if file.endswith(".npy")), None)
    if depth:
        check_frames(root / depth, frames)
    told = float(entry["camera_intrinsics"][0][0]) / lens.params[0]  # EgoX gave its networks the intrinsics of the undistorted pictures
    T_world_exo = fixed_pose(entry.get("camera_extrinsics"), "exo")
    view = exo_entry(paths["exo_path"], camera, T_world_exo, depth, "pinhole-z" if depth else None, told)
    ego_camera, lens_source = ego_lens(root, None, ego)
    check_reach(known(T_world_ego), {"exo": view})
    check_steps(settings, T_world_ego)
    return {
        "fps": exo.fps,
        "frames": frames,
        "ego_video": paths["ego_gt_path"],
        "ego_camera": ego_camera,
        "lens_source": lens_source,
        "T_world_ego": T_world_ego,
        "exo": {"exo": view},
        "prior_video": paths.get("ego_prior_path", ""),
        "left_out": {},
        "files": row["files"],
    }
