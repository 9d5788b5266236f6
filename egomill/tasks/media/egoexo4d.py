"""A take in the layout of the Ego-Exo4D release, as the rest sees it: the smallest size of its videos at which all are there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from egomill.kernels.cameras import Camera
from egomill.schemas.config import Ingest
from egomill.schemas.outcome import Rejected
from egomill.tasks.media import pictures, video
from egomill.tasks.media.annotations import annotation_of, by_frame, check_lens, check_range, ego_lens, fixed_pose, lens_of
from egomill.tasks.media.checked import agree, exo_entry, head, leaving_out, seen_by
from egomill.tasks.media.sources import EGO_VIDEO, EXO_VIDEO
from egomill.tasks.media.untrusted import Bad, regular


def take(row: dict, settings: Ingest) -> dict:
    """The take by the smallest size of its videos at which all are there; where such a size turns out to be spoilt, by the next."""
    sizes: dict[str, dict[str, str]] = {}  # folder -> {camera: video}, the smallest first
    for file in row["files"]:
        if match := EXO_VIDEO.fullmatch(Path(file).name) or EGO_VIDEO.fullmatch(Path(file).name):
            sizes.setdefault(str(Path(file).parent), {})[match[1]] = file
    if not sizes:
        raise Bad("no_exo_video", row["folder"])
    annotation = annotation_of(Path(row["root"]), row, settings.allow)
    told = {
        folder: {cam for cam, file in videos.items() if cam in annotation and file not in row["barred"]} for folder, videos in sizes.items()
    }

    def whole(folder: str) -> tuple[bool, int]:
        return any(map(_is_ego, told[folder])), len(told[folder])

    best: dict | None = None
    passed: dict[str, Rejected] = {}
    for folder in sorted(sizes, key=whole, reverse=True):  # stable: of such as are alike the smallest
        try:
            found = _at_size(settings, row, sizes[folder], annotation)
        except Bad as bad:
            passed[folder] = bad.rejected
        except video.VideoError as error:
            passed[folder] = Rejected(error.reason, str(error))
        else:
            if best is None or len(found["exo"]) > len(best["exo"]):
                best = found
            if not found["left_out"]:
                break
    if best is None:
        first, *others = passed.items()
        told_of = [first[1].detail, *(f"{folder}: {why.reason}: {why.detail}" for folder, why in others)]
        raise Bad(first[1].reason, "; ".join(told_of))
    chosen = str(Path(best["ego_video"]).parent)
    everything = set().union(*told.values())
    for folder in list(sizes)[: list(sizes).index(chosen)]:
        lacks = ", ".join(sorted(everything - told[folder])) or "nothing, but not all of it can be used"
        best["left_out"][folder] = ["no_exo_video" if whole(folder)[0] else "no_ego_video", f"{chosen} is taken: here lacks {lacks}"]
    return best


def _at_size(settings: Ingest, row: dict, videos: dict[str, str], annotation: dict[str, dict]) -> dict:
    """The take by the `videos`, {camera: path}, of one size."""
    root, allow = Path(row["root"]), settings.allow
    folder = str(Path(next(iter(videos.values()))).parent)
    wearers, cams = sorted(filter(_is_ego, videos)), sorted(cam for cam in videos if not _is_ego(cam))
    if not cams:
        raise Bad("no_exo_video", folder)
    if not wearers:
        raise Bad("no_ego_video", f"{folder}: no aria*_214-1.mp4")
    wearer = next((aria for aria in wearers if aria in annotation), None)
    if wearer is None:
        raise Bad("no_camera_pose", f"{row['pose']} poses none of {', '.join(wearers)}")
    if videos[wearer] in row["barred"]:
        raise Bad(*row["barred"][videos[wearer]])
    ego = pictures.inspect(regular(root, videos[wearer], allow))
    calibration = next((file for file in row["files"] if file.endswith("/online_calibration.jsonl")), None)
    ego_camera, lens_source = ego_lens(root, calibration, ego, allow)

    left: dict[str, list[str]] = {}
    infos, lenses = _lenses(settings, row, videos, annotation, (videos[wearer], ego), left)
    frames = min(info.frames for info in (ego, *infos.values()))
    exo = {}
    depths = {Path(file).stem: file for file in row["files"] if file.endswith(".npz")}
    for cam, lens in lenses.items():
        with leaving_out(left, cam):
            depth = depths.get(cam)
            if depth in row["barred"]:
                raise Bad(*row["barred"][depth])
            if depth:
                check_range(regular(root, depth, allow), infos[cam], frames, settings.frame_slack)
            exo[cam] = exo_entry(videos[cam], *lens, depth, "range" if depth else None)
    T_world_ego = head(settings, by_frame(annotation[wearer].get("camera_extrinsics"), wearer), frames) if exo else np.empty((0, 4, 4))
    exo = seen_by(settings, exo, left, T_world_ego)
    depth_files = [view["depth"] for view in exo.values() if view["depth"]]
    return {
        "fps": ego.fps,
        "frames": frames,
        "ego_video": videos[wearer],
        "ego_camera": ego_camera,
        "lens_source": lens_source,
        "T_world_ego": T_world_ego,
        "exo": exo,
        "prior_video": "",
        "left_out": left,
        "files": [videos[wearer], *(videos[cam] for cam in exo), *([calibration] if calibration else []), row["pose"], *depth_files],
    }


def _lenses(
    settings: Ingest,
    row: dict,
    videos: dict[str, str],
    annotation: dict[str, dict],
    ego: tuple[str, video.VideoInfo],
    left: dict[str, list[str]],
) -> tuple[dict[str, video.VideoInfo], dict[str, tuple[Camera, np.ndarray]]]:
    """Each exo camera's video as it is, and its lens at that size with its pose; what cannot be used goes into `left` instead."""
    infos: dict[str, video.VideoInfo] = {}
    lenses: dict[str, tuple[Camera, np.ndarray]] = {}
    for cam in sorted(cam for cam in videos if not _is_ego(cam)):
        with leaving_out(left, cam):
            if cam not in annotation:
                raise Bad("no_camera_pose", f"{row['pose']} does not pose it")
            if videos[cam] in row["barred"]:
                raise Bad(*row["barred"][videos[cam]])
            info = pictures.inspect(regular(Path(row["root"]), videos[cam], settings.allow))
            agree(settings, dict((ego, (videos[cam], info))))
            lens = lens_of(annotation[cam], cam, annotation[cam].get("distortion_coeffs")).rescale(info.width, info.height)
            if abs(info.width / info.height / (16 / 9) - 1) > 0.02:
                raise Bad("calibration_invalid", f"{cam}: the video is {info.width}x{info.height}, the calibration is 16:9")
            lenses[cam] = check_lens(lens, videos[cam]), fixed_pose(annotation[cam].get("camera_extrinsics"), cam)
            infos[cam] = info
    return infos, lenses


def _is_ego(camera: str) -> bool:
    return camera.startswith("aria")
