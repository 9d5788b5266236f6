"""The order of training samples: the same for any number of workers, every sample once an epoch."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from egomill.tasks.training.samples import batch_indices, noise_generator, places, spread


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


def test_validation_is_spread_over_takes_and_another_clip_or_take_changes_one_at_most():
    takes = {f"take{t}.cam.{i}": f"take{t}" for t in range(3) for i in range(10)}
    chosen = spread(takes, 8)
    assert sorted(Counter(takes[clip] for clip in chosen).values()) == [2, 3, 3]
    assert len(set(chosen)) == 8
    assert spread(dict(reversed(takes.items())), 8) == chosen
    assert len(set(chosen) - set(spread(takes | {"take1.cam.10": "take1"}, 8))) <= 1
    assert sorted(spread({"a": "x", "b": "x"}, 8)) == ["a", "b"]
    assert spread({}, 8) == []
    many = {f"{t}.{i}": str(t) for t in range(20) for i in range(3)}
    chosen = spread(many, 8)
    assert len({many[clip] for clip in chosen}) == 8
    for t in range(20, 40):
        assert len(set(chosen) - set(spread(many | {f"{t}.0": str(t)}, 8))) <= 1


def test_nothing_to_train_on():
    with pytest.raises(ValueError, match="nothing"):
        batch_indices(0, 2, 0, 0)


@given(count=st.integers(1, 40), batch=st.integers(1, 3), steps=st.integers(1, 12), killed_at=st.integers(0, 12), seed=st.integers(0, 5))
def test_no_sample_is_skipped_or_repeated_by_workers_or_by_a_resume(count, batch, steps, killed_at, seed):
    """What 1, 2 and 4 workers are given of the same global batch, over a resume: the same samples with the same noise."""

    def seen(world: int, first: int, last: int) -> list[list[tuple[int, int]]]:
        passes = 4 // world
        found = []
        for step in range(first, last):
            indices = batch_indices(count, batch * world * passes, seed, step)
            mine = [place for part in range(passes) for rank in range(world) for place in places(batch, rank, world, part)]
            assert sorted(mine) == list(range(len(indices)))  # every place once
            found.append(sorted((place, indices[place]) for place in mine))
        return found

    whole = seen(1, 0, steps)
    middle = min(killed_at, steps)
    for world in (1, 2, 4):
        assert seen(world, 0, middle) + seen(world, middle, steps) == whole
    stream = [index for step in whole for _, index in step]
    for epoch in range(len(stream) // count):
        assert Counter(stream[epoch * count : (epoch + 1) * count]) == Counter(range(count))
