"""The embedded codec: the grid of Wan's causal VAE, a linear map that is what it says, and files that come back."""

from __future__ import annotations

import pytest
import torch

from egomill.models.codec import PatchCodec, from_cells, to_cells
from egomill.models.latents import decode_video, encode_video


def smooth_video(seed=0, frames=9, height=32, width=48):
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 3, 3, 4, 6, generator=g)
    return torch.nn.functional.interpolate(coarse, size=(frames, height, width), mode="trilinear").tanh()


def fitted(layers=2) -> PatchCodec:
    torch.manual_seed(0)
    codec = PatchCodec(hidden=8, layers=layers)
    codec.fit(torch.cat([to_cells(smooth_video(seed)).flatten(0, 3) for seed in range(12)]))
    return codec


def test_cells_are_a_rearrangement():
    video = smooth_video()
    cells = to_cells(video)
    assert cells.shape == (1, 3, 4, 6, 768)
    torch.testing.assert_close(from_cells(cells), video)


@pytest.mark.parametrize("shape", [(1, 3, 8, 32, 32), (1, 3, 9, 30, 32), (1, 4, 9, 32, 32)])
def test_sizes_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="a video is"):
        to_cells(torch.zeros(shape))


def test_principal_components():
    codec = fitted()
    torch.testing.assert_close(codec.basis @ codec.basis.T, torch.eye(16), atol=1e-5, rtol=0)
    video = smooth_video(99)
    error = (codec(video) - video).square().mean()
    assert error < 0.2 * video.var()
    # The net starts as nothing: decoding is the transposed map.
    latent = codec.encode(video).latent_dist.mode()
    linear = from_cells(latent.movedim(1, -1) @ codec.basis + codec.centre)
    torch.testing.assert_close(codec.decode(latent).sample, linear)


def test_normalised_latents_have_mean_square_one_and_come_back():
    codec = fitted()
    videos = torch.cat([smooth_video(seed) for seed in range(12)])
    latent = encode_video(codec, videos)
    assert latent.shape == (12, 16, 3, 4, 6)
    assert 0.7 < latent.square().mean() < 1.3
    torch.testing.assert_close(decode_video(codec, latent), codec(videos).clamp(-1, 1), atol=1e-4, rtol=0)


def test_files_come_back(tmp_path):
    codec = fitted()
    codec.save_pretrained(tmp_path)
    again = PatchCodec.from_pretrained(tmp_path)
    assert again.config.scale_factor_temporal == 4
    assert again.config.z_dim == 16
    video = smooth_video(5)
    assert torch.equal(encode_video(codec, video), encode_video(again, video))
    assert torch.equal(codec(video), again(video))
