"""Which positions a painted interval changes, and the windows that are cut around them."""

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tests.reference import incremental as reference
from workers.sweep.gather import Gather, table_of
from workers.sweep.intervals import Intervals, Support, Windows1d, bounded, hull, through

SUPPORTS = st.builds(
    Support, st.integers(1, 7), st.integers(1, 5), st.integers(0, 4), st.integers(1, 3)
)


@pytest.mark.parametrize("kind", ["convolution", "maximum"])
@given(data=st.data(), support=SUPPORTS, size=st.integers(1, 30))
def test_changed_outputs_lie_inside_the_interval_which_is_tight(
    kind: str, data: st.DataObject, support: Support, size: int
) -> None:
    start = data.draw(st.integers(0, size - 1))
    stop = data.draw(st.integers(start + 1, size))
    generator = np.random.default_rng(0)
    kernel: object = support.kernel
    if kind == "convolution":
        kernel = generator.uniform(0.5, 1, support.kernel)
    outputs = len(reference.firsts(size, *support))
    assume(outputs > 0)
    layer = getattr(reference, kind)(kernel, *support[1:])
    changed = reference.changed(layer, size, start, stop, generator)

    found = through(Intervals.of([(start, stop)]), support, outputs)
    interval = range(int(found.start[0]), int(found.stop[0]))
    assert changed <= set(interval)
    assert 0 <= interval.start < interval.stop <= outputs
    if support.dilation == 1 and changed:
        assert interval == range(min(changed), max(changed) + 1)
    if not changed and support.dilation == 1:
        assert len(interval) == 1


def test_intervals_of_a_3x3_convolution_with_stride_two() -> None:
    painted = Intervals.of([(0, 1), (1, 2), (2, 3), (6, 8), (0, 8)])
    found = through(painted, Support(3, 2, 1), 4)
    assert found.start.tolist() == [0, 0, 1, 3, 0]
    assert found.stop.tolist() == [1, 2, 2, 4, 4]


@given(SUPPORTS, st.integers(1, 40), st.integers(1, 40))
def test_extent_is_what_adjacent_outputs_read(support: Support, size: int, outputs: int) -> None:
    reads = {
        o * support.stride + j * support.dilation
        for o in range(outputs)
        for j in range(support.kernel)
    }
    gathered = range(0, support.extent(outputs) * support.skip, support.skip)
    assert reads <= set(gathered)
    assert max(gathered) == max(reads)
    inside = support.inside
    assert inside.padding == 0
    assert (support.extent(outputs) - inside.span) // inside.stride + 1 == outputs


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), min_size=1, max_size=6))
def test_windows_are_equally_long_and_contain_their_intervals(pairs: list) -> None:
    intervals = Intervals.of([(start, start + length) for start, length in pairs])
    size = int(intervals.stop.max())
    windows = Windows1d.around(intervals, size)
    assert windows.length == max(length for _, length in pairs)
    assert (windows.start >= 0).all()
    assert (windows.start <= intervals.start).all()
    assert (intervals.stop <= windows.start + windows.length).all()
    assert (windows.start + windows.length <= size).all()


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 30)), min_size=1, max_size=6))
def test_bounded_intervals_are_the_middle_of_what_they_were(pairs: list) -> None:
    intervals = Intervals.of([(start, start + length) for start, length in pairs])
    found = bounded(intervals, 7)
    assert (found.stop - found.start).tolist() == [min(7, length) for _, length in pairs]
    before, after = found.start - intervals.start, intervals.stop - found.stop
    assert set((after - before).tolist()) <= {0, 1}


def test_hull_contains_all_and_whole_is_everything() -> None:
    parts = [Intervals.of([(1, 4), (5, 6)]), Intervals.of([(2, 7), (0, 1)])]
    assert hull(parts).start.tolist() == [1, 0]
    assert hull(parts).stop.tolist() == [7, 6]
    whole = Intervals.whole(2, 9)
    assert (whole.start.tolist(), whole.stop.tolist()) == ([0, 0], [9, 9])


SIDES = st.integers(1, 6)
TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", TYPES)
@settings(deadline=None)  # the first call compiles
@given(
    data=st.data(),
    sides=st.tuples(SIDES, SIDES),
    window=st.none() | st.tuples(SIDES, SIDES),
    extent=st.tuples(SIDES, SIDES),
    skip=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    border=st.sampled_from([0.0, -torch.inf, 0.5]),
    channels=st.integers(1, 20),
)
def test_gather_equals_a_loop_over_positions(
    dtype: torch.dtype,
    data: st.DataObject,
    sides: tuple[int, int],
    window: tuple[int, int] | None,
    extent: tuple[int, int],
    skip: tuple[int, int],
    border: float,
    channels: int,
) -> None:
    rows = st.lists(st.tuples(*[st.integers(-8, 12)] * 4), min_size=1, max_size=4)
    table = np.array(data.draw(rows))
    clean = torch.randn(1, channels, *sides).to(dtype)
    windows = None if window is None else torch.randn(len(table), channels, *window).to(dtype)
    chosen = torch.arange(len(table)).flip(0)
    gathered = Gather(extent, table_of(*table.T), skip, border)(
        clean, None if windows is None else windows.flip(0), chosen
    )
    wanted = reference.gather(
        clean[0].double().numpy(),
        None if windows is None else windows.double().numpy(),
        table,
        extent,
        skip,
        border,
    )
    assert gathered.dtype == dtype
    assert gathered.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(gathered.flip(0).double().numpy(), wanted)


@example(order=(0, 3, 1, 2))
@given(order=st.permutations((0, 1, 2, 3)).map(tuple))
def test_gather_takes_maps_in_any_memory_layout(order: tuple[int, ...]) -> None:
    inverse = np.argsort(order).tolist()
    clean, windows = torch.randn(1, 5, 4, 6), torch.randn(2, 5, 2, 3)
    cut = Gather((3, 4), table_of(*np.array([[0, 1, 1, 2], [2, -1, 2, 0]]).T))
    strided = [x.permute(order).contiguous().permute(inverse) for x in (clean, windows)]
    rows = torch.arange(2)
    assert torch.equal(cut(*strided, rows), cut(clean, windows, rows))


@pytest.mark.parametrize(("windows", "channels"), [(2, 3), (1, 4), (3, 4)])
def test_gather_refuses_windows_that_do_not_fit_the_table(windows: int, channels: int) -> None:
    cut = Gather((2, 2), torch.zeros(2, 4, dtype=torch.int32))
    with pytest.raises(ValueError, match=f"{windows} windows of {channels} channels for 2 rows"):
        cut(torch.zeros(1, 4, 5, 5), torch.zeros(windows, channels, 2, 2), torch.arange(2))
