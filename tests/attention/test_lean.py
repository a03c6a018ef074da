"""Schedules of a decoding step: every tile once, equal shares, and the same numbers as dense attention."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.museum.attention.lean import merge_without_maximum, run_with_flags
from tutor.attention.dense import attend
from tutor.attention.methods.flash import Flash
from tutor.attention.methods.lean import (
    Lean,
    Piece,
    fixups,
    floor_makespan,
    lean_makespan,
    makespan,
    occupancy,
    run,
    schedule,
    tiles_of,
    trace_schedule,
)
from tutor.attention.methods.split_k import SplitK, best_splits, run_splits, split_makespan, split_schedule
from tutor.attention.partial import Partial
from tutor.attention.patch import delta_nll
from tutor.model.llama import tiny_llama
from tutor.schemas import INTERVALS, timeline_busy

COVERS = ("attention.lean", "attention.split_k")

RAGGED = st.lists(st.integers(0, 9), min_size=1, max_size=8)
WORKERS = st.integers(1, 14)


def make(seed=0, b=3, hq=4, hkv=2, t=1, s=11, d=4, dv=3):
    g = torch.Generator().manual_seed(seed)
    sizes = ((hq, t, d), (hkv, s, d), (hkv, s, dv))
    return [torch.randn(b, h, n, w, generator=g, dtype=torch.float64) for h, n, w in sizes]


def close(part, want, tol=1e-12):
    torch.testing.assert_close(part.o, want.o, rtol=0, atol=tol)
    torch.testing.assert_close(part.lse, want.lse, rtol=0, atol=tol)


def dense_by_request(q, k, v, lengths):
    parts = [attend(q[b:b + 1], k[b:b + 1, :, :n], v[b:b + 1, :, :n]) for b, n in enumerate(lengths)]
    return Partial(torch.cat([part.o for part in parts]), torch.cat([part.lse for part in parts]))


def each_tile(pieces):
    return sorted((piece.output, tile) for piece in pieces for tile in range(piece.first, piece.last))


# --------------------------------------------------------------------------------------------------- on paper

def test_shares_by_hand():
    # Outputs of 2, 0 and 5 tiles: 7 tiles for 3 workers, shares of ceil(7/3) = 3, then 2 and 2.
    # Worker 0 runs the whole of output 0 and hosts output 2; workers 1 and 2 go on with it.
    assert schedule([2, 0, 5], 3) == [
        Piece(0, 0, 0, 2, host=True, finishing=True), Piece(0, 2, 0, 1, host=True, finishing=False),
        Piece(1, 2, 1, 3, host=False, finishing=False), Piece(2, 2, 3, 5, host=False, finishing=True)]


def test_splits_by_hand():
    # Two outputs of 4 tiles in 3 splits of ceil(4/3) = 2: the third is empty. Four blocks on three workers:
    # the fourth waits for worker 0, which is busy 4 units; 8 tiles in 3 * 4 worker units.
    pieces = split_schedule([4, 4], 3, 3)
    assert [(p.worker, p.output, p.first, p.last) for p in pieces] == [(0, 0, 0, 2), (1, 0, 2, 4), (2, 1, 0, 2), (0, 1, 2, 4)]
    assert makespan(pieces) == split_makespan(2, 4, 3, 3) == 4
    assert occupancy(pieces, 3) == pytest.approx(8 / 12)
    assert lean_makespan(2, 4, 3) == makespan(schedule([4, 4], 3)) == 3
    # Five tiles in 4 splits of 2 are 2 + 2 + 1: on two workers 3 units, where whole waves would take 2 * 2.
    assert makespan(split_schedule([5], 4, 2)) == 3 < split_makespan(1, 5, 4, 2)
    # Contexts of 3, 1, 1, 1 tiles in one split on two workers: the three short ones follow each other on worker 1.
    assert [p.worker for p in split_schedule([3, 1, 1, 1], 1, 2)] == [0, 1, 1, 1]


def test_a_host_merges_the_workers_after_it_by_hand():
    # Logits log 1, log 2, log 5 and values 8, 4, 0, a tile and a worker each: (1*8 + 2*4 + 5*0) / 8 = 2, log 8.
    q = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    k = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).log().reshape(1, 1, 3, 1)
    v = torch.tensor([8.0, 4.0, 0.0], dtype=torch.float64).reshape(1, 1, 3, 1)
    for method in (Lean(3, 1), SplitK(3, 1, 3)):
        part = method.attend(q, k, v)
        assert part.o.item() == pytest.approx(2.0) and part.lse.item() == pytest.approx(math.log(8))


def test_how_many_splits_by_hand():
    assert best_splits(87, 64, 108) == 1 < best_splits(86, 64, 108)      # 86.4 outputs fill 80 % of 108 workers
    assert best_splits(4, 8, 8) == 2                                     # 4 outputs fill half, 8 blocks all of it
    # 5 outputs of 4 tiles on 8 workers: 1, 2, 4 splits fill 5/8, 10/16, 20/24. Three would fill 15/16, but its splits
    # are as long as those of two.
    assert best_splits(5, 4, 8) == 4
    assert best_splits(1, 1, 108) == best_splits(1, 0, 108) == 1
    # Of at most 128 splits of 1000 tiles, 125 is the last that shortens one (to 8 tiles); 112 (to 9) fill 85 % as much.
    assert best_splits(1, 1000, 1000) == 112


def test_words_by_hand():
    # 5 keys of 2 + 3 words = 25. Two rows. Two pieces read 2 words of q a row, one partial of 4 words is written and
    # read, the output of 4 words written: 2 * (4 + 8 + 4) = 32. Three splits: 2 * (3*2 + 3*8 + 4) = 68.
    q, k, v = make(b=1, hq=2, hkv=1, s=5, d=2, dv=3)
    lean, split, whole = Lean(2, 2).cost(q, k, v), SplitK(2, 2, 3).cost(q, k, v), SplitK(2, 2, 1).cost(q, k, v)
    assert (lean["words"], lean["flops"], lean["tiles"], lean["loaded"]) == (25 + 32, 100, 3, 5)
    assert (split["words"], split["flops"], split["tiles"]) == (25 + 68, 100, 3)
    assert whole["words"] == 25 + 2 * (2 + 4)                            # one piece an output stores no partial


# -------------------------------------------------------------------------------------------------- properties

@settings(max_examples=150, deadline=None)
@given(tiles=RAGGED, workers=WORKERS)
def test_every_tile_is_assigned_once_in_shares_that_differ_by_one_at_most(tiles, workers):
    pieces = schedule(tiles, workers)
    assert each_tile(pieces) == [(o, j) for o, t in enumerate(tiles) for j in range(t)]
    loads = [sum(p.tiles for p in pieces if p.worker == w) for w in range(workers)]
    assert max(loads) - min(loads) <= 1 and loads == sorted(loads, reverse=True)
    assert makespan(pieces) == math.ceil(sum(tiles) / workers)
    for piece in pieces:
        assert piece.tiles > 0
        assert (piece.host, piece.finishing) == (piece.first == 0, piece.last == tiles[piece.output])


@settings(max_examples=150, deadline=None)
@given(tiles=RAGGED, workers=WORKERS)
def test_one_scratch_slot_a_worker_is_enough(tiles, workers):
    pieces = schedule(tiles, workers)
    for worker in range(workers):
        mine = [piece for piece in pieces if piece.worker == worker]
        assert all(piece.host for piece in mine[1:])                     # only the first may start inside an output
    assert fixups(pieces) <= max(workers - 1, 0)
    assert [p.output for p in pieces] == sorted(p.output for p in pieces)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), lengths=st.lists(st.integers(0, 11), min_size=3, max_size=3), workers=WORKERS,
       tile=st.integers(1, 12), splits=st.integers(0, 6), t=st.sampled_from([1, 3]))
def test_any_schedule_of_ragged_requests_equals_dense(seed, lengths, workers, tile, splits, t):
    q, k, v = make(seed, t=t)
    want = dense_by_request(q, k, v, lengths)
    close(Lean(workers, tile).attend(q, k, v, lengths=lengths), want)
    close(SplitK(workers, tile, splits).attend(q, k, v, lengths=lengths), want)
    shares = schedule(tiles_of(k, tile, lengths), workers)
    close(run_splits(shares, q, k, v, tile=tile, lengths=lengths), want)


@settings(max_examples=150, deadline=None)
@given(outputs=st.integers(1, 20), tiles=st.integers(1, 24), splits=st.integers(1, 12), workers=WORKERS)
def test_the_cost_models_are_what_the_schedules_count(outputs, tiles, splits, workers):
    lean, split = schedule([tiles] * outputs, workers), split_schedule([tiles] * outputs, splits, workers)
    assert each_tile(lean) == each_tile(split)
    assert makespan(lean) == lean_makespan(outputs, tiles, workers)
    assert makespan(split) <= split_makespan(outputs, tiles, splits, workers)
    if tiles % splits == 0:
        assert makespan(split) == split_makespan(outputs, tiles, splits, workers)
    assert floor_makespan(outputs, tiles, workers) <= makespan(lean) <= makespan(split)
    assert 0 < occupancy(split, workers) <= occupancy(lean, workers) <= 1


# -------------------------------------------------------------------------------------------------- the edges

def test_one_worker_is_the_fold_over_tiles():
    q, k, v = make(1, s=23)
    close(Lean(1, 5).attend(q, k, v), Flash(1, 5).attend(q, k, v), tol=1e-15)
    assert fixups(Lean(1, 5).schedule(q, k)) == 0


def test_more_workers_than_tiles_leaves_the_rest_idle():
    q, k, v = make(2, b=1)
    pieces = Lean(50, 4).schedule(q, k)                                  # 2 KV heads of 3 tiles
    assert [piece.worker for piece in pieces] == list(range(6)) and makespan(pieces) == 1
    assert occupancy(pieces, 50) == pytest.approx(6 / 50)
    close(Lean(50, 4).attend(q, k, v), attend(q, k, v))


@pytest.mark.parametrize("method", [Lean(5, 4), SplitK(5, 4, 2), SplitK(5, 4)], ids=["lean", "split", "chosen"])
def test_an_empty_context_gives_zeros(method):
    q, k, v = make(3)
    part = method.attend(q, k, v, lengths=[0, 7, 0])
    assert (part.o[[0, 2]] == 0).all() and (part.lse[[0, 2]] == float("-inf")).all()
    close(Partial(part.o[1:2], part.lse[1:2]), attend(q[1:2], k[1:2, :, :7], v[1:2, :, :7]))
    nothing = method.attend(q, k[:, :, :0], v[:, :, :0])
    assert (nothing.o == 0).all() and method.schedule(q, k[:, :, :0]) == []
    assert makespan([]) == 0 and occupancy([], 5) == 1


def test_what_lies_behind_a_request_is_never_read():
    q, k, v = make(4)
    k[1, :, 6:], v[1, :, 6:] = float("nan"), float("nan")
    for method in (Lean(4, 4), SplitK(4, 4, 2)):
        assert torch.isfinite(method.attend(q, k, v, lengths=[11, 6, 2]).o).all()


def test_the_model_predicts_the_same_with_any_schedule():
    tiny, ids = tiny_llama(n_layers=2), torch.arange(24) % 23
    for method in (Lean(3, 8), SplitK(3, 8, 2)):
        assert abs(delta_nll(tiny, ids, method).delta) < 1e-5


def test_a_schedule_that_does_not_fit_is_refused():
    q, k, v = make(5, b=1, hq=1, hkv=1, s=8)
    good = schedule([4], 2)
    for pieces, told in (
        (good[:1], "not covered"), (good[1:], "gap or an overlap"), ([*good, good[1]], "gap or an overlap"),
        (schedule([5], 2), "do not exist"), ([Piece(0, 0, 0, 4, host=False, finishing=True)], "flagged"),
        ([good[0], Piece(7, 0, 2, 4, host=False, finishing=True)], "worker 1 does not go on"),
        (split_schedule([4], 4, 1), "one scratch slot"),
    ):
        with pytest.raises(ValueError, match=told):
            run(pieces, q, k, v, tile=2)


def test_bad_arguments_are_named():
    q, k, v = make()
    for call, told in (
        (lambda: schedule([1, -1], 2), "tiles_per_output"), (lambda: schedule([1], 0), "workers"),
        (lambda: Lean(tile=0), "tile"), (lambda: SplitK(splits=-1), "splits"),
        (lambda: Lean().attend(q, k, v, lengths=[1, 2]), "lengths"),
        (lambda: Lean().attend(q, k, v, lengths=[1, 2, 12]), "lengths"),
    ):
        with pytest.raises(ValueError, match=told):
            call()


# ------------------------------------------------------------------------------------------------ as a timeline

def rows_of(trace):
    a, words = trace.arrays, list(INTERVALS)
    return [(int(lane), float(start), float(end), words[kind], int(group)) for lane, start, end, kind, group in zip(
        a["lane"], a["start"], a["end"], a["kind"], a["group"])]


def test_shares_as_a_timeline_by_hand():
    # test_shares_by_hand, and a partial takes half a tile to join: worker 0 is free at 3, its partials are stored at 2.
    trace = trace_schedule(schedule([2, 0, 5], 3), 3, merge=0.5)
    assert rows_of(trace) == [(0, 0, 2, "work", 0), (0, 2, 3, "work", 2), (1, 0, 2, "partial", 2), (2, 0, 2, "partial", 2),
                              (0, 3, 4, "merge", 2)]
    assert trace.arrays["arrows"].tolist() == [[2, 4], [3, 4]] and trace.arrays["marked"].tolist() == [0, 1, 0, 0, 0]
    assert trace.describe(1) == "At 2 of 4 tiles: 1 of 3 workers busy; 2 partials left for others; busy 100 % of the time so far."


def test_a_second_pass_waits_for_all_splits_by_hand():
    # test_splits_by_hand: worker 0 is done at 4, so the two merges of two partials start at 4, on workers 0 and 1.
    trace = trace_schedule(split_schedule([4, 4], 3, 3), 3, merge=0.5, second_pass=True)
    assert rows_of(trace)[-2:] == [(0, 4, 5, "merge", 0), (1, 4, 5, "merge", 1)]
    assert trace.arrays["arrows"].tolist() == [[0, 4], [1, 4], [2, 5], [3, 5]] and "marked" not in trace.arrays


@settings(max_examples=80, deadline=None)
@given(tiles=RAGGED.filter(any), workers=WORKERS, splits=st.integers(0, 5))
def test_a_timeline_holds_each_tile_once_and_no_host_of_equal_shares_waits(tiles, workers, splits):
    pieces = split_schedule(tiles, splits, workers) if splits else schedule(tiles, workers)
    trace = trace_schedule(pieces, workers, merge=0, second_pass=bool(splits))
    assert timeline_busy(trace) == sum(tiles) and trace.arrays["end"].max() == makespan(pieces)
    for lane in range(workers):
        mine = sorted((start, end) for w, start, end, *_ in rows_of(trace) if w == lane and end > start)
        assert all(end <= start for (_, end), (start, _) in zip(mine, mine[1:]))        # a worker does one thing at a time
    ends = trace.arrays["end"]
    assert all(ends[i] <= trace.arrays["start"][j] for i, j in trace.arrays.get("arrows", ()))
    if not splits:
        assert all(kind != "wait" for *_, kind, _ in rows_of(trace))     # shares shrink by one at most, hosts come first
        assert len(trace.arrays.get("arrows", ())) == fixups(pieces)


def test_a_host_waits_for_a_partial_that_is_late():
    # The same cut, worker 1 first runs three tiles of its own: the host is free at 1, the partial there at 5.
    pieces = [Piece(0, 0, 0, 1, host=True, finishing=False), Piece(1, 1, 0, 3, host=True, finishing=True),
              Piece(1, 0, 1, 3, host=False, finishing=True)]
    trace = trace_schedule(pieces, 2, merge=1)
    assert rows_of(trace)[-2:] == [(0, 1, 5, "wait", 0), (0, 5, 6, "merge", 0)]
    assert trace.describe(1) == "At 1 of 6 tiles: 1 of 2 workers busy, 1 waiting; busy 100 % of the time so far."


def test_a_method_traces_itself():
    q, k, _ = make()
    for method, name in ((Lean(5, 4), "lean"), (SplitK(5, 4, 2), "split_k")):
        trace = method.trace(q, k, lengths=[11, 7, 0])
        assert trace.method == name and len(trace.subject["lanes"]) == 5
        assert trace.subject["groups"][:3] == ["request 0, head 0", "request 0, head 1", "request 1, head 0"]
        assert timeline_busy(trace) >= sum(tiles_of(k, 4, [11, 7, 0]))
    assert Lean(5, 4).trace(q[:1], k[:1]).subject["groups"] == ["head 0", "head 1"]


# ------------------------------------------------------------------------------------------------ mistakes

def test_a_waiting_host_blocks_a_device_that_runs_one_program_at_a_time():
    # Two outputs of 3 tiles on 3 workers: worker 0 hosts output 0 and waits for worker 1, which hosts output 1 and waits
    # for worker 2. One place: worker 0 never leaves it. Two places: worker 1 raises its flag, 0 ends, 2 starts, all end.
    pieces = schedule([3, 3], 3)
    assert run_with_flags(pieces, [0, 1, 2], 1) == []
    assert run_with_flags(pieces, [0, 1, 2], 2) == [0, 1, 2]
    assert run_with_flags(pieces, [2, 1, 0], 1) == [2, 1, 0]             # contributors first: nobody waits
    assert run_with_flags(schedule([2, 2, 2], 3), [0, 1, 2], 1) == [0, 1, 2]      # cuts at the borders: no partials


@settings(max_examples=60, deadline=None)
@given(tiles=RAGGED.filter(any), workers=st.integers(1, 9))
def test_contributors_first_never_blocks(tiles, workers):
    pieces = schedule(tiles, workers)
    assert run_with_flags(pieces, range(workers)[::-1], 1) == list(range(workers))[::-1]
    assert len(run_with_flags(pieces, range(workers), 2)) == workers     # in order, two places are enough


def test_partials_added_without_their_maxima_are_wrong():
    # Logits 0 and log 3, values 0 and 4: (1*0 + 3*4) / 4 = 3. Each piece alone has weight exp(0) = 1: (0 + 4) / 2 = 2.
    logits, values = torch.tensor([0.0, 3.0]).double(), torch.tensor([[0.0], [4.0]]).double()
    logits[1] = math.log(3)
    assert merge_without_maximum([logits[:1], logits[1:]], [values[:1], values[1:]]).item() == pytest.approx(2.0)
    assert merge_without_maximum([logits], [values]).item() == pytest.approx(3.0)
