"""The simulated person's hands: 21 joints that lie within what is rendered, of an adult's size, left on the left."""

import numpy as np
import torch

from egomill.kernels.alignment import align
from egomill.kernels.hands import BONES
from egomill.kernels.poses import inverse, transform
from egomill.scenes.world import make_scene


def test_joints_lie_within_the_skin_and_left_is_left():
    scene = make_scene(3, 3.0, (0.0, 2.0))
    for t in (0.2, 0.9, 1.7):
        moment = scene.moment(t)
        joints = moment.joints
        assert joints.shape == (2, 21, 3)
        lengths = np.array([[np.linalg.norm(hand[b] - hand[a]) for a, b in BONES] for hand in joints])
        assert (lengths > 0.008).all()
        assert (lengths < 0.125).all()
        solids = moment.solids
        local = np.einsum("pij,npi->npj", solids.rot, joints.reshape(-1, 1, 3) - solids.center)
        reach = np.where(solids.size > 0, np.abs(local) / np.maximum(solids.size, 1e-9), 0).max(axis=-1)
        assert (reach.min(axis=1) < 1.6).all()  # in the box around some solid, or a radius from it
        T_ego_world = np.linalg.inv(moment.T_world_ego)
        seen = joints @ T_ego_world[:3, :3].T + T_ego_world[:3, 3]  # the sensor lies on its side: the picture's right is -y
        assert seen[1, :, 1].mean() < seen[0, :, 1].mean()
        assert (seen[..., 2] > 0).all()


def test_joints_in_two_cameras_give_the_calibrated_motion():
    scene = make_scene(5, 3.0, (0.0, 2.0))
    moments = [scene.moment(0.1 * i) for i in range(10)]
    joints = torch.from_numpy(np.stack([m.joints for m in moments]))
    T_world_ego = torch.from_numpy(np.stack([m.T_world_ego for m in moments]))
    for T_world_exo in scene.T_world_exo.values():
        T_exo_world = inverse(torch.from_numpy(T_world_exo)).expand(10, 4, 4)
        exo, ego = (transform(T, joints.flatten(1, 2)).unflatten(1, (2, 21)) for T in (T_exo_world, inverse(T_world_ego)))
        found = align(exo, ego)
        assert set(found.refused) == {""}
        T_ego_exo = inverse(T_world_ego) @ torch.from_numpy(T_world_exo)
        assert (found.T_b_a - T_ego_exo).abs().max() < 1e-4  # metres
