"""The zoo: every way to spoil a take that we could think of, made by code from one tiny healthy simulated take (or EgoX example).

`ZOO` maps a name to what is done to a copy and to what must become of it: one reason, at one stage, or that it works. `enclosure` builds
the data set around it: the copy, and beside it a take that nobody touches.
"""

from __future__ import annotations

import copy
import io
import json
import math
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from egomill.scenes.take import simulate
from egomill.tasks.media import video
from tests.tasks.tiny_release import change, put, write_egox

FPS, FRAMES = 10, 16
# One clip of five frames a take; small pictures.
SETTINGS = [
    *("clips.frames=5", "clips.fps=10.0", "clips.hop=60.0", "clips.exo_cameras=1", "clips.exo_size=[112, 64]", "clips.ego_size=64"),
    *("clips.unseen=0", "depth.height=64"),
]
HUGE = 10**400  # JSON has no largest number
AT = "frame_aligned_videos/downscaled/448"


@dataclass(frozen=True)
class Take:
    """Where a copy's files lie. `outside` is a folder beside the data set with a healthy take in it, which nothing may reach."""

    root: Path
    name: str
    uid: str
    outside: Path

    @property
    def videos(self) -> Path:
        return self.root / "takes" / self.name / AT

    @property
    def exo(self) -> Path:
        return self.videos / "cam01.mp4"

    @property
    def ego(self) -> Path:
        return self.videos / "aria01_214-1.mp4"

    @property
    def pose(self) -> Path:
        return next(self.root.glob(f"annotations/ego_pose/*/camera_pose/{self.uid}.json"))

    @property
    def lens(self) -> Path:
        return self.root / "takes" / self.name / "trajectory" / "online_calibration.jsonl"

    @property
    def depth(self) -> list[Path]:
        return sorted((self.root / "sidecar" / self.name).glob("*.npz"))

    @property
    def pictures(self) -> list[Path]:
        """EgoX: depth, one picture a frame."""
        return sorted((self.root / "depth_maps" / self.name).glob("*.npy"))


Spoil = Callable[[Take], object]


@dataclass(frozen=True)
class Kind:
    spoil: Spoil
    reason: str = ""  # of the one rejection; "": none
    told: str = ""  # what its detail says, among other things
    at: str = "takes"  # the stage that notices
    taken: int = 0  # takes of the copy's that go through all the same
    whole: bool = False  # an index is spoilt: the neighbour is rejected with it
    egox: bool = False
    cam01: bool = False  # the fault is that camera's alone: with another beside it the take goes without
    name: str = "zoo_cooking_7"
    uid: str = "zoo-7"


# -- enclosures ----------------------------------------------------------------------------------------------------------


def breed(folder: Path) -> Path:
    """The healthy animals, once a session: `folder`/release with one simulated take of two exo cameras, `folder`/egox with one example."""
    record = simulate(folder / "release", 1, seed=5, seconds=FRAMES / FPS, fps=FPS)[0]
    for cam in ("cam03", "cam04"):
        (folder / "release" / "takes" / record["take_name"] / AT / f"{cam}.mp4").unlink()
        (folder / "release" / "sidecar" / record["take_name"] / f"{cam}.npz").unlink()
    write_egox(folder / "egox", "zoo_cooking_7")
    return folder


def settle(sample: Path, root: Path, name: str, uid: str) -> None:
    """A copy of the sample's take under another name and uid, entered in the indices of the data set at `root`."""
    record = json.loads((sample / "takes.json").read_text())[0]
    split = json.loads((sample / "annotations/splits.json").read_text())["take_uid_to_split"][record["take_uid"]]
    for room in ("takes", "sidecar"):
        shutil.copytree(sample / room / record["take_name"], root / room / name)
    annotation = json.loads((sample / f"annotations/ego_pose/{split}/camera_pose/{record['take_uid']}.json").read_text())
    put(root / f"annotations/ego_pose/{split}/camera_pose/{uid}.json", annotation | {"metadata": {"take_name": name, "take_uid": uid}})
    told = json.loads((sample / f"annotations/atomic_descriptions_{split}.json").read_text())["annotations"][record["take_uid"]]
    for file, empty, enter in (
        ("takes.json", [], lambda takes: takes.append(record | {"take_uid": uid, "take_name": name, "root_dir": f"takes/{name}"})),
        ("annotations/splits.json", {"take_uid_to_split": {}}, lambda splits: splits["take_uid_to_split"].update({uid: split})),
        ("annotations/atomic_descriptions_train.json", {"annotations": {}}, lambda texts: texts["annotations"].update({uid: told})),
    ):
        if not (root / file).exists():
            put(root / file, empty)
        change(root / file, enter)


def settle_egox(sample: Path, root: Path, name: str) -> None:
    """A copy of the EgoX example under another name."""
    entry = json.loads((sample / "meta.json").read_text())["test_datasets"][0]
    for room in ("videos", "depth_maps"):
        shutil.copytree(sample / room / "zoo_cooking_7", root / room / name)
    for key in ("exo_path", "ego_gt_path"):
        entry[key] = f"./videos/{name}/{Path(entry[key]).name}"
    if not (root / "meta.json").exists():
        put(root / "meta.json", {"test_datasets": []})
    change(root / "meta.json", lambda meta: meta["test_datasets"].append(entry))


def enclosure(kind: Kind, samples: Path, root: Path, outside: Path, label: str = "", beside: bool = True, cam02: bool = False) -> Take:
    """A data set at `root` with the spoilt copy, which has one exo camera or two, and, `beside` it, a healthy one, which has two. `label`
    makes uids differ from other enclosures'."""
    root.mkdir(parents=True)
    take = Take(root, kind.name + (label if kind.egox else ""), kind.uid + label, outside)
    for name, uid in [("beside_bike_1" + label, "beside" + label)] * beside + [(take.name, take.uid)]:
        settle_egox(samples / "egox", root, name) if kind.egox else settle(samples / "release", root, name, uid)
    if not (cam02 or kind.egox):
        (take.videos / "cam02.mp4").unlink()
        (root / "sidecar" / take.name / "cam02.npz").unlink()
    kind.spoil(take)
    return take


# -- ways to spoil -------------------------------------------------------------------------------------------------------


def nothing(take: Take) -> None:
    pass


def write(what: str, data: bytes) -> Spoil:
    return lambda take: getattr(take, what).write_bytes(data)


def bytes_of(what: str, edit: Callable[[bytearray], bytes | bytearray | None]) -> Spoil:
    """Edit a file's bytes in place."""

    def spoil(take: Take) -> None:
        data = bytearray(getattr(take, what).read_bytes())
        getattr(take, what).write_bytes(edit(data) or data)

    return spoil


def frames(what: str, edit: Callable[[np.ndarray], np.ndarray], fps: float = FPS) -> Spoil:
    """Edit a video's pictures."""
    return lambda take: getattr(take, what).write_bytes(video.encode(edit(video.decode(getattr(take, what).read_bytes())), fps))


def retimed(what: str, when: Callable[[float], float]) -> Spoil:
    """Packets of a video shown at other frame times: `when` of their own, in frames."""

    def spoil(take: Take) -> None:
        path = getattr(take, what)
        with av.open(str(path)) as old, av.open(str(path) + ".part", "w", format="mp4") as new:
            source = old.streams.video[0]
            stream = new.add_stream_from_template(source)
            frame = 1 / (FPS * source.time_base)
            for packet in old.demux(source):
                if packet.size:
                    packet.pts, packet.dts = (round(when(t / frame) * frame) for t in (packet.pts, packet.dts))
                    packet.stream = stream
                    new.mux(packet)
        os.replace(str(path) + ".part", path)

    return spoil


def box(data: bytearray, name: bytes) -> int:
    """Where an mp4 box's content begins."""
    return data.index(name) + 4


def turned(data: bytearray) -> None:
    struct.pack_into(">9i", data, box(data, b"tkhd") + 40, 0, 1 << 16, 0, -(1 << 16), 0, 0, 448 << 16, 0, 1 << 30)


def trimmed(data: bytearray) -> None:
    """As `ffmpeg -ss` without encoding anew: an edit list that hides the first five frames."""
    at, step = box(data, b"elst") + 12, struct.unpack_from(">I", data, box(data, b"stts") + 12)[0]
    struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] + 5 * step)


def standing(data: bytearray) -> None:
    struct.pack_into(">I", data, box(data, b"stts") + 12, 0)


def wrong_tag(data: bytearray) -> None:
    at = data.index(b"avc1", box(data, b"stsd"))
    data[at : at + 4] = b"vp09"


def scratched(data: bytearray) -> None:
    middle = data.index(b"mdat") + (len(data) - data.index(b"mdat")) // 2
    data[middle : middle + 8000] = np.random.default_rng(0).bytes(8000)


def anamorphic(take: Take) -> None:
    encode(take.exo, 398, 448, Fraction(2))


def encode(path: Path, width: int, height: int, aspect: Fraction = Fraction(1)) -> None:
    """A grey film."""
    with av.open(str(path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for i in range(2):
            picture = np.full((height * 3 // 2, width), 100 + 50 * i, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="yuv420p")))
        file.mux(stream.encode(None))


def sound_only(take: Take) -> None:
    with av.open(str(take.exo), "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        file.mux(stream.encode(sound))
        file.mux(stream.encode(None))


def with_sound(take: Take) -> None:
    with av.open(str(take.exo)) as old, av.open(str(take.exo) + ".part", "w", format="mp4") as new:
        picture, sound = new.add_stream_from_template(old.streams.video[0]), new.add_stream("aac", rate=16000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        new.mux(sound.encode(silence))
        new.mux(sound.encode(None))
        for packet in old.demux(old.streams.video[0]):
            if packet.size:
                packet.stream = picture
                new.mux(packet)
    os.replace(str(take.exo) + ".part", take.exo)


def instead(what: str, make: Callable[[Path, Take], object]) -> Spoil:
    """Something else in a file's place."""

    def spoil(take: Take) -> None:
        path = getattr(take, what)
        path.unlink()
        make(path, take)

    return spoil


def linked_away(path: Path, take: Take) -> None:
    """A link to the healthy file of the same kind outside: whoever follows it finds nothing wrong."""
    path.symlink_to(next(take.outside.rglob("*" + path.suffix if path.suffix == ".json" else path.name)).resolve())


def folder_linked_away(take: Take) -> None:
    shutil.rmtree(take.root / "takes" / take.name)
    (take.root / "takes" / take.name).symlink_to(next((take.outside / "takes").iterdir()))


def annotation(edit: Callable[[dict], object]) -> Spoil:
    return lambda take: change(take.pose, edit)


def cam01(edit: Callable[[dict], object]) -> Spoil:
    return annotation(lambda a: edit(a["cam01"]))


def head(edit: Callable[[dict], object]) -> Spoil:
    return annotation(lambda a: edit(a["aria01"]["camera_extrinsics"]))


def each(edit: Callable[[list], object], numbers: range = range(FRAMES - 2)) -> Spoil:
    """Edit the head's poses of these frames."""
    return head(lambda poses: [edit(poses[str(i)]) for i in numbers])


def moved(by: Callable[[int], int | str | None]) -> Spoil:
    """The head's poses under other frames' numbers; None: left out."""

    def edit(poses: dict) -> None:
        kept = {str(by(int(i))): pose for i, pose in poses.items() if by(int(i)) is not None}
        poses.clear()
        poses.update(kept)

    return head(edit)


def scale(rows: list, by: float) -> None:
    for row in rows:
        row[3] *= by


def by_frame(step: float) -> Spoil:
    """The exo camera's pose told frame by frame, `step` metres on at each."""

    def edit(entry: dict) -> None:
        poses = {str(i): copy.deepcopy(entry["camera_extrinsics"]) for i in range(FRAMES)}
        for i, pose in poses.items():
            pose[0][3] += step * int(i)
        entry["camera_extrinsics"] = poses

    return cam01(edit)


def text(what: str, edit: Callable[[str], str]) -> Spoil:
    return lambda take: getattr(take, what).write_text(edit(getattr(take, what).read_text()))


def sparse(what: str, size: int) -> Spoil:
    """A file that says it is large, and takes no room."""
    return lambda take: os.truncate(getattr(take, what), size)


def projection(edit: Callable[[dict], object]) -> Spoil:
    """Edit the head camera's lens."""

    def line(text: str) -> str:
        record = json.loads(text.splitlines()[0])
        edit(next(c for c in record["CameraCalibrations"] if c["Label"] == "camera-rgb")["Projection"])
        return json.dumps(record) + "\n"

    return text("lens", line)


def depths(edit: Callable[[dict], dict | None]) -> Spoil:
    """Edit the arrays of all depth sidecars."""

    def spoil(take: Take) -> None:
        for path in take.depth:
            arrays = dict(np.load(path))
            np.savez_compressed(path, **(edit(arrays) or arrays))

    return spoil


def archives(edit: Callable[[bytearray], bytes | bytearray | None]) -> Spoil:
    def spoil(take: Take) -> None:
        for path in take.depth or take.pictures:
            data = bytearray(path.read_bytes())
            path.write_bytes(edit(data) or data)

    return spoil


def entry(header: str, data: bytes = bytes(64)) -> Spoil:
    """All depth files (of either layout) with this header of .npy."""
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data

    def spoil(take: Take) -> None:
        for path in take.pictures:
            path.write_bytes(npy)
        for path in take.depth:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("static_depth.npy", npy)

    return spoil


def encrypted(data: bytearray) -> None:
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        here = data.find(mark)
        while here >= 0:
            data[here + at] |= 1
            here = data.find(mark, here + 1)


def flipped(data: bytearray) -> None:
    data[len(data) // 2] ^= 0x55


def lie(shape: str, kind: str = "<f4") -> str:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n"


def at(key: str, value: float) -> Callable[[dict], None]:
    def edit(arrays: dict) -> None:
        arrays[key][..., :40, :] = value

    return edit


def arrays(edit: Callable[[np.ndarray], np.ndarray]) -> Spoil:
    """EgoX: edit every depth picture."""
    return lambda take: [np.save(path, edit(np.load(path))) for path in take.pictures]


def listed(edit: Callable[[dict], object]) -> Spoil:
    """Edit the take's record in takes.json."""

    def spoil(take: Take) -> None:
        change(take.root / "takes.json", lambda takes: edit(next(r for r in takes if r["take_uid"] == take.uid)))

    return spoil


def index(file: str, edit: Callable[[dict | list, Take], object]) -> Spoil:
    return lambda take: change(take.root / file, lambda value: edit(value, take))


def overwritten(file: str, text: str) -> Spoil:
    return lambda take: (take.root / file).write_text(text)


def told(edit: Callable[[list], object]) -> Spoil:
    """Edit the take's descriptions."""
    return index("annotations/atomic_descriptions_train.json", lambda v, take: edit(v["annotations"][take.uid][0]["descriptions"]))


def example(edit: Callable[[dict], object]) -> Spoil:
    """Edit the EgoX entry of the take."""

    def spoil(take: Take) -> None:
        change(take.root / "meta.json", lambda meta: edit(next(e for e in meta["test_datasets"] if take.name in e["exo_path"])))

    return spoil


def same_uid(take: Take) -> None:
    """An intruder, first in the alphabet, who says that he is the take."""
    shutil.copytree(take.root / "takes" / take.name, take.root / "takes" / "aaa_cooking_1")
    record = {"take_uid": take.uid, "take_name": "aaa_cooking_1", "root_dir": "takes/aaa_cooking_1"}
    change(take.root / "takes.json", lambda takes: takes.insert(0, record))


def renamed(take: Take) -> None:
    os.rename(os.fsencode(take.root / "takes" / take.name), os.fsencode(take.root / "takes") + b"/caf\xe9_cooking_7")


def short(take: Take) -> None:
    for path in take.videos.glob("*.mp4"):
        path.write_bytes(video.encode(video.decode(path.read_bytes())[:4], FPS))
    shutil.rmtree(take.root / "sidecar" / take.name)
    moved(lambda i: i if i < 4 else None)(take)


def emptied(take: Take) -> None:
    shutil.rmtree(take.root / "takes" / take.name)
    (take.root / "takes" / take.name).mkdir()


def gone(take: Take) -> None:
    shutil.rmtree(take.root / "takes" / take.name)


def also_annotated(take: Take) -> None:
    (take.root / "annotations/splits.json").unlink()
    there = take.root / "annotations/ego_pose/test/camera_pose"
    there.mkdir(parents=True, exist_ok=True)
    shutil.copy(take.pose, there)


def at_size(size: str, *names: str, edit: Callable[[bytes], bytes] = bytes) -> Spoil:
    """The take's videos of these names also at another size, `edit`ed: begun, or spoilt."""

    def spoil(take: Take) -> None:
        folder = take.root / "takes" / take.name / "frame_aligned_videos" / size
        folder.mkdir(exist_ok=True)
        for name in names:
            (folder / f"{name}.mp4").write_bytes(edit((take.videos / f"{name}.mp4").read_bytes()))

    return spoil


def parted(take: Take) -> None:
    """The exo video at one size, the head's at another."""
    at_size("downscaled/360", "cam01")(take)
    take.exo.unlink()


def size_linked_away(take: Take) -> None:
    (take.videos.parent / "360").symlink_to(next(take.outside.rglob("448")))


def annotated_in_vain(take: Take) -> None:
    """A file of the take's name in another split's folder, with nothing in it."""
    there = take.root / "annotations/ego_pose/a/camera_pose"
    there.mkdir(parents=True, exist_ok=True)
    (there / take.pose.name).write_bytes(b"")


def from_repository(entry: dict) -> None:
    """Paths as in the meta.json that EgoX published, where its examples lie in a folder of their own."""
    for key in ("exo_path", "ego_gt_path"):
        entry[key] = "./example/egoexo4D/" + entry[key].removeprefix("./")


def repeated(piece: bytes, size: int = 12 * 10**6) -> bytes:
    """JSON that is fine but for how finely it is divided."""
    return b"[" + piece * (size // len(piece)) + b"0]"


def packed(kind: int, comments: int = 0) -> Spoil:
    """Depth sidecars packed otherwise than NumPy does; `comments`: bytes of idle talk in the archive's directory."""

    def spoil(take: Take) -> None:
        for path in take.depth:
            data = io.BytesIO()
            np.save(data, np.load(path)["static_depth"])
            with zipfile.ZipFile(path, "w", kind) as archive:
                for number in range(1 + comments // 60_000):
                    entry = zipfile.ZipInfo(f"{number}.npy" if number else "static_depth.npy")
                    entry.comment = bytes(60_000 * bool(number))
                    archive.writestr(entry, b"" if number else data.getvalue(), kind)

    return spoil


UNREADABLE = "video_undecodable"
ZOO: dict[str, Kind] = {
    # files that are no videos, or none of ours
    "video cut short": Kind(bytes_of("ego", lambda d: d[: len(d) * 2 // 3]), UNREADABLE, "aria01_214-1.mp4"),
    "video without its index": Kind(bytes_of("exo", lambda d: d[d.index(b"mdat") :]), UNREADABLE, "cam01.mp4", cam01=True),
    "video of no bytes": Kind(write("exo", b""), UNREADABLE, "cam01.mp4", cam01=True),
    "text called mp4": Kind(write("ego", b"not a video " * 50), UNREADABLE, "aria01_214-1.mp4"),
    "video scratched in the middle": Kind(bytes_of("exo", scratched), UNREADABLE, "cam01.mp4", cam01=True),
    "video with another codec's tag": Kind(bytes_of("exo", wrong_tag), UNREADABLE, "cam01.mp4", cam01=True),
    "sound without picture": Kind(sound_only, UNREADABLE, "no video stream", cam01=True),
    "sound beside the picture": Kind(with_sound, taken=1),
    "video of another shape": Kind(frames("exo", lambda f: f[:, :, :448]), "calibration_invalid", "448x448", cam01=True),
    "ego video not square": Kind(frames("ego", lambda f: f[:, :300]), "video_geometry", "448x300"),
    "video to be turned": Kind(bytes_of("ego", turned), "video_geometry", "turned by"),
    "video to be stretched": Kind(anamorphic, "video_geometry", "2.000 as wide", cam01=True),
    "video of enormous pictures": Kind(lambda take: encode(take.exo, 8192, 4096), "video_too_large", "8192x4096", cam01=True),
    "video of variable rate": Kind(retimed("exo", lambda t: t if t < 8 else 8 + 2 * (t - 8)), "video_timing", "such in all", cam01=True),
    "video that loses a frame": Kind(retimed("exo", lambda t: t if t < 8 else t + 1), "video_timing", "frame 8 comes", cam01=True),
    "video five frames late": Kind(retimed("exo", lambda t: t + 5), "video_timing", "first frame is shown at 0.5", cam01=True),
    "video five frames early": Kind(bytes_of("ego", trimmed), "video_timing", "hidden"),
    "video of no rate": Kind(bytes_of("exo", standing), "video_timing", "have no time", cam01=True),
    "video of 1,000 frames a second": Kind(frames("exo", lambda f: f, 1000.0), "video_timing", "1e+03 frames a second", cam01=True),
    "video of another rate": Kind(frames("exo", lambda f: f, 12.5), "frame_counts_disagree", "rates", cam01=True),
    "exo five frames shorter": Kind(frames("exo", lambda f: f[5:]), "frame_counts_disagree", '"cam01.mp4": 11', cam01=True),
    "ego five frames longer": Kind(frames("ego", lambda f: f[[*range(16), *[15] * 5]]), "frame_counts_disagree", '"aria01_214-1.mp4": 21'),
    "exo camera that stopped": Kind(frames("exo", lambda f: f[[3] * len(f)]), "video_frozen", "cam01.mp4", cam01=True),
    "ego camera that stopped": Kind(frames("ego", lambda f: f[[0] * len(f)]), "video_frozen", "aria01_214-1.mp4"),
    "black video": Kind(frames("exo", np.zeros_like), "video_frozen", "cam01.mp4", cam01=True),
    "no exo video": Kind(lambda take: [p.unlink() for p in take.videos.glob("cam*")], "no_exo_video"),
    "no ego video": Kind(lambda take: take.ego.unlink(), "no_ego_video"),
    "empty take": Kind(emptied, "no_exo_video"),
    "take of four frames": Kind(short, "too_short", "4 frames", at="clips"),
    # sizes of videos: none hides another
    "a smaller size begun": Kind(at_size("downscaled/360", "cam01"), taken=1),
    "a smaller size of the head alone": Kind(at_size("downscaled/90", "aria01_214-1"), taken=1),
    "a smaller size of nothing": Kind(at_size("downscaled/1"), taken=1),
    "a smaller size cut short": Kind(at_size("downscaled/360", "cam01", "aria01_214-1", edit=lambda d: d[: len(d) // 2]), taken=1),
    "a larger size begun": Kind(at_size(".", "cam01"), taken=1),
    "a smaller size linked from outside": Kind(size_linked_away, taken=1),
    "two sizes, neither whole": Kind(parted, "no_exo_video", "360: no_ego_video"),
    # what lies where a file should
    "pipe for a video": Kind(instead("exo", lambda path, _: os.mkfifo(path)), "file_unusable", "a pipe", cam01=True),
    "folder for a video": Kind(instead("exo", lambda path, _: path.mkdir()), "file_unusable", "a folder", cam01=True),
    "device for a video": Kind(
        instead("exo", lambda path, _: os.mknod(path, 0o20666, os.makedev(1, 5))), "file_unusable", "a device", cam01=True
    ),
    "video that may not be read": Kind(lambda take: take.exo.chmod(0), "file_unusable", "Permission denied", cam01=True),
    "link to nothing": Kind(instead("exo", lambda path, _: path.symlink_to("nowhere.mp4")), "file_unusable", "No such file", cam01=True),
    "link to itself": Kind(instead("exo", lambda path, _: path.symlink_to(path.name)), "file_unusable", "loop", cam01=True),
    "video linked from outside": Kind(instead("exo", linked_away), "path_outside_root", "cam01.mp4", cam01=True),
    "lens linked from outside": Kind(instead("lens", linked_away), "path_outside_root", "online_calibration"),
    "poses linked from outside": Kind(instead("pose", linked_away), "path_outside_root", "camera_pose"),
    "take linked from outside": Kind(folder_linked_away, "path_outside_root", "takes/zoo_cooking_7"),
    "pipe for the poses": Kind(instead("pose", lambda path, _: os.mkfifo(path)), "file_unusable", "a pipe"),
    "lens file of 100 GB": Kind(sparse("lens", 100 * 10**9), "file_unusable", "more than"),
    # poses
    "poses with a gap": Kind(moved(lambda i: i if not 5 <= i < 10 else None), "pose_gaps", "9 of 16"),
    "poses of null": Kind(head(lambda p: p.update({str(i): None for i in range(5, 10)})), "pose_gaps", "9 of 16"),
    "poses of NaN": Kind(each(lambda p: p[0].__setitem__(3, math.nan), range(5, 10)), "pose_gaps", "9 of 16"),
    "poses of infinity": Kind(each(lambda p: p[1].__setitem__(1, math.inf), range(5, 10)), "pose_gaps", "9 of 16"),
    "pose beyond all numbers": Kind(each(lambda p: p[0].__setitem__(3, HUGE), range(3, 4)), "pose_gaps", "frame 3: not numbers"),
    "pose of words": Kind(each(lambda p: p[0].__setitem__(0, "left"), range(3, 4)), "pose_gaps", "frame 3: not numbers"),
    "pose of another shape": Kind(each(lambda p: p.pop(), range(3, 4)), "pose_gaps", "shape (2, 4)"),
    "no poses at all": Kind(head(lambda p: p.clear()), "no_camera_pose", "aria01"),
    "reflected pose": Kind(each(lambda p: p.__setitem__(0, [-v for v in p[0]])), "rotation_invalid", "frame 0"),
    "pose that shears": Kind(each(lambda p: p[0].__setitem__(1, p[0][1] + 0.2)), "rotation_invalid", "frame 0"),
    "exo pose of zeros": Kind(cam01(lambda c: c.update(camera_extrinsics=[[0.0] * 4] * 3)), "rotation_invalid", "cam01", cam01=True),
    "poses in millimetres": Kind(each(lambda p: scale(p, 1000)), "pose_units", "m from the wearer's head"),
    "poses in kilometres": Kind(
        annotation(
            lambda a: [
                scale(p, 1e-3)
                for p in (a["cam01"]["camera_extrinsics"], a["cam02"]["camera_extrinsics"], *a["aria01"]["camera_extrinsics"].values())
            ]
        ),
        "pose_units",
        "m from",
    ),
    "pose that leaps": Kind(each(lambda p: p[2].__setitem__(3, p[2][3] + 3), range(8, FRAMES - 2)), "pose_jumps", "7 and 8"),
    "poses for half of the take": Kind(moved(lambda i: i if i < 8 else None), "poses_disagree", "the last for frame 7"),
    "poses five frames ahead": Kind(moved(lambda i: i + 5), "poses_disagree", "frame 18"),
    "poses five frames behind": Kind(moved(lambda i: i - 5 if i >= 5 else None), "poses_disagree", "the last for frame 8"),
    "poses by name": Kind(moved(lambda i: f"frame {i}"), "no_camera_pose", "not all numbers"),
    "poses by negative number": Kind(moved(lambda i: i - 2), "no_camera_pose", "not all numbers"),
    "frame of 5,000 digits": Kind(moved(lambda i: "9" * 5000 if i == 3 else i), "no_camera_pose", "not all numbers"),
    "two poses of one frame": Kind(moved(lambda i: "02" if i == 3 else i), "no_camera_pose", "several poses"),
    "exo camera that moves": Kind(by_frame(0.01), "exo_camera_moves", "cam01: 16 poses", cam01=True),
    "exo pose told for every frame": Kind(by_frame(0.0), taken=1),
    # the annotation as JSON
    "no annotation": Kind(lambda take: take.pose.unlink(), "no_camera_pose", "no annotation of"),
    "annotation of another take": Kind(annotation(lambda a: a["metadata"].update(take_name="x")), "no_camera_pose", "of take x"),
    "JSON cut short": Kind(bytes_of("pose", lambda d: d[: len(d) // 2]), "no_camera_pose", ".json"),
    "JSON with a key twice": Kind(text("pose", lambda t: t.replace('"5":', '"4":')), "no_camera_pose", "key twice: '4'"),
    "JSON that is a list": Kind(text("pose", lambda t: f"[{t}]"), "no_camera_pose", "no metadata"),
    "JSON that is a number": Kind(write("pose", b"7"), "no_camera_pose", "no metadata"),
    "JSON with a byte order mark": Kind(bytes_of("pose", lambda d: b"\xef\xbb\xbf" + d), taken=1),
    "JSON 100,000 deep": Kind(write("pose", b"[" * 100_000), "no_camera_pose", "recursion"),
    "JSON with half a letter": Kind(text("pose", lambda t: '{"x": "\\ud800",' + t[1:]), "no_camera_pose", "surrogates"),
    "JSON that is no Unicode": Kind(bytes_of("pose", lambda d: d.replace(b"cam02", b"cam\xff2")), "no_camera_pose", "decode"),
    "JSON of 200 MB": Kind(sparse("pose", 200 * 10**6), "no_camera_pose", "200000000 bytes, more than"),
    "annotation of two, one empty": Kind(annotated_in_vain, taken=1),
    "JSON of empty lists": Kind(write("pose", repeated(b"[],")), "no_camera_pose", "MB of memory"),
    "JSON of small objects": Kind(write("pose", repeated(b'{"a":{}},')), "no_camera_pose", "MB of memory"),
    "JSON that is a hole": Kind(sparse("pose", 60 * 10**6), "no_camera_pose", "no text"),
    # lenses
    "no distortion": Kind(cam01(lambda c: c.pop("distortion_coeffs")), "calibration_invalid", "cam01 distortion", cam01=True),
    "distortion of another model": Kind(cam01(lambda c: c.update(distortion_coeffs=[0.1] * 5)), "calibration_invalid", "(5,)", cam01=True),
    "distortion that turns back": Kind(
        cam01(lambda c: c.update(distortion_coeffs=[-9.0, 0, 0, 0])), "calibration_invalid", "cam01", cam01=True
    ),
    "no intrinsics": Kind(cam01(lambda c: c.pop("camera_intrinsics")), "calibration_invalid", "cam01 intrinsics", cam01=True),
    "singular intrinsics": Kind(cam01(lambda c: c.update(camera_intrinsics=[[0.0] * 3] * 3)), "calibration_invalid", "cam01", cam01=True),
    "intrinsics of NaN": Kind(
        cam01(lambda c: c["camera_intrinsics"][0].__setitem__(0, math.nan)), "calibration_invalid", "not finite", cam01=True
    ),
    "intrinsics of another size": Kind(
        cam01(lambda c: c.update(camera_intrinsics=[[258.0, 0, 398], [0, 258.0, 224], [0, 0, 1]])),
        "calibration_invalid",
        "cam01",
        cam01=True,
    ),
    "no lens file": Kind(lambda take: take.lens.unlink(), taken=1),
    "lens file without the head": Kind(text("lens", lambda t: t.replace("camera-rgb", "camera-eye")), "calibration_invalid", "StopIter"),
    "lens file cut short": Kind(bytes_of("lens", lambda d: d[:700]), "calibration_invalid", "jsonl"),
    "lens file with a key twice": Kind(
        text("lens", lambda t: t.replace("{", '{"utc_timestamp_ns": 0, ', 1)), "calibration_invalid", "twice"
    ),
    "lens of another model": Kind(projection(lambda p: p.update(Name="KannalaBrandtK3")), "calibration_invalid", "KannalaBrandtK3"),
    "lens with fewer numbers": Kind(projection(lambda p: p["Params"].pop()), "calibration_invalid", "(14,)"),
    "lens of another size": Kind(
        projection(lambda p: p.update(Params=[p["Params"][0] / 2.05, *(c / 2.05 for c in p["Params"][1:3]), *p["Params"][3:]])),
        "calibration_invalid",
        "of 2880x2880",
    ),
    "lens beyond all numbers": Kind(projection(lambda p: p["Params"].__setitem__(0, HUGE)), "calibration_invalid", "not numbers"),
    "lens that explodes": Kind(projection(lambda p: p["Params"].__setitem__(3, 1e300)), "calibration_invalid", "jsonl"),
    "exo lens that explodes": Kind(
        cam01(lambda c: c.update(distortion_coeffs=[1e300, 0, 0, 0])), "calibration_invalid", "cam01", cam01=True
    ),
    # depth on disk
    "depth of zeros": Kind(depths(lambda a: {"static_depth": 0 * a["static_depth"]}), "depth_empty", "no known depth", at="depth"),
    "depth with NaN": Kind(depths(at("static_depth", math.nan)), "depth_sidecar_invalid", "NaN", at="depth"),
    "depth with infinity": Kind(depths(at("static_depth", math.inf)), taken=1),
    "depth of infinity": Kind(depths(lambda a: {"static_depth": a["static_depth"] + math.inf}), "depth_empty", "no known", at="depth"),
    "depth in millimetres": Kind(depths(lambda a: {k: 1000 * v for k, v in a.items()}), "depth_scale", "millimetres", at="depth"),
    "inverse depth": Kind(depths(lambda a: {k: 1 / v for k, v in a.items()}), "depth_scale", "inverse depth", at="depth"),
    "negative depth": Kind(depths(at("static_depth", -1.0)), "depth_sidecar_invalid", "negative", at="depth"),
    "moving depth with NaN": Kind(depths(at("dynamic_depth", math.nan)), "depth_sidecar_invalid", "NaN", at="depth"),
    "depth with a flipped bit": Kind(archives(flipped), "depth_sidecar_invalid", "sidecar/", at="depth"),
    "depth of another shape": Kind(depths(lambda a: {"static_depth": a["static_depth"][:300]}), "depth_sidecar_invalid", "(300, 796)"),
    "depth of too few frames": Kind(
        depths(lambda a: a | {"dynamic_depth": a["dynamic_depth"][:9]}), "depth_sidecar_invalid", "(9, 448, 796)"
    ),
    "depth of too many frames": Kind(
        depths(lambda a: a | {"dynamic_depth": np.tile(a["dynamic_depth"], (2, 1, 1))}), "depth_sidecar_invalid", "(32, 448, 796)"
    ),
    "depth in integers": Kind(depths(lambda a: a | {"static_depth": a["static_depth"].astype(int)}), "depth_sidecar_invalid", "int64"),
    "depth without depth": Kind(depths(lambda a: {"other": a["static_depth"]}), "depth_sidecar_invalid", "static_depth"),
    "depth of objects": Kind(depths(lambda a: {"static_depth": np.array([[{}]], dtype=object)}), "depth_sidecar_invalid", "Python objects"),
    "pickle for depth": Kind(archives(lambda d: b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00K\x01."), "depth_sidecar_invalid", "zip"),
    "depth cut short": Kind(archives(lambda d: d[: len(d) // 2]), "depth_sidecar_invalid", "zip"),
    "encrypted depth": Kind(archives(encrypted), "depth_sidecar_invalid", "encrypted"),
    "depth that says 40 GB": Kind(entry(lie("(89600, 159200)")), "depth_sidecar_invalid", "longer than it says"),
    "depth that unpacks to 90 MB": Kind(
        depths(lambda a: {"static_depth": np.zeros((3584, 6368), np.float32)}), "depth_sidecar_invalid", "(3584, 6368)"
    ),
    "depth with an unparsable header": Kind(entry("(" * 9000 + "\n"), "depth_sidecar_invalid", "no header"),
    "depth of negative size": Kind(entry(lie("(-4, -4)")), "depth_sidecar_invalid", "(-4, -4)"),
    "depth packed to nearly nothing": Kind(packed(zipfile.ZIP_BZIP2), "depth_sidecar_invalid", "NumPy does not write"),
    "depth with a directory of 1.2 MB": Kind(packed(zipfile.ZIP_STORED, 1_200_000), "depth_sidecar_invalid", "zip directory"),
    "depth of one text": Kind(entry(lie("()", "<U16")), "depth_sidecar_invalid", "no kind of number"),
    # indices
    "unicode and spaces in names": Kind(nothing, taken=1, name="дом 厨房 café_cooking_7", uid="uid ünï 'quoted' 7"),
    "take listed and not there": Kind(gone),
    "two takes of one uid": Kind(same_uid, "duplicate_take_uid", "is also", taken=1),
    "record without names": Kind(listed(lambda r: [r.pop("take_name"), r.pop("root_dir")]), "take_unreadable", "neither root_dir nor"),
    "record without a uid": Kind(listed(lambda r: r.pop("take_uid")), taken=1),
    "record that is a number": Kind(index("takes.json", lambda takes, _: takes.append(7)), "take_unreadable", "record 2", taken=1),
    "uid that is a number": Kind(listed(lambda r: r.update(take_uid=7)), "take_unreadable", "take_uid is no text"),
    "folder listed twice": Kind(
        index("takes.json", lambda takes, take: takes.append(takes[-1] | {"take_uid": "another"})), "take_unreadable", "twice"
    ),
    "folder with dots": Kind(listed(lambda r: r.update(root_dir="takes/../../outside/takes/x")), "path_outside_root", "outside"),
    "absolute folder": Kind(listed(lambda r: r.update(root_dir="/etc")), "path_outside_root", "/etc"),
    "name with dots": Kind(listed(lambda r: r.update(take_name="../../outside/x")), "path_outside_root", "outside"),
    "uid with dots": Kind(nothing, "path_outside_root", "is no name", uid=".."),
    "folder of 5,000 letters": Kind(listed(lambda r: r.update(root_dir="takes/" + 5000 * "x")), "file_unusable", "too long"),
    "folder that is no Unicode": Kind(renamed, "file_unusable", "no Unicode"),
    "takes.json that is no JSON": Kind(overwritten("takes.json", "[{"), "take_unreadable", "takes.json", whole=True),
    "takes.json of 1 GB": Kind(lambda take: os.truncate(take.root / "takes.json", 10**9), "take_unreadable", "more than", whole=True),
    "takes.json of empty lists": Kind(
        lambda take: (take.root / "takes.json").write_bytes(repeated(b"[],")), "take_unreadable", "MB of memory", whole=True
    ),
    "takes.json of 100,001 numbers": Kind(overwritten("takes.json", json.dumps([7] * 100_001)), "take_unreadable", "more than", whole=True),
    "folder told from further up": Kind(listed(lambda r: r.update(root_dir="egoexo/v2/" + r["root_dir"])), taken=1),
    "takes.json that is no list": Kind(overwritten("takes.json", "{}"), "take_unreadable", "no list", whole=True),
    "splits with a key twice": Kind(
        overwritten("annotations/splits.json", '{"take_uid_to_split": {"a": "train", "a": "test"}}'), "take_unreadable", "twice", whole=True
    ),
    "unknown split": Kind(
        index("annotations/splits.json", lambda v, take: v["take_uid_to_split"].update({take.uid: "training"})),
        "split_invalid",
        "'training'",
    ),
    "split that contradicts itself": Kind(
        index("annotations/splits.json", lambda v, take: v.update(split_to_take_uids={"test": [take.uid]})), "split_invalid", "'test' and"
    ),
    "annotated in two splits": Kind(also_annotated, "split_invalid", "annotated in test and train"),
    "descriptions beyond the video": Kind(
        told(lambda d: d.__setitem__(slice(None), [{"text": "C leaves.", "timestamp": 900.0}])), "descriptions_invalid", "900"
    ),
    "descriptions at no time": Kind(
        told(lambda d: d.__setitem__(slice(None), [{"text": "C leaves.", "timestamp": math.nan}])), "descriptions_invalid", "nan"
    ),
    "descriptions beyond all numbers": Kind(
        told(lambda d: d.append({"text": "C leaves.", "timestamp": HUGE})), "descriptions_invalid", "Over"
    ),
    "descriptions of numbers": Kind(told(lambda d: d.append(7)), "descriptions_invalid", "AttributeError"),
    # EgoX examples
    "EgoX: depth frame missing": Kind(lambda take: take.pictures[7].unlink(), "depth_sidecar_invalid", "00007.npy", egox=True),
    "EgoX: pickle for depth": Kind(archives(lambda d: b"\x80\x04K\x01."), "depth_sidecar_invalid", "no header", egox=True),
    "EgoX: depth of objects": Kind(entry(lie("(72, 128)", "|O")), "depth_sidecar_invalid", "Python objects", egox=True),
    "EgoX: depth that says 40 GB": Kind(entry(lie("(89600, 159200)")), "depth_sidecar_invalid", "longer than it says", egox=True),
    "EgoX: depth with NaN": Kind(arrays(lambda a: a * np.float32("nan")), "depth_sidecar_invalid", "NaN", at="depth", egox=True),
    "EgoX: depth of infinity": Kind(arrays(lambda a: a + math.inf), "depth_empty", "no known depth", at="depth", egox=True),
    "EgoX: depth in feet": Kind(arrays(lambda a: a / 0.3048), "depth_scale", "feet", at="depth", egox=True),
    "EgoX: depth of zeros": Kind(arrays(np.zeros_like), "depth_empty", "no known depth", at="depth", egox=True),
    "EgoX: depth of another shape": Kind(arrays(lambda a: a[:40]), "depth_sidecar_invalid", "does not fit", at="depth", egox=True),
    "EgoX: absolute path": Kind(example(lambda e: e.update(ego_gt_path="/etc/passwd")), "path_outside_root", "/etc/passwd", egox=True),
    "EgoX: path with dots": Kind(example(lambda e: e.update(exo_path="../outside/videos/x/exo.mp4")), "path_outside_root", "..", egox=True),
    "EgoX: folder called dots": Kind(example(lambda e: e.update(exo_path="videos/../exo.mp4")), "path_outside_root", "'..'", egox=True),
    "EgoX: path of no folder": Kind(example(lambda e: e.update(exo_path="exo.mp4")), "path_outside_root", "''", egox=True),
    "EgoX: path of 5,000 letters": Kind(example(lambda e: e.update(ego_gt_path=5000 * "x")), "file_unusable", "too long", egox=True),
    "EgoX: path that is a number": Kind(example(lambda e: e.update(exo_path=7)), "take_unreadable", "no exo_path", egox=True),
    "EgoX: entry that is a number": Kind(
        index("meta.json", lambda v, _: v["test_datasets"].append(7)), "take_unreadable", "entry 2", taken=1, egox=True
    ),
    "EgoX: one take thrice": Kind(
        index("meta.json", lambda v, _: v["test_datasets"].extend(v["test_datasets"][-1:])), "duplicate_take_uid", taken=1, egox=True
    ),
    "EgoX: paths from its repository": Kind(example(from_repository), taken=1, egox=True),
    "EgoX: paths from its repository, one not there": Kind(
        example(lambda e: (from_repository(e), e.update(exo_path=e["exo_path"] + ".mp4"))), "no_exo_video", "example/egoexo4D", egox=True
    ),
    "EgoX: poses without end": Kind(example(lambda e: e["ego_extrinsics"].extend([0] * 10**6)), "poses_disagree", egox=True),
    "EgoX: poses of fewer frames": Kind(example(lambda e: e["ego_extrinsics"].__delitem__(slice(20, None))), "poses_disagree", egox=True),
    "EgoX: meta.json with a key twice": Kind(
        overwritten("meta.json", '{"a": 1, "a": 2}'), "take_unreadable", "twice", whole=True, egox=True
    ),
}
