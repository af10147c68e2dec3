import os

import torch
import torch.distributed as dist

from lightning_gen.processes import everywhere, failing_together, from_rank_zero, gathered, rank, total, world_size


def exchange(own_rank):
    torch.manual_seed(0)
    rows = torch.randn(7, 3)
    mine = torch.arange(7)[own_rank::2].flip(0)[: 3 * (1 - own_rank) + 1]
    back = gathered([rows[mine[:1]], rows[mine[1:]]], [mine[:1], mine[1:]], 3)
    return {
        "numbers": (rank(), world_size()),
        "everywhere": everywhere(f"from {own_rank}"),
        "zero": from_rank_zero({"rank": own_rank}),
        "total": total(torch.tensor([1.0, own_rank], dtype=torch.float64)),
        "gathered": back,
        "expected": rows[torch.tensor([0, 2, 4, 5, 6])],
    }


def test_two_processes(on_ranks):
    zero, one = on_ranks(exchange)
    assert zero["numbers"] == (0, 2)
    assert one["numbers"] == (1, 2)
    assert zero["everywhere"] == one["everywhere"] == ["from 0", "from 1"]
    assert zero["zero"] == one["zero"] == {"rank": 0}
    assert torch.equal(zero["total"], torch.tensor([2.0, 1.0], dtype=torch.float64))
    assert torch.equal(zero["gathered"], zero["expected"])


def rows_on_one_rank_only(own_rank):
    rows = [torch.ones(2, 4)] if own_rank else []
    return gathered(rows, [torch.tensor([1, 0])] if own_rank else [], 4)


def test_a_rank_without_rows(on_ranks):
    assert torch.equal(on_ranks(rows_on_one_rank_only)[0], torch.ones(2, 4))


def fail_on_rank_one(own_rank):
    with failing_together():
        if own_rank == 1:
            raise ValueError("the picture kaputt.png cannot be read")


def test_what_fails_on_one_rank_fails_on_all_and_says_where(on_ranks):
    zero, one = on_ranks(fail_on_rank_one)
    assert "Rank 1 failed" in str(zero)
    assert "ValueError: the picture kaputt.png cannot be read" in str(zero)
    assert "the picture kaputt.png" in str(one)
    assert "Rank 1" not in str(one)


def die_on_rank_one(own_rank):
    dist.barrier()
    if own_rank == 1:
        os._exit(9)
    total(torch.ones(3))


def test_a_rank_that_dies_is_named_as_the_cause(on_ranks):
    zero, _ = on_ranks(die_on_rank_one)
    assert "Another process of this run has ended" in str(zero)


def test_alone():
    values = torch.tensor([1.0])
    assert (rank(), world_size(), everywhere(3), from_rank_zero(4)) == (0, 1, [3], 4)
    assert total(values) is values
    shuffled = torch.tensor([2, 0, 1])
    assert gathered([torch.eye(3)], [shuffled], 3).argmax(1).tolist() == shuffled.argsort().tolist()
    with failing_together():
        pass
