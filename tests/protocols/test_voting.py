"""The vote of HSNet's K-shot rule, by hand and in a test run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fssbench.protocols.voting import vote_logits
from fssbench.results.store import ResultStore
from tests.cli.run import FREE
from tests.test_method import make_trainer
from tests.toy import AnyProtocol, FreeMethod


@pytest.mark.parametrize(
    ("votes", "kept"),
    [
        ([0, 1, 2, 3, 4, 5], [False, False, False, True, True, True]),  # 2/5 is below one half
        ([0, 1, 2, 3, 4, 4], [False, False, True, True, True, True]),
        ([0, 1, 1, 0, 0, 0], [False, True, True, False, False, False]),  # one vote is enough where it is the most
        ([0, 0, 0, 0, 0, 0], [False] * 6),
    ],
)
def test_votes_are_divided_by_the_most_votes_in_the_image(votes: list[int], kept: list[bool]) -> None:
    masks = torch.stack([torch.tensor([[k < n for n in votes]]) for k in range(5)])
    released = masks.sum(0) / masks.sum(0).max().clamp(min=1)
    assert (vote_logits(masks[None]) > 0)[0, 0].tolist() == kept == (released >= 0.5)[0].tolist()


def test_every_episode_votes_for_itself_and_decides_half_way_between_two_counts() -> None:
    masks = torch.randint(0, 2, (6, 5, 7, 7), generator=torch.Generator().manual_seed(0)).bool()
    masks[0] = False
    masks[1, 2:] = False  # at most two votes
    votes, logits = masks.sum(1), vote_logits(masks)
    expected = votes / votes.amax((1, 2), keepdim=True).clamp(min=1) >= 0.5
    assert torch.equal(logits > 0, expected)
    for values, kept in list(zip(logits, expected, strict=True))[1:]:
        torch.testing.assert_close(values[kept].min(), -values[~kept].max())


def test_a_run_votes_at_the_network_size(tmp_path: Path) -> None:
    data = AnyProtocol(protocol="hsnet-compat", episodes=6, shot=3, kshot="vote")
    method = FreeMethod()
    make_trainer(tmp_path).test(method, datamodule=data, verbose=False)
    data.setup("test")
    one = AnyProtocol(image_size=16)
    for number, batch in enumerate(data.test_dataloader()):
        masks = []
        for k in range(3):
            with torch.no_grad():
                query, support = method._features(batch)
                single = {name: value[:, k : k + 1] for name, value in support.items()}
                logits = method.segment(query, single, batch.support_masks[:, k : k + 1])
            masks.append(F.interpolate(logits[None], (16, 16), mode="bilinear", align_corners=False)[0, 0] > 0)
        votes = torch.stack(masks).sum(0)
        expected = votes / votes.max().clamp(min=1) >= 0.5
        row = method.square_rows[16][number]
        target = batch.query_mask[0]
        assert row["fg_intersection"] == int((expected & (target == 1)).sum())
    assert one.kshot == "method"


def test_a_vote_is_another_experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fssbench.cli import main

    monkeypatch.chdir(tmp_path)
    base = ["test", *FREE, "--data.shot", "2", "--data.episodes_per_class", "1"]
    assert main(base) == 0
    assert main([*base, "--data.kshot", "vote"]) == 0
    records = ResultStore(tmp_path / "results").read_all().records
    assert len({r.key.config_hash for r in records}) == 2
    assert {r.metadata.kshot_mode for r in records} == {"unknown", "vote"}
