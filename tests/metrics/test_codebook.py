"""Use of codes against closed forms, over batches and ranks."""

import math

import pytest
import torch

from lightning_gen.metrics.codebook import CodebookUsage


def usage(num_codes, *batches):
    metric = CodebookUsage(num_codes)
    for codes in batches:
        metric.update(torch.as_tensor(codes))
    return {name: value.item() for name, value in metric.compute().items()}


def test_all_codes_alike_have_the_perplexity_of_their_number():
    assert usage(64, torch.arange(64).repeat(5)) == pytest.approx({"perplexity": 64, "used": 1, "dead_codes": 0})


def test_one_code_alone_has_perplexity_1():
    assert usage(64, torch.full((4, 8, 8), 17)) == pytest.approx({"perplexity": 1, "used": 1 / 64, "dead_codes": 63})


def test_perplexity_is_exp_of_the_entropy_of_the_shares():
    shares = (0.5, 0.25, 0.125, 0.125)
    entropy = -sum(p * math.log(p) for p in shares)
    found = usage(5, [0] * 4, [[2, 2], [3, 4]])  # any shapes
    assert found == pytest.approx({"perplexity": math.exp(entropy), "used": 4 / 5, "dead_codes": 1})


def test_it_is_of_all_codes_together_not_a_mean_over_batches():
    # Each batch knows one code only; the mean of their perplexities would be 1.
    assert usage(4, [0, 0], [1, 1], [2, 2], [3, 3])["perplexity"] == pytest.approx(4)
    # And a last batch of one code weighs as one.
    assert usage(2, [0] * 9, [1])["perplexity"] == pytest.approx(math.exp(-0.9 * math.log(0.9) - 0.1 * math.log(0.1)))


@pytest.mark.parametrize(("wrong", "found"), [(8, 8), (-1, -1), (1000, 1000)])
def test_codes_out_of_range_are_named(wrong, found):
    metric = CodebookUsage(8)
    with pytest.raises(ValueError, match=rf"from 0 to 7, got {found}\. num_codes"):
        metric.update(torch.tensor([0, wrong, 3]))
    assert metric.counts.sum() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.uint8, torch.bool])
def test_codes_of_other_types_are_refused(dtype):
    with pytest.raises(ValueError, match=f"must be int64, got {dtype}"):
        CodebookUsage(8).update(torch.zeros(3, dtype=dtype))


def test_nothing_seen_is_an_error():
    with pytest.raises(ValueError, match="no codes on any rank"), pytest.warns(UserWarning, match="before the"):
        CodebookUsage(8).compute()
    with pytest.raises(ValueError, match="no codes on any rank"):
        usage(8, torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        CodebookUsage(0)


def test_states_count_on_under_half_precision_and_after_inference_mode():
    metric = CodebookUsage(1000).to(torch.bfloat16).half()
    with torch.inference_mode():
        metric.update(torch.full((3001,), 7))
        metric.reset()
    metric.update(torch.full((3001,), 7))
    assert metric.counts[7] == 3001  # bfloat16 and float16 have no such number
    assert metric.counts.dtype == torch.int64


CODES = torch.randint(0, 20, (40, 6), generator=torch.Generator().manual_seed(0)) ** 2 // 20


def of_rank(rank, bounds):
    metric = CodebookUsage(20)
    for i in range(*bounds[rank : rank + 2], 4):  # not at all for an empty share
        metric.update(CODES[i : min(i + 4, bounds[rank + 1])])
    return metric.compute()


@pytest.mark.parametrize("bounds", [(0, 27, 40), (0, 0, 40)])
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_ranks_with_unequal_shares_equal_one_process(on_ranks, bounds):
    expected = of_rank(0, (0, 40))
    for found in on_ranks(of_rank, bounds):
        assert found.keys() == expected.keys()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=0)
