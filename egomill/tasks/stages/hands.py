"""Where hands are in a clip's exo view, and, where the data set says so, before the wearer: 21 joints each, in metres.

Who says so is a setting: the data set's annotations, files of another program, or a landmark network (tasks/networks/landmarks.py). A frame
without a hand is no fault; a clip with too few of them is.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from egomill.kernels.poses import inverse, transform
from egomill.schemas.config import Profile
from egomill.schemas.outcome import Rejected
from egomill.schemas.tensors import pack, unpack
from egomill.tasks.lake.stage import Stage
from egomill.tasks.media import hand_files, video, views
from egomill.tasks.media.untrusted import Bad
from egomill.tasks.networks import landmarks

COLUMNS = (*views.EXO_COLUMNS, "exo_cam", "take_name", "T_world_exo", "T_world_ego")


def stage(profile: Profile) -> Stage:
    """Hands of every chosen clip. ValueError where a landmark network is asked for and its files are not as named."""
    settings = profile.hands
    network = settings.source == "landmarks"
    return Stage(
        name="hands",
        reads={"clips": COLUMNS if network else (*COLUMNS, "hands")},
        config={**settings.model_dump(exclude={"palm", "landmark"}), "picture": profile.ego_hands.picture},
        worker=partial(Finder, profile),
        weights=landmarks.revision(settings) if network else "",
        where="chosen",
    )


WIDE = 1280  # px, at which a landmark network looks at the exo view where its source has as many


class Finder:
    """A clip in, its hands out."""

    def __init__(self, profile: Profile) -> None:
        self.settings, self.side, self.allow = profile.hands, profile.ego_hands.picture, profile.ingest.allow
        self.network = landmarks.Network(self.settings) if self.settings.source == "landmarks" else None

    def __call__(self, row: dict) -> dict | Rejected:
        clip = row["clips"]
        try:
            if self.network is None:
                found = hand_files.read(clip, views.frame_numbers(clip), self.settings, self.allow)
            else:
                found = self._seen(clip, self.network)
            picture = views.read_exo(clip, (self.side, self.side))
        except Bad as bad:
            return bad.rejected
        except video.VideoError as error:
            return Rejected(error.reason, str(error))
        ego = found.ego
        if ego is None and clip["T_world_ego"]:  # by the cameras, where nobody says it otherwise
            T_world_exo, T_world_ego = (torch.from_numpy(unpack(clip[name])) for name in ("T_world_exo", "T_world_ego"))
            ego = transform((inverse(T_world_ego) @ T_world_exo)[:, None], found.exo.double()).float()
        seen = int(hand_files.seen(found.exo).sum())
        if seen < self.settings.min_frames * len(found.exo):
            return Rejected("no_hands", f"{seen} of {len(found.exo)} frames show a hand ({found.said})")
        return {
            "joints_exo": pack(found.exo.numpy()),
            "joints_ego": None if ego is None else pack(ego.numpy()),
            "picture": pack(np.ascontiguousarray(picture.transpose(0, 3, 1, 2))),
            "frames": seen,
            "estimator": found.said,
        }

    def _seen(self, clip: dict, network: landmarks.Network) -> hand_files.Found:
        """By the network, on larger pictures than the clip's: hands in an exo view are small."""
        camera = views.exo_camera(clip)
        width = max(camera.width, min(WIDE, camera.width if clip["exo_lens"] else clip["exo_crop"][2]))
        camera = camera.rescale(width, round(camera.height * width / camera.width))
        return hand_files.Found(network(views.read_exo(clip, (camera.width, camera.height)), camera), None, network.said)
