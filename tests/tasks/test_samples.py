"""The order of training samples: the same for any number of workers, every sample once an epoch."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from egomill.tasks.samples import batch_indices, noise_generator


@given(count=st.integers(1, 30), batch=st.integers(1, 8), seed=st.integers(0, 5))
def test_every_sample_once_an_epoch(count, batch, seed):
    stream = [i for step in range(2 * count) for i in batch_indices(count, batch, seed, step)]
    for epoch in range(len(stream) // count):
        assert Counter(stream[epoch * count : (epoch + 1) * count]) == Counter(range(count))


def test_pure_function_of_seed_and_step():
    assert batch_indices(50, 4, 1, 7) == batch_indices(50, 4, 1, 7) != batch_indices(50, 4, 2, 7)
    draw = [torch.randn(3, generator=noise_generator(0, 5, place)) for place in (0, 0, 1)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])


def test_nothing_to_train_on():
    with pytest.raises(ValueError, match="nothing"):
        batch_indices(0, 2, 0, 0)
