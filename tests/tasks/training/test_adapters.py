"""An adapter's files."""

import pytest
import torch
from safetensors import safe_open

from egomill.schemas.config import Profile
from egomill.tasks.networks import bases
from egomill.tasks.stages import generations
from egomill.tasks.training import adapters


def test_the_same_adapter_is_the_same_bytes(tmp_path):
    tensors = {f"blocks.0.attn1.to_q.lora_{ab}.weight": torch.full((4, 4), float(i)) for i, ab in enumerate("AB")}
    metadata = {"r": 4, "lora_alpha": 4, "target_modules": ["to_q"], "word": "Gewöhnung"}
    digests = set()
    for i in range(12):
        adapters.save(tensors, metadata, {}, tmp_path / str(i), {})
        digests.add(adapters.sha256(tmp_path / str(i)))
    assert len(digests) == 1
    assert all(torch.equal(v, tensors[k]) for k, v in adapters.tensors(tmp_path / "0").items())
    with safe_open(tmp_path / "0" / adapters.WEIGHTS, "pt") as file:
        assert set(file.metadata()) == {"format", "lora_adapter_metadata"}


def test_an_adapter_that_knows_other_directions_is_refused_by_name(tmp_path):
    profile = Profile.load("local")
    for geometry in ("calibrated", "egox-released"):
        trained = Profile.load("local", [f"directions.geometry={geometry}"])
        adapters.save({"q": torch.ones(1)}, {}, {}, tmp_path / geometry, adapters.about(trained, bases.revision(profile.model), 1, "r"))
    assert generations.stage(profile, "egox@v1", str(tmp_path / "calibrated")).config["gga"] == "paper"
    with pytest.raises(ValueError, match=r"egox@v2 cannot be used here: it knows directions\.geometry 'egox-released', not 'calibrated'"):
        generations.stage(profile, "egox@v2", str(tmp_path / "egox-released"))
