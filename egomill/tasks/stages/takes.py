"""A take as the rest sees it: cameras, poses and videos that were checked, whatever layout they came in.

Every fault has a name. What can be told apart is not guessed at: a video that is cut short, a pose that is no rotation or a lens that
cannot be rejects the take, and the row says which file, camera or frame. An exo camera of which any of this is true is left out alone, and
the row says why; with none left the take is rejected. Cameras of the annotation whose video was not downloaded do not count.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from egomill.kernels import poses
from egomill.kernels.cameras import GOPRO_TYPICAL, Camera
from egomill.schemas.config import Ingest, Profile
from egomill.schemas.fingerprint import digest, file_sha256, folder_sha256
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import pack
from egomill.tasks.lake.stage import Stage
from egomill.tasks.lake.watch import lasts
from egomill.tasks.media import h2o, pictures, video
from egomill.tasks.media.annotations import (
    annotation_of,
    by_frame,
    check_frames,
    check_lens,
    check_millimetres,
    check_range,
    check_reach,
    check_size,
    ego_lens,
    egox_exo,
    fixed_pose,
    lens_of,
    or_none,
)  # fmt: skip
from egomill.tasks.media.sources import EGO_VIDEO, EXO_VIDEO
from egomill.tasks.media.untrusted import (
    Bad,
    inside,
    regular,
    stat_signature,
)

log = logging.getLogger(__name__)
MAX_TURN = 1.0  # rad between two frames; a head turns by 0.3 at most at 30 fps
BESIDE = 1.0  # seconds by which what is told of a take may lie outside of it


def stage(profile: Profile) -> Stage:
    """Takes from discovered items (`sources.discover`)."""
    # Where links may lead makes no row other than it is: discovery tells which takes it opens or closes.
    return Stage("takes", {}, profile.ingest.model_dump(exclude={"allow"}), partial(Reader, profile.ingest))


class Reader:
    """An item's row in, a row of `takes` or a named rejection out."""

    def __init__(self, settings: Ingest) -> None:
        self.settings = settings

    def __call__(self, row: dict) -> dict | Rejected:
        try:
            if row["fault"]:
                raise Bad(*row["fault"])
            before = stat_signature(Path(row["root"]), row["files"])
            layouts = {"egoexo4d": self._release, "egox": self._egox, "h2o": self._h2o}
            take = self._finish(row, layouts[row["layout"]](row))
            used = json.loads(take["files"])
            changed = [a[0] for a in stat_signature(Path(row["root"]), used) if a not in before]
            if changed:
                raise Bad("changed_while_read", ", ".join(changed))
            for name, why in json.loads(take["left_out"]).items():
                log.warning("%s is left out: %s", name, ": ".join(why))
            return take
        except Bad as bad:
            return bad.rejected
        except video.VideoError as error:
            return Rejected(error.reason, str(error))

    # -- layouts ---------------------------------------------------------------------------------------------------

    def _release(self, row: dict) -> dict:
        """The take by the smallest size of its videos at which all are there; where such a size turns out to be spoilt, by the next."""
        sizes: dict[str, dict[str, str]] = {}  # folder -> {camera: video}, the smallest first
        for file in row["files"]:
            if match := EXO_VIDEO.fullmatch(Path(file).name) or EGO_VIDEO.fullmatch(Path(file).name):
                sizes.setdefault(str(Path(file).parent), {})[match[1]] = file
        if not sizes:
            raise Bad("no_exo_video", row["folder"])
        annotation = annotation_of(Path(row["root"]), row, self.settings.allow)
        told = {
            folder: {cam for cam, file in videos.items() if cam in annotation and file not in row["barred"]}
            for folder, videos in sizes.items()
        }

        def whole(folder: str) -> tuple[bool, int]:
            return any(map(_is_ego, told[folder])), len(told[folder])

        best: dict | None = None
        passed: dict[str, Rejected] = {}
        for folder in sorted(sizes, key=whole, reverse=True):  # stable: of such as are alike the smallest
            try:
                take = self._at_size(row, sizes[folder], annotation)
            except Bad as bad:
                passed[folder] = bad.rejected
            except video.VideoError as error:
                passed[folder] = Rejected(error.reason, str(error))
            else:
                if best is None or len(take["exo"]) > len(best["exo"]):
                    best = take
                if not take["left_out"]:
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

    def _at_size(self, row: dict, videos: dict[str, str], annotation: dict[str, dict]) -> dict:
        """The take by the `videos`, {camera: path}, of one size."""
        root, allow = Path(row["root"]), self.settings.allow
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
        infos, lenses = self._lenses(row, videos, annotation, (videos[wearer], ego), left)
        frames = min(info.frames for info in (ego, *infos.values()))
        exo = {}
        depths = {Path(file).stem: file for file in row["files"] if file.endswith(".npz")}
        for cam, lens in lenses.items():
            with _leaving_out(left, cam):
                depth = depths.get(cam)
                if depth in row["barred"]:
                    raise Bad(*row["barred"][depth])
                if depth:
                    check_range(regular(root, depth, allow), infos[cam], frames, self.settings.frame_slack)
                exo[cam] = _view(videos[cam], *lens, depth, "range" if depth else None)
        T_world_ego = self._head(by_frame(annotation[wearer].get("camera_extrinsics"), wearer), frames) if exo else np.empty((0, 4, 4))
        for cam in list(exo):
            with _leaving_out(left, cam):
                check_reach(_known(T_world_ego), {cam: exo[cam]})
        exo = {cam: view for cam, view in exo.items() if cam not in left}
        if not exo:
            raise _none_left(left)
        self._check_steps(T_world_ego)
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
        self, row: dict, videos: dict[str, str], annotation: dict[str, dict], ego: tuple[str, video.VideoInfo], left: dict[str, list[str]]
    ) -> tuple[dict[str, video.VideoInfo], dict[str, tuple[Camera, np.ndarray]]]:
        """Each exo camera's video as it is, and its lens at that size with its pose; what cannot be used goes into `left` instead."""
        infos: dict[str, video.VideoInfo] = {}
        lenses: dict[str, tuple[Camera, np.ndarray]] = {}
        for cam in sorted(cam for cam in videos if not _is_ego(cam)):
            with _leaving_out(left, cam):
                if cam not in annotation:
                    raise Bad("no_camera_pose", f"{row['pose']} does not pose it")
                if videos[cam] in row["barred"]:
                    raise Bad(*row["barred"][videos[cam]])
                info = pictures.inspect(regular(Path(row["root"]), videos[cam], self.settings.allow))
                self._agree(dict((ego, (videos[cam], info))))
                lens = lens_of(annotation[cam], cam, annotation[cam].get("distortion_coeffs")).rescale(info.width, info.height)
                if abs(info.width / info.height / (16 / 9) - 1) > 0.02:
                    raise Bad("calibration_invalid", f"{cam}: the video is {info.width}x{info.height}, the calibration is 16:9")
                lenses[cam] = check_lens(lens, videos[cam]), fixed_pose(annotation[cam].get("camera_extrinsics"), cam)
                infos[cam] = info
        return infos, lenses

    def _egox(self, row: dict) -> dict:
        root, entry = Path(row["root"]), row["entry"]
        if not entry.get("ego_gt_path"):
            raise Bad("no_ego_video", "no ego_gt_path")
        allow = self.settings.allow
        paths = {k: entry[k] for k in ("exo_path", "ego_gt_path", "ego_prior_path") if entry.get(k)}
        for key, reason in (("exo_path", "no_exo_video"), ("ego_gt_path", "no_ego_video")):
            if not inside(root, paths[key], allow).exists():
                raise Bad(reason, f"{paths[key]}: neither there below {root.name} nor without the folders that it begins with")
        exo, ego = (pictures.inspect(regular(root, paths[key], allow)) for key in ("exo_path", "ego_gt_path"))
        self._agree({paths["exo_path"]: exo, paths["ego_gt_path"]: ego})
        frames = min(exo.frames, ego.frames)
        listed = entry.get("ego_extrinsics")
        if not isinstance(listed, list) or not listed:
            raise Bad("no_camera_pose", "no ego_extrinsics")
        frames = min(frames, max(len(listed), frames - self.settings.frame_slack))  # 50 frames are stored, 49 count
        T_world_ego = self._head(dict(enumerate(listed[: frames + self.settings.frame_slack + 1])), frames)
        lens = lens_of(entry, "exo", list(GOPRO_TYPICAL.params[4:]))
        camera = egox_exo(lens, exo)
        depth = next((str(Path(file).parent) for file in row["files"] if file.endswith(".npy")), None)
        if depth:
            check_frames(root / depth, frames)
        told = float(entry["camera_intrinsics"][0][0]) / lens.params[0]  # EgoX gave its networks the intrinsics of the undistorted pictures
        T_world_exo = fixed_pose(entry.get("camera_extrinsics"), "exo")
        view = _view(paths["exo_path"], camera, T_world_exo, depth, "pinhole-z" if depth else None, told)
        ego_camera, lens_source = ego_lens(root, None, ego)
        check_reach(_known(T_world_ego), {"exo": view})
        self._check_steps(T_world_ego)
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

    def _h2o(self, row: dict) -> dict:
        root, cams, allow = Path(row["root"]), row["entry"], self.settings.allow
        if h2o.EGO not in cams or not (inside(root, cams[h2o.EGO], allow) / "rgb").is_dir():
            raise Bad("no_ego_video", f"{row['folder']}: no {h2o.EGO}/rgb")
        paths = {cam: inside(root, place, allow) for cam, place in cams.items()}
        infos = {h2o.EGO: pictures.inspect(paths[h2o.EGO] / "rgb")}
        ego_camera = h2o.intrinsics(paths[h2o.EGO] / "cam_intrinsics.txt")
        check_size(ego_camera, infos[h2o.EGO], cams[h2o.EGO])
        exo, left = {}, {}
        for cam in sorted(paths.keys() - {h2o.EGO}):
            with _leaving_out(left, cam):
                if not (paths[cam] / "rgb").is_dir():
                    raise Bad("no_exo_video", f"{cams[cam]}: no rgb")
                info = pictures.inspect(paths[cam] / "rgb")
                self._agree({h2o.EGO: infos[h2o.EGO], cam: info})
                camera = h2o.intrinsics(paths[cam] / "cam_intrinsics.txt")
                check_size(camera, info, cams[cam])
                T_world_exo = fixed_pose({str(f): T for f, T in h2o.extrinsics(paths[cam] / "cam_pose").items()}, cam)
                depth = f"{cams[cam]}/depth" if (paths[cam] / "depth").is_dir() else None
                if depth:
                    check_millimetres(root / depth, info)
                exo[cam], infos[cam] = _view(f"{cams[cam]}/rgb", camera, T_world_exo, depth, "z-mm" if depth else None), info
        frames = min(info.frames for info in infos.values())
        T_world_ego = self._head(h2o.extrinsics(paths[h2o.EGO] / "cam_pose"), frames)
        for cam in list(exo):
            with _leaving_out(left, cam):
                check_reach(_known(T_world_ego), {cam: exo[cam]})
        exo = {cam: view for cam, view in exo.items() if cam not in left}
        if not exo:
            raise _none_left(left or {"": ["no_exo_video", row["folder"]]})
        self._check_steps(T_world_ego)
        used = (f"{cams[h2o.EGO]}/", *(f"{cams[cam]}/" for cam in exo))
        return {
            "fps": h2o.FPS,
            "frames": frames,
            "ego_video": f"{cams[h2o.EGO]}/rgb",
            "ego_camera": ego_camera,
            "lens_source": "calibration file",
            "T_world_ego": T_world_ego,
            "exo": exo,
            "prior_video": "",
            "left_out": left,
            "files": [file for file in row["files"] if file.startswith(used)],
        }

    # -- what all share --------------------------------------------------------------------------------------------

    def _finish(self, row: dict, take: dict) -> dict:
        root = Path(row["root"])
        files = {}
        for name, size, changed in stat_signature(root, take["files"]):
            path = inside(root, name, self.settings.allow)
            digest_ = folder_sha256(path) if path.is_dir() else file_sha256(regular(root, name, self.settings.allow))
            files[name] = {"sha256": digest_, "bytes": size, "mtime_ns": changed}
        _check_times([d["timestamp"] for d in row["descriptions"]], take["frames"] / take["fps"])
        known = np.isfinite(take["T_world_ego"]).all(axis=(1, 2))
        facts = {name: row[name] for name in ("take_name", "layout", "root", "split", "task")}
        out = {
            **facts,
            **take,
            "ego_camera": json.dumps(take["ego_camera"].to_dict()),
            "T_world_ego": pack(take["T_world_ego"]),
            "pose_coverage": float(known.mean()),
            "exo": json.dumps(take["exo"]),
            "left_out": json.dumps(take["left_out"]),
            "files": json.dumps(files),
            "descriptions": json.dumps(row["descriptions"]),
        }
        poses_told = np.where(known[:, None, None], take["T_world_ego"], 0).tolist()
        used = {k: v for k, v in out.items() if k not in ("T_world_ego", "files", "left_out")}
        out["content"] = digest(used, poses_told, {name: file["sha256"] for name, file in files.items()})
        return {"take_uid": row["take_uid"], **out}

    def _agree(self, infos: dict[str, video.VideoInfo]) -> None:
        """Bad where two videos' lengths differ by more than the slack, or their rates by more than 1 %."""
        lengths = {Path(name).name: info.frames for name, info in infos.items()}
        rates = {Path(name).name: info.fps for name, info in infos.items()}
        lasts(max(info.frames / info.fps for info in infos.values()))
        if max(lengths.values()) - min(lengths.values()) > self.settings.frame_slack:
            raise Bad("frame_counts_disagree", json.dumps(lengths))
        if max(rates.values()) > 1.01 * min(rates.values()):
            raise Bad("frame_counts_disagree", "rates " + json.dumps(rates))

    def _head(self, extrinsics: dict[int, Any], frames: int) -> np.ndarray:
        """T_world_ego [frames, 4, 4] from world-to-camera matrices by frame; short gaps interpolated, NaN where unknown."""
        settings = self.settings
        if extrinsics and max(extrinsics) >= frames + settings.frame_slack:
            raise Bad("poses_disagree", f"a pose for frame {max(extrinsics)}, the videos have {frames}")
        T = torch.full((frames, 4, 4), torch.nan, dtype=torch.float64)
        for frame, value in extrinsics.items():
            matrix = or_none(value, frame)
            if matrix is None or frame >= frames:
                continue
            T_ego_world = poses.from_rt(torch.from_numpy(matrix))
            if not poses.is_rigid(T_ego_world):
                raise Bad("rotation_invalid", f"ego, frame {frame}")
            T[frame] = poses.inverse(T_ego_world)
        T = poses.fill_gaps(T, settings.max_pose_gap)
        known = torch.isfinite(T).all(dim=-1).all(dim=-1)
        if known.sum() < settings.min_pose_coverage * (frames - settings.frame_slack):  # the release ends two poses early
            last = int(known.nonzero().max()) + 1 if known.any() else 0
            inner = known[:last].double().mean() if last else 0.0
            reason = "poses_disagree" if inner >= settings.min_pose_coverage else "pose_gaps"
            raise Bad(reason, f"ego poses for {int(known.sum())} of {frames} frames, the last for frame {last - 1}")
        return T.numpy()

    def _check_steps(self, T_world_ego: np.ndarray) -> None:
        leaps = poses.jumps(torch.from_numpy(T_world_ego), self.settings.max_step, MAX_TURN).nonzero().flatten()
        if len(leaps):
            raise Bad("pose_jumps", f"ego, between frames {int(leaps[0]) - 1} and {int(leaps[0])}; {len(leaps)} in all")


# -- pieces --------------------------------------------------------------------------------------------------------------


@contextmanager
def _leaving_out(left: dict[str, list[str]], cam: str):
    """What is wrong with one exo camera keeps it out, and no more."""
    try:
        yield
    except Bad as bad:
        left[cam] = [bad.rejected.reason, bad.rejected.detail]
    except video.VideoError as error:
        left[cam] = [error.reason, str(error)]


def _none_left(left: dict[str, list[str]]) -> Bad:
    """What a take is rejected with whose exo cameras are all left out: the reason of most."""
    reason = Counter(reason for reason, _ in left.values()).most_common(1)[0][0]
    return Bad(reason, "; ".join(f"{cam}: {'' if why == reason else why + ': '}{detail}" for cam, (why, detail) in left.items()))


def _is_ego(camera: str) -> bool:
    return camera.startswith("aria")


def _known(T_world_ego: np.ndarray) -> np.ndarray:
    """Where the head is [n, 3], in the frames of which that is known."""
    return T_world_ego[np.isfinite(T_world_ego).all(axis=(1, 2)), :3, 3]


def _view(path: str, camera: Camera, T_world_exo: np.ndarray, depth: str | None, kind: str | None, told: float = 1.0) -> dict:
    check_lens(camera, path)
    depth_is = {"depth": depth, "depth_kind": kind, "depth_focal": told}
    return {"video": path, "camera": camera.to_dict(), "T_world_exo": T_world_exo.tolist(), **depth_is}


def _check_times(timestamps: list[float], seconds: float) -> None:
    """That what annotators told lies within the take; a stray one does not matter, since no window takes it."""
    outside = [t for t in timestamps if not -BESIDE <= t <= seconds + BESIDE]
    if 2 * len(outside) > len(timestamps):
        raise Bad("descriptions_invalid", f"{len(outside)} of {len(timestamps)} lie outside of {seconds:.1f} s, one at {outside[0]:.6g} s")
