"""Sharding: evaluation counts each episode once, training gives each process equally many."""

from __future__ import annotations

import pytest

from fssbench.errors import UserError
from fssbench.protocols.sampler import ShardedEpisodeSampler


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("episodes", [1, 5, 12])
def test_evaluation_shards_are_a_partition(episodes: int, world_size: int) -> None:
    shards = [list(ShardedEpisodeSampler(episodes, rank, world_size)) for rank in range(world_size)]
    assert sorted(index for shard in shards for _, index in shard) == list(range(episodes))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_training_shards_are_equal_and_never_repeat(world_size: int) -> None:
    samplers = [ShardedEpisodeSampler(5, rank, world_size, pad=True) for rank in range(world_size)]
    shards = [list(s) for s in samplers]
    assert len({len(shard) for shard in shards}) == 1
    assert [len(s) for s in samplers] == [len(shard) for shard in shards]
    drawn = [index for shard in shards for _, index in shard]
    assert len(set(drawn)) == len(drawn) >= 5


def test_the_epoch_travels_with_the_index() -> None:
    sampler = ShardedEpisodeSampler(3, 1, 2, pad=True)
    sampler.set_epoch(4)
    assert list(sampler) == [(4, 1), (4, 3)]


def test_a_wrong_rank_is_refused() -> None:
    with pytest.raises(UserError):
        ShardedEpisodeSampler(3, 2, 2)


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_with_an_order_each_process_gets_a_block_of_it(world_size: int) -> None:
    order = [3, 0, 4, 1, 2, 5, 6, 9, 8, 7]
    samplers = [ShardedEpisodeSampler(10, rank, world_size, order=order, epoch=2) for rank in range(world_size)]
    blocks = [[index for _, index in sampler] for sampler in samplers]
    assert [index for block in blocks for index in block] == order
    assert [len(sampler) for sampler in samplers] == [len(block) for block in blocks]
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1
