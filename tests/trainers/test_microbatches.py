"""Splits into forward passes: the best of all splits, by enumerating every one."""

import itertools
import random

import pytest

from hf_align.trainers.microbatches import partition


def contiguous(n, num_parts=None):
    """Every way to cut n things in order into parts, as lists of (start, stop)."""
    for count in range(1, n + 1) if num_parts is None else [num_parts]:
        for cuts in itertools.combinations(range(1, n), count - 1):
            yield list(itertools.pairwise([0, *cuts, n]))


def every_partition(items):
    """Every set of non-empty parts that items can be put into, whatever their order."""
    if not items:
        yield []
        return
    first, *rest = items
    for parts in every_partition(rest):
        yield [[first], *parts]
        for i, part in enumerate(parts):
            yield [*parts[:i], [first, *part], *parts[i + 1 :]]


def cost(parts, overhead):
    """Of parts given as lists of lengths."""
    return sum(overhead + len(part) * max(part) for part in parts)


def keeps(parts, max_tokens):
    """Whether every part is within the limit, or a single sequence."""
    return max_tokens is None or all(
        len(part) == 1 or len(part) * max(part) <= max_tokens for part in parts
    )


def best_in_order(lengths, overhead, max_tokens=None, num_parts=None):
    """Least cost of the splits of the sorted lengths that keep the limit; None if none does."""
    ordered = sorted(lengths)
    splits = (
        [ordered[start:stop] for start, stop in cuts]
        for cuts in contiguous(len(lengths), num_parts)
    )
    costs = [cost(parts, overhead) for parts in splits if keeps(parts, max_tokens)]
    return min(costs, default=None)


def lengths_of(parts, lengths):
    return [[lengths[index] for index in part] for part in parts]


def covers_once(parts, n):
    return sorted(itertools.chain(*parts)) == list(range(n)) and all(parts)


def cases(seed, count):
    """Random problems: lengths with ties, an overhead, and a limit that some may not keep."""
    rng = random.Random(seed)
    for _ in range(count):
        n = rng.randint(1, 8)
        lengths = [rng.choice([1, 2, 3, 5, 8, 13, 40, rng.randint(1, 60)]) for _ in range(n)]
        yield lengths, rng.choice([0, 1, 10, 50, 500]), rng.randint(4, 150)


@pytest.mark.parametrize("limited", [False, True])
def test_it_costs_what_the_best_contiguous_split_costs(limited):
    for lengths, overhead, limit in cases(0, 250):
        max_tokens = limit if limited else None
        parts = partition(lengths, overhead, max_tokens)
        assert covers_once(parts, len(lengths))
        found = lengths_of(parts, lengths)
        assert keeps(found, max_tokens)
        assert cost(found, overhead) == best_in_order(lengths, overhead, max_tokens)


@pytest.mark.parametrize("limited", [False, True])
def test_with_a_number_of_parts_it_is_the_best_split_into_so_many(limited):
    unkept = 0
    for lengths, overhead, limit in cases(1, 120):
        max_tokens = limit if limited else None
        for num_parts in range(1, len(lengths) + 1):
            parts = partition(lengths, overhead, max_tokens, num_parts)
            assert covers_once(parts, len(lengths))
            assert len(parts) == num_parts
            best = best_in_order(lengths, overhead, max_tokens, num_parts)
            if best is None:  # so few parts cannot keep the limit, and have to be made anyway
                unkept += 1
                continue
            found = lengths_of(parts, lengths)
            assert keeps(found, max_tokens)
            assert cost(found, overhead) == best
    assert (unkept > 0) == limited


def test_no_split_in_another_order_is_cheaper():
    for lengths, overhead, limit in cases(2, 400):
        if len(lengths) > 6:
            continue
        for max_tokens in (None, limit):
            found = lengths_of(partition(lengths, overhead, max_tokens), lengths)
            splits = [s for s in every_partition(lengths) if keeps(s, max_tokens)]
            assert cost(found, overhead) == min(cost(s, overhead) for s in splits)


def test_it_never_costs_more_than_one_pass_for_all_or_one_each():
    rng = random.Random(3)
    for _ in range(30):
        lengths = [min(200, int(rng.lognormvariate(3, 1)) + 1) for _ in range(rng.randint(1, 60))]
        overhead = rng.choice([0, 20, 128, 4096])
        parts = partition(lengths, overhead)
        assert covers_once(parts, len(lengths))
        found = cost(lengths_of(parts, lengths), overhead)
        assert found <= cost([lengths], overhead)
        assert found <= cost([[length] for length in lengths], overhead)


def test_analytic_cases():
    assert partition([], 10) == []
    assert partition([5], 10) == [[0]]
    # Padding three short ones to 100 costs 297 tokens, a second pass 10.
    assert partition([100, 1, 1, 1], 10) == [[1, 2, 3], [0]]
    # A pass of its own never pays where it costs more than all padding.
    assert partition([100, 1, 1, 1], 298) == [[1, 2, 3, 0]]
    # Equal lengths share a pass for any overhead, unequal ones for one above the padding.
    assert partition([3, 7, 3, 7], 1) == [[0, 2], [1, 3]]
    assert partition([3, 7, 3, 7], 9) == [[0, 2, 1, 3]]
    # The longest sequence may exceed the limit, and is then alone.
    assert partition([9, 2, 2, 50], 1000, max_tokens=30) == [[1, 2, 0], [3]]
    assert partition([9, 2, 2, 50], 1000, max_tokens=20) == [[1, 2], [0], [3]]


def test_impossible_numbers_of_parts_are_refused():
    for num_parts in (0, 4):
        with pytest.raises(ValueError, match=f"3 sequences cannot make {num_parts} parts"):
            partition([1, 2, 3], 10, num_parts=num_parts)
