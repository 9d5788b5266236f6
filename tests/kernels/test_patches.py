"""The 4x16x16 grid and its pooling against a plain loop."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from egomill.kernels.patches import LATENT, TOKEN, grid, latent_frames, pool, spans


def test_the_paper_and_the_demo():
    assert latent_frames(49) == 13
    assert [list(span) for span in spans(9)] == [[0], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert grid(49, 448, 1232) == (13, 28, 77)
    assert grid(9, 128, 352, LATENT) == (3, 16, 44)


@settings(max_examples=30)
@given(st.integers(0, 60))
def test_spans_cover_every_frame_once(n):
    frames = 4 * n + 1
    assert [frame for span in spans(frames) for frame in span] == list(range(frames))


@pytest.mark.parametrize("frames", [0, 2, 4, 50, -3])
def test_other_lengths_are_refused(frames):
    with pytest.raises(ValueError, match="4n"):
        latent_frames(frames)


def test_other_sizes_are_refused():
    with pytest.raises(ValueError, match="multiple"):
        grid(9, 448, 796)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), frames=st.sampled_from([1, 5, 9]), cell=st.sampled_from([LATENT, TOKEN]))
def test_pool_is_the_weighted_mean(seed, frames, cell):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(frames, 2 * cell, 3 * cell, 2, generator=generator, dtype=torch.float64)
    weights = torch.rand(frames, 2 * cell, 3 * cell, generator=generator, dtype=torch.float64)
    weights[weights < 0.4] = 0
    weights[:, :cell, :cell] = 0  # one column of cells with nothing
    values[weights == 0] = float("nan")
    mean, weight = pool(values, weights, cell)
    for f, span in enumerate(spans(frames)):
        for row in range(2):
            for column in range(3):
                window = (slice(span.start, span.stop), slice(row * cell, (row + 1) * cell), slice(column * cell, (column + 1) * cell))
                w, v = weights[window].flatten(), values[window].reshape(-1, 2)
                assert weight[f, row, column] == pytest.approx(w.sum().item())
                expected = (w[w > 0, None] * v[w > 0]).sum(0) / w.sum() if w.sum() > 0 else torch.zeros(2, dtype=torch.float64)
                assert torch.allclose(mean[f, row, column], expected, atol=1e-9)
