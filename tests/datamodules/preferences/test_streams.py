"""The order of training: optimizer steps, resuming, processes, and what losses are divided by."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from datamodules.examples.streams import HeldOutExamples, TrainExamples, optimizer_steps
from datamodules.preferences.dataset import PreferenceDataset


def trainer(world: int = 1, rank: int = 0, epoch: int = 0):
    return SimpleNamespace(world_size=world, global_rank=rank, current_epoch=epoch)


def some_lengths(n: int) -> list[int]:
    return torch.randint(1, 500, (n,), generator=torch.Generator().manual_seed(5)).tolist()


def flat(steps) -> list[int]:
    return [row for step in steps for batch in step for row in batch]


# ------------------------------------------------------------------------ optimizer_steps


@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 1), (2, 1), (1, 3), (4, 2), (6, 5)])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_row_is_in_one_batch_and_every_step_is_whole(batch_size, accumulate, world):
    if batch_size % world:
        batch_size *= world
    window = batch_size * accumulate
    for n in {accumulate * world + extra for extra in range(12)} | {2 * window - 1, 7 * window + 1}:
        steps = optimizer_steps(some_lengths(n), batch_size, accumulate, seed=3, world=world)
        assert sorted(flat(steps)) == list(range(n))
        assert {len(step) for step in steps} == {accumulate}
        sizes = sorted(len(batch) for step in steps for batch in step)
        assert sizes[0] >= world and sizes[-1] <= batch_size + world
        odd = [step for step in steps if {len(batch) for batch in step} != {batch_size}]
        assert len(odd) <= 1
        assert all(max(map(len, s)) - min(map(len, s)) <= 1 for s in odd)


def test_the_order_follows_the_seed():
    lengths = some_lengths(64)
    first, again, other = (optimizer_steps(lengths, 4, 2, seed) for seed in (1, 1, 2))
    assert first == again != other


def test_rows_do_not_always_meet_the_same_rows():
    """Where lengths differ, too: else each epoch has the same steps in another order."""
    lengths = some_lengths(64)
    first, other = (optimizer_steps(lengths, 4, 2, seed) for seed in (1, 2))
    assert {frozenset(flat([s])) for s in first} != {frozenset(flat([s])) for s in other}


def test_equal_lengths_are_shuffled_too():
    assert flat(optimizer_steps([7] * 50, 5, 1, 0)) != list(range(50))


def spread(batches, lengths) -> float:
    return sum(max(lengths[r] for r in b) - min(lengths[r] for r in b) for b in batches) / len(
        batches
    )


def test_similar_lengths_share_a_batch_and_steps_come_in_random_order():
    lengths = some_lengths(1024)
    steps = optimizer_steps(lengths, 8, 2, seed=0)
    rows = torch.randperm(1024, generator=torch.Generator().manual_seed(1)).tolist()
    random = [rows[i : i + 8] for i in range(0, 1024, 8)]
    assert spread(list(itertools.chain(*steps)), lengths) < spread(random, lengths) / 10
    means = torch.tensor([[sum(lengths[r] for r in flat([s])) for s in steps]]).float()
    places = torch.arange(len(steps))[None].float()
    assert abs(torch.corrcoef(torch.cat([means, places]))[0, 1]) < 0.4
    longest_first = [max(range(1024), key=lengths.__getitem__) in flat([s]) for s in steps]
    assert longest_first.index(True) not in (0, len(steps) - 1)


@pytest.mark.parametrize(
    ("n", "batch_size", "accumulate", "world"), [(0, 1, 1, 1), (3, 2, 4, 1), (5, 2, 3, 2)]
)
def test_too_few_rows_are_refused_with_the_remedy(n, batch_size, accumulate, world):
    with pytest.raises(ValueError, match=rf"{n} examples.*gradient_accumulation_steps"):
        optimizer_steps([1] * n, batch_size, accumulate, 0, world)
    if n:
        n = accumulate * world
        assert len(optimizer_steps([1] * n, batch_size, accumulate, 0, world)) == 1


# ------------------------------------------------------------------------ TrainExamples


@pytest.fixture(scope="module")
def pairs(tokenizer):
    """26 pairs; "cc...c" and its end token are 2 to 10 response tokens."""
    chosen = ["c" * (1 + i * 7 % 9) for i in range(26)]
    return PreferenceDataset(["p" * (1 + i % 5) for i in range(26)], chosen, ["r"] * 26, tokenizer)


def rows(batches) -> list[list[int]]:
    return [batch.rows.tolist() for batch in batches]


def test_an_epoch_is_every_pair_once_in_whole_steps(pairs):
    stream = TrainExamples(pairs, trainer(), batch_size=3, accumulate=2, seed=0)
    batches = list(stream)
    assert len(batches) == len(stream) == 10  # 26 rows: 4 steps of 6, and one of 2
    assert sorted(itertools.chain(*rows(batches))) == list(range(26))
    for batch in batches:
        assert batch.split == "train" and batch.rows.dtype == torch.int64
        wanted = [pairs[r].sequences for r in batch.rows.tolist()]
        assert all(a is b for a, b in zip(batch.sequences, wanted, strict=True))


def test_epochs_and_seeds_have_orders_of_their_own(pairs):
    orders = [
        rows(TrainExamples(pairs, trainer(epoch=epoch), 3, 2, seed))
        for epoch, seed in [(0, 0), (1, 0), (0, 1), (1, 1)]
    ]
    assert len({str(order) for order in orders}) == 4
    assert rows(TrainExamples(pairs, trainer(epoch=1), 3, 2, 0)) == orders[1]


def test_one_stream_goes_through_all_epochs(pairs):
    shared = trainer()
    stream = TrainExamples(pairs, shared, 3, 2, 0)
    for epoch in range(3):
        shared.current_epoch = epoch
        assert rows(stream) == rows(TrainExamples(pairs, trainer(epoch=epoch), 3, 2, 0))


@pytest.mark.parametrize("done", range(11))
def test_resuming_yields_exactly_the_remaining_batches(pairs, done):
    whole = rows(TrainExamples(pairs, trainer(epoch=2), 3, 2, 0))
    stream = TrainExamples(pairs, trainer(epoch=2), 3, 2, 0)
    for _ in zip(range(done), stream, strict=False):
        pass
    state = stream.state_dict()
    shared = trainer(epoch=2)
    resumed = TrainExamples(pairs, shared, 3, 2, 0)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state == {"position": done}
    assert rows(resumed) == whole[done:]
    shared.current_epoch = 3
    assert rows(resumed) == rows(TrainExamples(pairs, trainer(epoch=3), 3, 2, 0))


def test_an_epoch_that_was_broken_off_starts_over_unless_resumed(pairs):
    stream = TrainExamples(pairs, trainer(), 3, 2, 0)
    first = rows(stream)
    next(iter(stream))
    assert rows(stream) == first


@pytest.mark.parametrize("world", [1, 2])
def test_totals_are_those_of_the_step_divided_by_its_parts(pairs, world):
    ranks = [list(TrainExamples(pairs, trainer(world, r), 4, 2, 0)) for r in range(world)]
    for start in range(0, len(ranks[0]), 2):
        step = [batch for batches in ranks for batch in batches[start : start + 2]]
        examples = [example for batch in step for example in batch.examples]
        responses = [len(e.sequences[0]) - e.prompt_length for e in examples]
        expected = {
            "num_examples": len(examples),
            "num_response_tokens": sum(responses),
            "num_text_tokens": sum(len(e.sequences[0]) - 1 for e in examples),
        }
        assert expected["num_response_tokens"] >= 2 * len(examples)
        for batch in step:
            for name, total in expected.items():
                assert batch.totals[name] == pytest.approx(total / (2 * world))


@pytest.mark.parametrize("n", [20, 21, 23, 24, 25])
def test_two_processes_share_the_batches_of_one(pairs, n):
    dataset = pairs.subset(range(n))  # after steps of 8 rows, 4, 5, 7, 0 or 1 are left
    alone = rows(TrainExamples(dataset, trainer(), 4, 2, 0))
    ranks = [rows(TrainExamples(dataset, trainer(2, r), 4, 2, 0)) for r in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == len(alone)
    for whole, first, second in zip(alone, *ranks, strict=True):
        assert first and second and sorted(first + second) == sorted(whole)


def test_an_epoch_that_was_done_when_the_run_stopped_is_not_mistaken_for_the_next(pairs):
    shared = trainer(epoch=2)
    stream = TrainExamples(pairs, shared, 3, 2, 0)
    stream.load_state_dict({"position": 10})  # Lightning may evaluate, and never ask for a batch
    shared.current_epoch = 3
    assert rows(stream) == rows(TrainExamples(pairs, trainer(epoch=3), 3, 2, 0))


def test_a_resumed_process_gets_its_share_of_the_remaining_batches(pairs):
    whole = rows(TrainExamples(pairs, trainer(2, 1), 4, 1, 0))
    stream = TrainExamples(pairs, trainer(2, 1), 4, 1, 0)
    stream.load_state_dict({"position": 3})
    assert rows(stream) == whole[3:]


def test_a_batch_size_that_processes_cannot_share_is_refused(pairs):
    with pytest.raises(ValueError, match=r"batch_size=3.*2"):
        TrainExamples(pairs, trainer(world=2), 3, 1, 0)


# ------------------------------------------------------------------------ HeldOutExamples


@pytest.mark.parametrize("world", [1, 2, 4])
def test_evaluation_sees_every_pair_once_over_all_processes(pairs, world):
    dataset = pairs.subset(range(25))
    streams = [HeldOutExamples(dataset, trainer(world, r), 4) for r in range(world)]
    batches = [list(stream) for stream in streams]
    assert {len(b) for b in batches} == {len(streams[0])} == {7}
    seen = [row for rank in batches for batch in rank for row in batch.rows.tolist()]
    assert sorted(seen) == list(range(25))
    for batch in itertools.chain(*batches):
        assert batch.split == "val" and batch.rows.dtype == torch.int64
        assert batch.totals["num_examples"] == 25  # of all: the batches' losses add up
