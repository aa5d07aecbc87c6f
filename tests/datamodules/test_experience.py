"""Minibatches of token sequences, by hand."""

import io

import pytest
import torch
from torch.testing import assert_close

from datamodules import Experience, Minibatch, TokenBatch


def batch() -> TokenBatch:
    return TokenBatch.collate(
        [
            torch.tensor([10, 11, 12, 20, 21]),
            torch.tensor([13, 22]),
            torch.tensor([10, 20, 90, 21]),
        ],
        [torch.tensor([3, 4]), torch.tensor([1]), torch.tensor([1, 3])],
    )


def test_collate_lists_actions_row_by_row():
    tokens = batch()
    assert [s.tolist() for s in tokens.sequences] == [
        [10, 11, 12, 20, 21],
        [13, 22],
        [10, 20, 90, 21],
    ]
    assert [p.tolist() for p in tokens.positions] == [[3, 4], [1], [1, 3]]
    assert tokens.mask.tolist() == [[True, True], [True, False], [True, True]]
    assert tokens.actions.tolist() == [20, 21, 22, 20, 21]


def test_an_episode_without_actions_counts_nowhere():
    none = torch.tensor([], dtype=torch.long)
    tokens = TokenBatch.collate(
        [torch.tensor([1, 2]), torch.tensor([3])], [torch.tensor([1]), none]
    )
    assert tokens.mask.tolist() == [[True], [False]] and tokens.actions.tolist() == [2]
    nothing = TokenBatch.collate([torch.tensor([3])], [none])
    assert nothing.mask.tolist() == [[False]] and nothing.scatter(torch.zeros(0)).tolist() == [[0]]


def test_scatter_puts_flat_numbers_back_in_their_rows_with_zeros_elsewhere():
    flat = torch.tensor([1.0, 2, 3, 4, 5], requires_grad=True)
    scattered = batch().scatter(flat)
    assert scattered.tolist() == [[1, 2], [3, 0], [4, 5]]
    (scattered * torch.tensor([[1.0, 10], [100, 1e6], [1000, 10_000]])).sum().backward()
    assert flat.grad.tolist() == [1, 10, 100, 1000, 10_000]


def test_scatter_undoes_taking_the_mask():
    numbers = torch.randn(3, 2) * batch().mask
    assert torch.equal(batch().scatter(numbers[batch().mask]), numbers)


def experience(**others) -> Experience:
    """Two episodes of one turn, and one of two turns with an answer of the environment between."""
    numbers = torch.arange(12.0).view(3, 4)
    return Experience(
        sequences=[
            torch.tensor([10, 11, 12, 20, 21]),
            torch.tensor([13, 22]),
            torch.tensor([10, 11, 20, 21, 22, 90, 91, 23]),
        ],
        positions=[torch.tensor([3, 4]), torch.tensor([1]), torch.tensor([2, 3, 4, 7])],
        mask=torch.arange(4)[None, :] < torch.tensor([[2], [1], [4]]),
        old_logprobs=numbers,
        advantages=numbers + 100,
        **others,
    )


def with_critic() -> Experience:
    numbers = torch.arange(12.0).view(3, 4)
    return experience(values=numbers + 200, returns=numbers + 300)


def test_a_minibatch_is_padded_to_its_own_longest_sequence_only():
    small = with_critic().minibatch([1, 0], num_actions=7.5)
    assert [s.tolist() for s in small.tokens.sequences] == [[13, 22], [10, 11, 12, 20, 21]]
    assert small.tokens.mask.tolist() == [[True, False], [True, True]]
    assert small.old_logprobs.tolist() == [[4, 5], [0, 1]]
    assert small.advantages.tolist() == [[104, 105], [100, 101]]
    assert small.values.tolist() == [[204, 205], [200, 201]]
    assert small.returns.tolist() == [[304, 305], [300, 301]]
    assert small.num_actions == 7.5
    shortest = with_critic().minibatch([1], num_actions=1)
    assert [s.tolist() for s in shortest.tokens.sequences] == [[13, 22]]
    assert shortest.old_logprobs.tolist() == [[4]]


def test_a_minibatch_of_all_rows_holds_all():
    everything = with_critic().minibatch([0, 1, 2], num_actions=7)
    assert [len(s) for s in everything.tokens.sequences] == [5, 2, 8]
    assert torch.equal(everything.tokens.mask, with_critic().mask)
    assert torch.equal(everything.returns, with_critic().returns)


def test_without_a_critic_values_and_returns_stay_away():
    small = experience().minibatch([0, 2], num_actions=6)
    assert small.values is None and small.returns is None
    assert small.to("cpu").values is None


def test_actions_are_counted_over_the_given_episodes():
    whole = experience()
    assert len(whole) == 3
    assert [whole.num_actions(rows) for rows in ([0], [1, 2], [0, 1, 2], [])] == [2, 5, 7, 0]


@pytest.mark.parametrize("make", [with_critic, experience])
def test_the_state_survives_a_checkpoint_read_with_weights_only(make):
    file = io.BytesIO()
    torch.save(make().state_dict(), file)
    file.seek(0)
    restored = Experience(**torch.load(file, weights_only=True))
    first, second = (e.minibatch([2, 0], num_actions=6.0) for e in (make(), restored))
    assert_same(first, second)
    assert len(restored) == 3 and torch.equal(restored.mask, make().mask)


def assert_same(first: Minibatch, second: Minibatch) -> None:
    for name in ("old_logprobs", "advantages", "values", "returns"):
        assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=0)
    for name in ("actions", "mask"):
        assert torch.equal(getattr(first.tokens, name), getattr(second.tokens, name))
    for name in ("sequences", "positions"):
        pairs = zip(getattr(first.tokens, name), getattr(second.tokens, name), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert first.num_actions == second.num_actions


def test_cpu_is_a_detached_copy():
    numbers = torch.zeros(3, 4, requires_grad=True)
    moved = experience(values=numbers * 2, returns=None).cpu()
    assert not moved.values.requires_grad and moved.values.device.type == "cpu"
    assert moved.returns is None


def test_moving_a_minibatch_moves_its_tensors_and_leaves_ragged_lists_to_the_layout():
    moved = with_critic().minibatch([0, 1], num_actions=3.0).to("meta")
    tensors = [moved.old_logprobs, moved.advantages, moved.values, moved.returns]
    tensors += [moved.tokens.actions, moved.tokens.mask]
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert moved.num_actions == 3.0


# ----------------------------------------------------------------------- groups


def tokens_of(*rows):
    """A batch of (token ids, positions)."""
    sequences = [torch.tensor(ids) for ids, _ in rows]
    return TokenBatch.collate(sequences, [torch.tensor(at, dtype=torch.long) for _, at in rows])


def test_neighbours_of_one_prompt_are_a_group_whatever_failed_between_them():
    tokens = tokens_of(
        ([1, 2, 3, 4], [3]), ([1, 2, 9], []), ([1, 2, 3, 5, 6], [3, 4]), ([7, 8, 9], [2])
    )
    assert tokens.groups() == [[0, 1, 2], [3]]


def test_a_prompt_that_comes_again_later_or_is_a_token_long_makes_no_group():
    tokens = tokens_of(([1, 2, 3], [2]), ([4, 5, 6], [2]), ([1, 2, 7], [2]))
    assert tokens.groups() == [[0], [1], [2]]
    assert tokens_of(([1, 5, 6], [1, 2]), ([1, 7, 8], [1, 2])).groups() == [[0], [1]]


def test_groups_may_be_given():
    sequences = [torch.tensor([1, 2, 3])] * 3
    tokens = TokenBatch.collate(sequences, [torch.tensor([1])] * 3, group_sizes=(1, 2))
    assert tokens.groups() == [[0], [1, 2]]
