"""Simulated takes, in the release layout of Ego-Exo4D: videos, poses, calibration, descriptions, and the true depth beside them; or in
H2O's (scenes/h2o.py).

Take i depends on (seed, i, seconds, fps) alone, so a larger number of takes later leaves the earlier ones as they are, byte for byte. A
take is written under `.partial/` and renamed last: a folder in takes/ is complete.
"""

import shutil
import uuid
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from egomill.kernels.cameras import ARIA_RGB_TYPICAL, GOPRO_TYPICAL, Camera, aria_sensor_to_stored
from egomill.scenes import h2o, release
from egomill.scenes.clip import DISC
from egomill.scenes.render import FACES, lattice, picture, render
from egomill.scenes.world import EXO, Scene, make_scene

EXO_SIZE, EGO_SIZE = (796, 448), 448
_X264 = {"preset": "veryfast", "crf": "18", "threads": "1", "x264-params": "mbtree=0"}
_SPACE = uuid.UUID("6f0c8c1e-7a53-5d0e-9b57-3d1f0a1c5e11")
_README = """True depth of the simulated takes, one <take>/<camera>.npz an exo camera; no part of the Ego-Exo4D layout.
static_depth   float32 [H, W]     of what never moves; 0 where the lens sees nothing
dynamic_depth  float16 [F, H, W]  of the person and of what is handled; inf elsewhere
Kind: distance along the ray, metres. Depth = minimum of both; dynamic = dynamic_depth < static_depth.
"""


def simulate(
    out: Path,
    takes: int,
    seed: int,
    seconds: float = 3.0,
    fps: int = 30,
    workers: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
    layout: str = "egoexo4d",
) -> list[dict]:
    """Write takes 0..takes-1 of a seed under `out`; complete ones are kept as they are. Returns what is told of each: the records of
    takes.json, or, in layout "h2o", whose takes have no index, name, folder and frames.

    progress: called with (done, takes, take name). ValueError on an empty request, an unknown layout, or when `out` holds other takes
    under the same names.
    """
    if layout not in WRITERS:
        raise ValueError(f"no layout {layout!r}; known: {', '.join(WRITERS)}")
    write = WRITERS[layout]
    if takes < 1 or round(seconds * fps) <= release.TRAILING or workers < 1:
        raise ValueError(f"nothing to simulate: {takes} takes of {seconds} s at {fps} fps by {workers} workers")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    entries = []
    if workers == 1:
        for index in range(takes):
            entries.append(write(out, seed, index, seconds, fps))
            if progress:
                progress(len(entries), takes, entries[-1]["take"]["take_name"])
    else:
        with ProcessPoolExecutor(min(workers, takes), mp_context=get_context("spawn"), initializer=one_thread) as pool:
            jobs = [pool.submit(write, out, seed, index, seconds, fps) for index in range(takes)]
            for job in as_completed(jobs):
                entries.append(job.result())
                if progress:
                    progress(len(entries), takes, entries[-1]["take"]["take_name"])
    shutil.rmtree(out / ".partial", ignore_errors=True)
    entries.sort(key=lambda entry: entry["index"])
    if layout == "h2o":
        return [entry["take"] for entry in entries]
    (out / "sidecar").mkdir(exist_ok=True)
    (out / "sidecar" / "README.txt").write_text(_README)
    return release.write_indices(out, entries)


def write_take(out: Path, seed: int, index: int, seconds: float = 3.0, fps: int = 30) -> dict:
    """Write one take unless it is there already; returns {"index", "split", "take", "descriptions"} for the listings.

    ValueError when the take's folder belongs to another seed, duration or frame rate.
    """
    rng = np.random.default_rng([seed, index, 5])
    frames = round(seconds * fps)
    scene = make_scene(int(rng.integers(2**31)), seconds + 1.0, (0.0, seconds))
    name = f"sim_{scene.kind.replace(' ', '')}_{index:04d}_{rng.integers(1, 7)}"
    uid = str(uuid.uuid5(_SPACE, f"{seed}/{index}/{frames}/{fps}"))
    split = release.split_of(index)
    exo_sensors, ego_sensor = _lenses(rng)
    entry = {
        "index": index,
        "split": split,
        "take": release.take_record(scene, name, uid, EXO, frames, fps),
        "descriptions": release.take_descriptions(scene, uid, seconds),
    }
    folder = out / "takes" / name
    pose_file = out / "annotations" / "ego_pose" / split / "camera_pose" / f"{uid}.json"
    if folder.exists():
        if not pose_file.exists():
            raise ValueError(f"take {name}: {folder} was written with another seed, duration or frame rate: name another folder")
        return entry

    part = out / ".partial" / name
    shutil.rmtree(part, ignore_errors=True)
    videos, sidecar = part / "take" / release.FOLDER, part / "sidecar"
    for path in (videos, sidecar, part / "take" / "trajectory"):
        path.mkdir(parents=True)
    moments = [scene.moment(frame / fps) for frame in range(frames)]
    for cam in EXO:
        _film_exo(
            scene, moments, exo_sensors[cam].rescale(*EXO_SIZE), scene.T_world_exo[cam], fps, videos / f"{cam}.mp4", sidecar / f"{cam}.npz"
        )
    _film_ego(scene, moments, aria_sensor_to_stored(ego_sensor, EGO_SIZE), fps, videos / f"{release.EGO}_{release.RGB_STREAM}.mp4")
    calibration = release.online_calibration(ego_sensor, frames, fps, serial=f"sim{seed}-{index}")
    (part / "take" / "trajectory" / "online_calibration.jsonl").write_text(calibration)
    T_world_ego = np.stack([moment.T_world_ego for moment in moments])
    release.write_json(pose_file, release.camera_pose(name, uid, exo_sensors, scene.T_world_exo, T_world_ego))
    (out / "sidecar").mkdir(exist_ok=True)
    shutil.rmtree(out / "sidecar" / name, ignore_errors=True)
    sidecar.rename(out / "sidecar" / name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    (part / "take").rename(folder)
    shutil.rmtree(part)
    return entry


def load_depth(sidecar: Path) -> tuple[np.ndarray, np.ndarray]:
    """A sidecar's depth float32 [F, H, W] (metres along the ray, 0 = unknown) and dynamic mask bool [F, H, W]."""
    with np.load(sidecar, allow_pickle=False) as arrays:
        static, moving = arrays["static_depth"], arrays["dynamic_depth"].astype(np.float32)
    dynamic = moving < static
    return np.where(dynamic, moving, static), dynamic


def _lenses(rng: np.random.Generator) -> tuple[dict[str, Camera], Camera]:
    """Four exo lenses at 3840x2160 and the head's at 2880x2880, each a little different, as cameras are."""
    exo = {}
    for cam in EXO:
        f = round(float(rng.uniform(1744, 1814)), 4)
        exo[cam] = Camera(GOPRO_TYPICAL.model, (f, f, *GOPRO_TYPICAL.params[2:]), 3840, 2160)
    f, cx, cy = (round(float(rng.uniform(*span)), 4) for span in ((1212, 1230), (1452, 1468), (1436, 1448)))
    typical = ARIA_RGB_TYPICAL
    return exo, Camera(typical.model, (f, f, cx, cy, *typical.params[4:]), 2880, 2880, max_theta=typical.max_theta)


def _film_exo(scene: Scene, moments: list, camera: Camera, T_world_exo: np.ndarray, fps: int, video: Path, sidecar: Path) -> None:
    grid = lattice(camera, False)
    base = render(scene, grid, T_world_exo, None)
    static = np.where(grid.valid, base.depth, np.float32(0))
    still = picture(scene, grid, base)[0]
    moving = np.full((len(moments), camera.height, camera.width), np.inf, np.float16)
    with _Encoder(video, camera.width, camera.height, fps) as encoder:
        for k, moment in enumerate(moments):
            frame = render(scene, grid, T_world_exo, moment, base)
            at = (frame.ident >= FACES + len(scene.static)) & grid.valid
            moving[k][at] = frame.depth[at]
            encoder.add(picture(scene, grid, frame, still=still)[0])
    np.savez_compressed(sidecar, static_depth=static, dynamic_depth=moving)


def _film_ego(scene: Scene, moments: list, camera: Camera, fps: int, video: Path) -> None:
    grid = lattice(camera, False)
    with _Encoder(video, camera.width, camera.height, fps) as encoder:
        for moment in moments:
            encoder.add(picture(scene, grid, render(scene, grid, moment.T_world_ego, moment, ego=True), DISC)[0])


class _Encoder:
    """H.264, yuv420p: the same pictures give the same bytes.

    That takes one thread, and x264 without macroblock-tree rate control, whose AVX-512 code reads beyond its buffers (seen in PyAV 18's
    x264: five different files from fourteen encodings of the same pictures; one with `mbtree=0`).
    """

    def __init__(self, path: Path, width: int, height: int, fps: int) -> None:
        self.container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart", "fflags": "+bitexact"})
        self.stream = self.container.add_stream("libx264", rate=Fraction(fps), options=_X264)
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
        self.stream.codec_context.thread_count = 1

    def add(self, rgb: np.ndarray) -> None:
        self.container.mux(self.stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")))

    def __enter__(self) -> "_Encoder":
        return self

    def __exit__(self, kind, value, trace) -> None:
        if kind is None:
            self.container.mux(self.stream.encode())
        self.container.close()


def one_thread() -> None:
    """From here on this process takes one core: several beside each other do the work, and BLAS' threads would spin waiting for theirs."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    threadpool_limits(1)


WRITERS = {"egoexo4d": write_take, "h2o": h2o.write_take}
