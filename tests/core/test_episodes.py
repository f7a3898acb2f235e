"""Padding and resets as rows."""

from __future__ import annotations

import torch

from manyheads.core.functional import by_episode, split_episodes

REAL = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
RESET = torch.tensor([[0, 0, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]], dtype=torch.bool)


def test_every_episode_is_a_row_of_its_real_tokens():
    episodes = split_episodes(REAL, RESET)
    x = torch.arange(1, 19).view(3, 6)
    rows = [row[:n].tolist() for row, n in zip(episodes.take(x), episodes.lengths.tolist(), strict=True)]
    assert rows == [[1, 3], [4], [6], [], [], [], [13, 14, 15, 16, 17, 18]]
    assert episodes.source.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert episodes.first.tolist() == [True, False, False, True, False, True, False]
    assert episodes.last.tolist() == [2, 4, 6]


def test_put_is_the_inverse_of_take_on_real_tokens():
    x = torch.randn(3, 6, 2)
    for reset in (None, RESET):
        episodes = split_episodes(REAL, reset)
        assert torch.equal(episodes.put(episodes.take(x)), x * REAL.unsqueeze(-1))


def test_the_first_episode_goes_on_from_the_state_and_the_others_start_afresh():
    def sums(x, lengths, state):
        total = state.unsqueeze(1) + x.cumsum(1)
        return total, state + x.sum(1)

    x = torch.ones(3, 6, 1)
    state = torch.tensor([[10.0], [20.0], [30.0]])
    y, end = by_episode(sums, x, state, lambda rows, **kind: torch.zeros(rows, 1, **kind), REAL, RESET)
    assert y.squeeze(-1).tolist() == [[11, 0, 12, 1, 0, 1], [0] * 6, [1, 2, 3, 4, 5, 6]]
    assert end.squeeze(-1).tolist() == [1, 0, 6]
