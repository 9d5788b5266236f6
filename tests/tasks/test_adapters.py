"""An adapter's files."""

import torch
from safetensors import safe_open

from egomill.tasks import adapters


def test_the_same_adapter_is_the_same_bytes(tmp_path):
    tensors = {f"blocks.0.attn1.to_q.lora_{ab}.weight": torch.full((4, 4), float(i)) for i, ab in enumerate("AB")}
    metadata = {"r": 4, "lora_alpha": 4, "target_modules": ["to_q"], "word": "Gewöhnung"}
    digests = set()
    for i in range(12):
        adapters.save(tensors, metadata, tmp_path / str(i), {})
        digests.add(adapters.sha256(tmp_path / str(i)))
    assert len(digests) == 1
    assert all(torch.equal(v, tensors[k]) for k, v in adapters.tensors(tmp_path / "0").items())
    with safe_open(tmp_path / "0" / adapters.WEIGHTS, "pt") as file:
        assert set(file.metadata()) == {"format", "lora_adapter_metadata"}
