"""φ_ego: from the exo picture alone to both hands before the wearer (GenEgo, stage 1), and its training as a method of its own. No weights
of others are needed, and those of a pretrained ViT can be had from a folder.

A ViT's class token, two layers behind it (768 → 512 → 126 at the paper's size), joints [2, 21, 3] in metres in the *ego camera's* frame. It
has to guess the head from the look of the wearer: it holds for the camera placement that it was trained on. With ego_hands.sees it is told,
beside the picture or instead of it, the hands as they were found before the exo camera, in a frame of their own: how two hands lie to one
another says much of where the head is, whatever the exo camera (our addition, measured in docs/genego.md). Patch size, pooling and
activation are not told: 16, class token, GELU (our reading). It is trained by the loop that trains adapters, on the exo pictures and true
joints of a release's training takes, registered under its own name, and generates nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from egomill.kernels.hands import HANDS, JOINTS, by_themselves
from egomill.models.layout import Layout
from egomill.models.method import Method
from egomill.schemas.config import EgoHands, Profile

UNIT = 0.1  # m, of what the last layer gives
AHEAD = 4.0  # units before the camera, where hands are before anything is learnt


@dataclass(frozen=True)
class Batch:
    """Exo pictures [B, F, 3, S, S] uint8, hands in the exo camera's frame [B, F, 2, 21, 3], metres, NaN unknown, and the true ones in the
    ego camera's, which training alone has."""

    picture: Tensor
    exo: Tensor
    joints: Tensor | None = None


class Net(nn.Module):
    """ViT and two layers. Sizes as `EgoHands` says them; `vit` may be one that was made elsewhere."""

    def __init__(self, settings: EgoHands, vit: Any = None) -> None:
        from transformers import ViTConfig, ViTModel

        super().__init__()
        if vit is None:
            config = ViTConfig(
                image_size=settings.picture,
                patch_size=settings.patch,
                hidden_size=settings.width,
                num_hidden_layers=settings.depth,
                num_attention_heads=settings.heads,
                intermediate_size=4 * settings.width,
            )
            vit = ViTModel(config, add_pooling_layer=False)
        self.sees = settings.sees
        self.vit = None if settings.sees == "hands" else vit.float().requires_grad_(True)
        of_hands = 0 if settings.sees == "picture" else HANDS * JOINTS * 4 + 3
        inputs = of_hands + (vit.config.hidden_size if self.vit is not None else 0)
        layers = (settings.hidden,) * (1 if settings.sees == "picture" else 2)  # hands alone are no features yet
        widths = list(zip((inputs, *layers), layers, strict=False))
        inner = [layer for a, b in widths for layer in (nn.Linear(a, b), nn.GELU())]
        self.head = nn.Sequential(*inner, nn.Linear(settings.hidden, HANDS * JOINTS * 3))
        with torch.no_grad():
            last: Any = self.head[-1]
            last.weight.mul_(0.1)
            last.bias.copy_(torch.tensor([0.0, 0.0, AHEAD]).repeat(HANDS * JOINTS))

    def joints(self, picture: Tensor, exo: Tensor) -> Tensor:
        """Joints [N, 2, 21, 3], metres, of exo pictures [N, 3, S, S] uint8 and hands [N, 2, 21, 3] in the exo camera's frame."""
        seen = []
        if self.vit is not None:
            seen.append(self.vit(picture.float() / 127.5 - 1).last_hidden_state[:, 0])
        if self.sees != "picture":
            found, down = by_themselves(exo.float())
            known = found.isfinite().all(dim=-1)
            seen += [torch.where(known[..., None], found, 0).flatten(1) / UNIT, known.flatten(1).float(), down.nan_to_num(0.0)]
        return UNIT * self.head(torch.cat(seen, dim=1)).float().unflatten(1, (HANDS, JOINTS, 3))

    def forward(self, batch: Batch, generators: Sequence[torch.Generator]) -> Tensor:
        """Loss of every sample [B]: the mean squared distance, in square decimetres, over the joints that are known."""
        if batch.joints is None:
            raise ValueError("a loss needs true joints")
        predicted = self.joints(batch.picture.flatten(0, 1), batch.exo.flatten(0, 1)).unflatten(0, batch.picture.shape[:2])
        known = batch.joints.isfinite().all(dim=-1)
        off = (predicted - torch.where(known[..., None], batch.joints, 0)).square().sum(dim=-1) / UNIT**2
        return torch.where(known, off, 0).flatten(1).sum(dim=1) / known.flatten(1).sum(dim=1).clamp_min(1)


def check(profile: Profile, layout: Layout) -> None:
    """ValueError where a picture is not cut into patches without a rest."""
    settings = profile.ego_hands
    if settings.picture % settings.patch or settings.width % settings.heads:
        raise ValueError(
            f"ego_hands: a picture of {settings.picture} px is cut into patches of {settings.patch}, and a width of {settings.width} into "
            f"{settings.heads} heads: without a rest"
        )


def build(parts: Any, profile: Profile) -> Net:
    """The net, of the seed; the ViT from the folder that the settings name."""
    settings = profile.ego_hands
    vit = None
    if settings.start:
        from transformers import ViTModel

        vit = ViTModel.from_pretrained(settings.start, local_files_only=True, use_safetensors=True, add_pooling_layer=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(profile.train.seed)
        return Net(settings, vit)


def make_batch(tensors: Mapping[str, Tensor], profile: Profile, device: torch.device) -> Batch:
    """Columns of table hands, [B, ...], to what the net takes."""
    joints = tensors["joints_ego"].to(device) if "joints_ego" in tensors else None
    return Batch(tensors["picture"].to(device), tensors["joints_exo"].to(device), joints)


def sample(net: Any, batch: Any, generators: Any, settings: Any) -> Tensor:
    """There is nothing to generate: its predictions are rows of table ego_hands."""
    raise ValueError("ego_hands makes no video: it is trained for genego, which reads its predictions")


def overrides(profile: Profile) -> list[str]:
    """The settings by which a profile of a method that needs it trains it."""
    own = profile.ego_hands
    values = {"method": METHOD.name, "targets": "[]", "steps": own.steps, "batch": own.batch, "learning_rate": own.learning_rate}
    return [f"train.{name}={value}" for name, value in values.items()]


SIZES = ("sees", "start", "picture", "patch", "width", "depth", "heads", "hidden")
METHOD = Method(
    name="ego_hands",
    module=__name__,
    stages=("hands",),
    reads={"hands": ("picture", "joints_exo", "joints_ego")},
    truth=("joints_ego",),
    check=check,
    build=build,
    batch=make_batch,
    sample=sample,
    parts=(),
    section="ego_hands",
    follows=tuple(f"ego_hands.{name}" for name in SIZES),
)
