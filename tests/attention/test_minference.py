"""MInference's three shapes, the tiles they run, and the search that gives each head its own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.museum.attention.minference import (
    columns_counted_twice,
    lines_without_mask,
    padded_means,
    published_winner,
    slashes_by_row_number,
)
from tutor.attention.dense import attend, causal_mask, positions, probs
from tutor.attention.methods.dense import Dense
from tutor.attention.methods.minference import (
    HeadPattern,
    MInference,
    default_candidates,
    heaviest_lines,
    jaccard,
    kept_by_lines,
    search,
    shipped,
    shipped_patterns,
    tiles_of,
)
from tutor.attention.methods.pooled_blocks import PooledBlocks, pooled
from tutor.attention.methods.streaming import Streaming
from tutor.attention.methods.vertical_slash import Plan, VerticalSlash, lines, plan, slash_sums
from tutor.attention.selection import attend_selected, mass_recall

COVERS = ("attention.vertical_slash", "attention.pooled_blocks", "attention.minference")


def make(b=1, hq=2, hkv=1, t=60, s=60, d=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(b, h, n, d, generator=g) for h, n in ((hq, t), (hkv, s), (hkv, s)))


def flags(keys: int, *chosen: int) -> torch.Tensor:
    out = torch.zeros(1, 1, keys, dtype=torch.bool)
    out[..., list(chosen)] = True
    return out


# ------------------------------------------------------------------------------------------------- lines and plans

def test_columns_and_slashes_by_hand():
    # Three rows at positions 1, 2, 3 of four keys:   0.5 0.5  .   .    slash 0: 0.5 + 0.5 + 0.4 = 1.4
    #                                                 0.2 0.3 0.5  .    slash 1: 0.5 + 0.3 + 0.3 = 1.1
    #                                                 0.1 0.2 0.3 0.4   slash 2: 0.2 + 0.2 = 0.4;  slash 3: 0.1
    a = torch.tensor([[0.5, 0.5, 0, 0], [0.2, 0.3, 0.5, 0], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(slash_sums(a[None, None], torch.arange(1, 4))[0, 0],
                               torch.tensor([1.4, 1.1, 0.4, 0.1], dtype=torch.float64))
    q, k = torch.ones(1, 1, 3, 1), torch.tensor([1.0, 1.0, 2.0, 4.0]).log().reshape(1, 1, 4, 1)
    vertical, slash = lines(q, k)                    # rows: (1,1)/2; (1,1,2)/4; (1,1,2,4)/8
    torch.testing.assert_close(vertical[0, 0], torch.tensor([0.875, 0.875, 0.75, 0.5], dtype=torch.float64))
    torch.testing.assert_close(slash[0, 0], torch.tensor([1.5, 1.0, 0.375, 0.125], dtype=torch.float64))


def test_the_slash_sums_equal_the_plain_loop():
    q, k, _ = make(2, 4, 2, 30, 50)
    pos = torch.arange(40, 50)
    a = probs(q[:, :, -10:], k, pos_q=pos)
    want = torch.zeros(2, 4, 50, dtype=torch.float64)
    for r, p in enumerate(pos.tolist()):
        for o in range(p + 1):
            want[:, :, o] += a[:, :, r, p - o]
    torch.testing.assert_close(slash_sums(a, pos), want)


def test_a_plan_by_hand():
    # Tiles of 4. Block 2 holds rows 8..11. Offset 0 needs keys 8..11, offset 1 needs 7..10, offset 6 needs 2..5.
    # From left to right: a tile at 2 (keys 2..5), one at 7 (7..10), then 11 is still needed: one at 11.
    # Columns 0 and 3: 3 lies in a tile, 0 is gathered. Column 6 too; column 11 lies in a tile. Tiles run: 3 + 1 chunk.
    made = plan(flags(12, 0, 3, 6, 11), flags(12, 0, 1, 6), torch.arange(12), 4)
    assert made.starts[0, 0, 2].tolist() == [2, 7, 11] and made.columns[0, 0, 2].tolist() == [0, 6]
    assert made.mask(12, 12)[0, 0, 8].nonzero()[:, 0].tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    # Block 0, rows 0..3: offset 6 lies before the text; offset 1 needs -1..2 and starts at 0; 0..3 covers offset 0.
    assert made.starts[0, 0, 0].tolist() == [0, -1, -1] and made.columns[0, 0, 0].tolist() == [-1, -1]
    # Block 1, rows 4..7: offset 6 needs -2..1: a tile at 0; offset 1 needs 3..6: 4; offset 0 needs 4..7: held.
    assert made.starts[0, 0, 1].tolist() == [0, 4, -1]
    assert made.tiles().tolist() == [[1 + 2 + 3 + 1]]


def test_tiles_of_one_key_are_the_bare_lines():
    q, k, _ = make(t=40, s=40)
    method = VerticalSlash(k_v=5, k_s=6, tile=1, last_q=9, sinks=2, near=3)
    columns, slashes = method.choose(q, k)
    assert columns.sum(-1).tolist() == [[5, 5]] and columns[..., :2].all()
    assert slashes.sum(-1).tolist() == [[6, 6]] and slashes[..., :3].all()
    back = torch.arange(40)[:, None] - torch.arange(40)
    want = (columns[:, :, None] | slashes[:, :, back.clamp(min=0)]) & (back >= 0)
    assert torch.equal(method.select(q, k)[0].mask(), want)


def oracle(columns, slashes, pos, tile, keys) -> list[tuple[list[int], list[int]]]:
    """The rule in plain loops: for each query block its tiles and its single keys."""
    out = []
    for rows in pos.split(tile):
        a, last = int(rows[0]), int(rows.max())
        needed = {j for o in slashes for j in range(a - o, a - o + tile) if j >= 0}
        needed |= {j for o in slashes if a - o < 0 < a - o + tile for j in range(0, tile)}     # clipped tiles stay whole
        starts, j = [], 0
        while j <= last:
            if j in needed:
                starts.append(j)
                j += tile
            else:
                j += 1
        inside = {j for start in starts for j in range(start, start + tile)}
        out.append((starts, [c for c in sorted(columns) if c not in inside and c <= last and c < keys]))
    return out


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_no_key_is_read_twice_and_every_line_is_covered(data):
    keys = data.draw(st.integers(1, 60))
    t = data.draw(st.integers(1, keys))
    tile = data.draw(st.sampled_from([1, 2, 5, 8, 16]))
    columns = data.draw(st.sets(st.integers(0, keys - 1), max_size=10))
    slashes = data.draw(st.sets(st.integers(0, keys - 1), max_size=10)) | {0}
    pos = torch.arange(keys - t, keys)
    made = plan(flags(keys, *columns), flags(keys, *slashes), pos, tile)
    for block, want in enumerate(oracle(columns, slashes, pos, tile, keys)):
        starts = [j for j in made.starts[0, 0, block].tolist() if j >= 0]
        singles = [j for j in made.columns[0, 0, block].tolist() if j >= 0]
        assert (starts, singles) == want
        read = [j for start in starts for j in range(start, start + tile)] + singles
        assert len(read) == len(set(read))
    seen = causal_mask(pos, keys)
    back = pos[:, None] - torch.arange(keys)
    drawn = (flags(keys, *slashes)[0, 0][back.clamp(min=0)] | flags(keys, *columns)[0, 0]) & seen
    assert (made.mask(t, keys)[0, 0] & seen)[drawn].all()                  # tiles hold the lines


def test_the_published_example_of_a_double_count():
    """A column inside a tile, gathered again, pulls the output towards its value."""
    logits, v = torch.zeros(6, dtype=torch.float64), torch.tensor([0.0, 0, 0, 6, 0, 0], dtype=torch.float64)[:, None]
    assert columns_counted_twice([2], [0], 4, logits, v) == 6 / 5          # keys 2, 3, 4, 5 and 0
    assert columns_counted_twice([2], [0, 3], 4, logits, v) == 12 / 6      # key 3 twice


# ------------------------------------------------------------------------------------------------- vertical-slash

@pytest.mark.parametrize("method", [VerticalSlash(k_v=200), VerticalSlash(k_s=200), VerticalSlash(k_v=200, tile=1),
                                    VerticalSlash(k_v=1, k_s=200, tile=64, near=1, sinks=0), PooledBlocks(200),
                                    PooledBlocks(200, side=7), MInference(share=1.0)], ids=str)
@pytest.mark.parametrize("t, s", [(90, 90), (33, 90), (1, 40), (63, 64)])
def test_a_whole_budget_is_dense(method, t, s):
    q, k, v = make(2, 4, 2, t, s)
    sel, cost = method.select(q, k, v=v)
    assert torch.equal(sel.mask(), Dense().select(q, k)[0].mask())
    torch.testing.assert_close(attend_selected(q, k, v, sel).o, attend(q, k, v).o, rtol=0, atol=1e-12)


def test_the_lines_come_from_the_last_rows_only():
    q, k, _ = make(t=50, s=50)
    method = VerticalSlash(6, 8, tile=4, last_q=10, near=2)
    changed = q.clone()
    changed[:, :, :40] += 1.0
    assert torch.equal(method.select(changed, k)[0].mask(), method.select(q, k)[0].mask())
    changed[:, :, 40:] += 1.0
    assert not torch.equal(method.select(changed, k)[0].mask(), method.select(q, k)[0].mask())


def test_permuting_heads_permutes_choices():
    q, k, v = make(1, 4, 4, 70, 70)
    order = torch.tensor([2, 0, 3, 1])
    for method in (VerticalSlash(6, 10, tile=8, near=4), PooledBlocks(2, side=8), MInference(share=0.4, side=8)):
        straight = method.select(q, k, v=v)[0].mask()[:, order]
        assert torch.equal(method.select(q[:, order], k[:, order], v=v[:, order])[0].mask(), straight)


def test_a_slash_keeps_its_distance_in_a_chunk():
    """A head that looks 5 back: the offset is found whether the queries are the whole text or its last 20 rows."""
    k = torch.eye(40)[None, None] * 30
    q = torch.zeros_like(k)
    q[0, 0, 5:] = k[0, 0, :-5]                                             # query p equals key p - 5
    for t in (40, 20, 7):
        _, slash = lines(q[:, :, -t:], k, last_q=16)
        assert slash[0, 0].argmax() == 5
    _, wrong = lines(q, k)[1], slashes_by_row_number(q[:, :, -20:], k)     # counted from the row's number
    assert wrong[0, 0].argmax() != 5
    torch.testing.assert_close(slashes_by_row_number(q, k), lines(q, k)[1])         # right while T = S


def test_without_the_mask_keys_ahead_take_the_weight():
    q, k, _ = make(t=40, s=40)
    k[:, :, -1] = q[:, :1, -20:].mean(2) * 20                              # the newest key: all but one row must not see it
    masked, bare = lines(q, k, last_q=20), lines_without_mask(q, k, last_q=20)
    assert bare[0][0, 0, -1] > 3 * masked[0][0, 0, -1] and bare[1].sum() < masked[1].sum() - 1


# ------------------------------------------------------------------------------------------------- pooled blocks

def test_pooled_blocks_by_hand():
    # Blocks of 2, one column of width. q means 1, 1, 1; k means (0 + 4)/2 = 2, (1 + 1)/2 = 1, (9 + -9)/2 = 0.
    # One block each: block 0 takes 0; block 1 takes 0 (2 > 1); block 2 takes 0, and not the one with the 9.
    q, k = torch.ones(1, 1, 6, 1), torch.tensor([0.0, 4, 1, 1, 9, -9]).reshape(1, 1, 6, 1)
    sel, cost = PooledBlocks(1, side=2).select(q, k)
    assert sel.kind == "block" and [r.nonzero()[:, 0].tolist() for r in sel.mask()[0, 0]] == [[0], [0, 1]] + [[0, 1]] * 4
    assert cost["scored"] == 1 + 2 + 3 and cost["tiles"] == 3
    assert [r.nonzero()[:, 0].tolist() for r in PooledBlocks(2, side=2).select(q, k)[0].mask()[0, 0]][4:] == [[0, 1, 2, 3]] * 2


def test_a_short_last_block_is_the_mean_of_what_it_has():
    x = torch.arange(1.0, 6.0).reshape(1, 1, 5, 1)
    mean, number = pooled(x, torch.arange(5), 2)
    assert mean.flatten().tolist() == [1.5, 3.5, 5.0] and number.tolist() == [0, 1, 2]
    assert padded_means(x, 2).flatten().tolist() == [1.5, 3.5, 2.5]        # the museum's zero is averaged in
    assert padded_means(x[:, :, :4], 2).flatten().tolist() == [1.5, 3.5, 0.0]       # and a block that does not exist appears


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 4), st.sampled_from([1, 3, 8]), st.integers(0, 99))
def test_a_chunk_reads_only_whole_allowed_blocks_and_no_row_is_empty(t, more, blocks, side, seed):
    s = t + more
    q, k, _ = make(t=t, s=s, seed=seed)
    sel, cost = PooledBlocks(blocks, side).select(q, k)
    mask, pos = sel.mask(), positions(q, k)
    assert mask.any(-1).all() and not (mask & ~causal_mask(pos, s)).any()
    number = torch.arange(s) // side
    for row, p in enumerate(pos.tolist()):
        read = mask[0, 0, row].nonzero()[:, 0]
        assert len(number[read].unique()) == min(blocks, p // side + 1)
        assert all(mask[0, 0, row, (number == n) & (torch.arange(s) <= p)].all() for n in number[read].unique())


# -------------------------------------------------------------------------------------------------- search and heads

def test_tiles_of_counts_touched_tiles():
    q, k, _ = make(hq=1, t=8, s=8)
    # Tiles of 4: a window of 1 touches the two on the diagonal; with a sink, the lower left one too.
    assert tiles_of(Streaming(0, 1).select(q, k)[0], 4).item() == 2
    assert tiles_of(Streaming(1, 1).select(q, k)[0], 4).item() == 3
    assert tiles_of(PooledBlocks(1, side=4).select(q, k)[0], 4).item() == 2
    assert tiles_of(Dense().select(q, k)[0], 3).item() == 1 + 2 + 3


def built_heads(t: int = 512) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three heads with one shape each. Keys 0 and 77 have an opposite beside them, so that the mean of a block hides them."""
    g = torch.Generator().manual_seed(3)
    k, q = torch.eye(t).expand(1, 3, t, t).clone(), torch.zeros(1, 3, t, t)
    k[0, :2, [1, 78]] = -k[0, :2, [0, 77]]
    patch = [int(torch.randint(block + 1, (), generator=g)) for block in range(t // 16)]
    far = 8 * t**0.5
    for p in range(t):
        q[0, 0, p, max(0, p - 48): p + 1] = far
        q[0, 0, p, 0] = 1.5 * far                                          # a sink and neighbours; but the last rows
        if p >= t - 64:                                                    # look elsewhere, too, and mislead the estimate
            q[0, 0, p, [p - 150, p - 200, p - 250]] = 1.2 * far
        q[0, 1, p, 77] = q[0, 1, p, max(0, p - 100)] = far                 # a column and a diagonal
        q[0, 2, p, patch[p // 16] * 16:][:16] = far                        # one patch, elsewhere for every block
    return q, k, torch.randn(1, 3, t, 4, generator=g)


def test_the_search_recognises_each_shape():
    for score in ("output", "mass"):
        found = search(*built_heads(), share=0.25, score=score)
        assert [pattern.shape for pattern in found.patterns] == ["a_shape", "vertical_slash", "blocks"]
        assert (found.tiles[torch.isfinite(found.error)] <= 0.25).all()


def test_the_search_fits_every_candidate_to_the_same_tiles():
    q, k, v = make(1, 4, 2, 320, 320)
    found = search(q, k, v, share=0.3)
    for head, pattern in enumerate(found.patterns):
        _, cost = pattern.selector(320).select(q, k)
        sel, _ = pattern.selector(320).select(q, k)
        run = tiles_of(sel) if pattern.shape == "a_shape" else None
        share = float(run[0, head]) / (20 * 21 / 2) if run is not None else cost["tiles"] / 4 / (20 * 21 / 2)
        assert share < 0.45                                                # fitted on the later rows, where most tiles are
    assert ((found.tiles > 0.2) & (found.tiles <= 0.3)).all()
    assert torch.equal(found.best, found.error.argmin(-1))


def test_every_head_gets_its_own_pattern():
    q, k, v = make(1, 6, 2, 96, 96)
    patterns = (HeadPattern("a_shape", 0.2), HeadPattern("blocks", 0.2), HeadPattern("vertical_slash", 0.1, 0.1))
    sel, cost = MInference(patterns).select(q, k)
    default = HeadPattern("vertical_slash", 1 / 16, 1 / 256)
    for head, pattern in enumerate([*patterns, default, default, default]):
        alone, _ = pattern.selector(96).select(q, k)
        assert torch.equal(sel.mask()[:, head], alone.mask()[:, head]), head
    assert cost["tiles"] > 0 and cost["build_dots"] == 0
    assert MInference().select(q, k, v=v)[1]["build_dots"] == 6 * (24 * 25 // 2) * 6


def test_a_single_query_is_dense():
    q, k, _ = make(t=1, s=50)
    assert MInference().select(q, k)[0].counts().tolist() == [[[50], [50]]]


def test_the_search_sees_the_first_quarter_only():
    q, k, v = make(1, 2, 1, 200, 200)
    other = [x.clone() for x in (q, k, v)]
    for x in other:
        x[:, :, 50:] = torch.randn(x[:, :, 50:].shape, generator=torch.Generator().manual_seed(8))
    method, pos = MInference(share=0.3), torch.arange(200)
    assert method._search_first_quarter(q, k, v, pos) == method._search_first_quarter(*other, pos)


def test_the_recorded_search_covers_every_head():
    recorded = shipped()
    assert [tuple(c) for c in recorded["candidates"]] == list(default_candidates(recorded["about"]["share"]))
    for run in recorded["runs"]:
        assert torch.tensor(run["error"]).shape == torch.tensor(run["size"]).shape == (30, 9, 5)
    assert len(shipped_patterns(20)) == 9 and all(0 < p.size <= 1 for p in shipped_patterns(2))


def test_the_recorded_search_is_what_a_search_finds():
    """Layer 25 of the capture is the same text; the recorded run computed in bf16 weights, float32 sums."""
    from tutor.data import capture

    short = capture("reference_4096").first(2048)
    found = search(short.q(25), short.k(25), short.v(25))
    (run,) = [run for run in shipped()["runs"] if (run["text"], run["tokens"]) == ("reference", 2048)]
    torch.testing.assert_close(found.error, torch.tensor(run["error"][25]).double(), rtol=0.1, atol=0.01)


def test_the_published_search_forgets_two_shapes():
    assert {published_winner(best)[0] for best in ("stream_llm", "block_sparse")} == {"vertical_and_slash"}


def test_lines_from_text_to_text_by_hand():
    """The last 2 of 80 queries look at key 20, at 70 keys back, each with a fifth of their attention, and at key 78."""
    k = torch.eye(80)[None, None] * 40
    q = torch.zeros_like(k)
    for p in (78, 79):
        q[0, 0, p] = k[0, 0, 20] + k[0, 0, p - 70] + (1 + math.log(3) * 80**0.5 / 1600) * k[0, 0, 78]
    chosen = heaviest_lines(q, k, count=1, last_q=2)
    assert chosen.shape == (2, 1, 1, 80)                                   # key 78 is heavier, but a neighbour
    assert chosen[0].nonzero()[:, 2].tolist() == [20] and chosen[1].nonzero()[:, 2].tolist() == [70]
    assert kept_by_lines(q, k, chosen, last_q=2).item() == pytest.approx(1, abs=1e-3)
    one = chosen & torch.tensor([True, False])[:, None, None, None]
    assert kept_by_lines(q, k, one, last_q=2).item() == pytest.approx(4 / 5, abs=1e-3)
    assert kept_by_lines(q, k, chosen & False, last_q=2).item() == pytest.approx(3 / 5, abs=1e-3)
    assert jaccard(torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([0, 1, 1, 0]).bool()).item() == pytest.approx(1 / 3)


def test_the_recorded_transfer_is_what_is_measured():
    """Text 1 is the text of the capture; its lines are found again, and it is its own best lender."""
    from tutor.data import capture, result

    recorded, short = result("minference-transfer"), capture("reference_4096").first(2048)
    kinds = ["manual", "code", "list", "sessions", "licence"]
    assert [row["text"] for row in recorded["rows"]] == [kind for kind in kinds for _ in range(12)]
    for row in recorded["rows"]:
        values = torch.tensor([row[name] for name in ("columns", "diagonals", "own", "borrowed", "blind")])
        assert values.shape == (5, 9) and values.min() >= 0 and values.max() <= 1
        assert row["text"] != "manual" or (row["own"] == row["borrowed"] and set(row["columns"] + row["diagonals"]) == {1.0})
        if row["text"] == "manual":
            errors = [x for name, x in row.items() if name.startswith("error_")]
            assert [list(head) for head in zip(*errors)] == shipped()["runs"][0]["error"][row["layer"]]
        if row["text"] == "manual" and row["layer"] in short.layers:
            q, k = short.q(row["layer"]), short.k(row["layer"])
            torch.testing.assert_close(kept_by_lines(q, k, heaviest_lines(q, k))[0].float(), torch.tensor(row["own"]),
                                       rtol=0, atol=0.005)


def test_more_lines_never_keep_less():
    q, k, _ = make(1, 2, 1, 80, 80)
    budgets = ((2, 4), (5, 4), (5, 12), (30, 40))
    mass = [mass_recall(q, k, VerticalSlash(v, s, tile=8, near=4).select(q, k)[0]) for v, s in budgets]
    assert all((b >= a - 1e-12).all() for a, b in zip(mass, mass[1:]))


def test_scattered_queries_are_grouped_by_position_or_refused():
    """Rows at 0-9 and 20-29, blocks of 16: as many blocks as 20 neighbouring rows have, yet other rows in them."""
    g = torch.Generator().manual_seed(3)
    q, k = torch.randn(1, 2, 64, 8, generator=g), torch.randn(1, 1, 64, 8, generator=g)
    pos = torch.cat([torch.arange(10), torch.arange(20, 30)])
    kept = PooledBlocks(1, side=16).select(q[:, :, pos], k, pos_q=pos)[0].mask()
    for block in (slice(0, 10), slice(10, 20)):
        alone = PooledBlocks(1, side=16).select(q[:, :, pos[block]], k, pos_q=pos[block])[0].mask()
        assert torch.equal(kept[:, :, block], alone)
    with pytest.raises(ValueError, match="pos_q must count up by one"):
        VerticalSlash(4, 4, tile=4, near=4).select(q[:, :, pos], k, pos_q=pos)


@pytest.mark.parametrize("make_it, message", [
    (lambda: VerticalSlash(0), "k_v must be >= 1; got 0"), (lambda: VerticalSlash(k_s=0), "k_s must be >= 1"),
    (lambda: VerticalSlash(tile=0), "tile must be >= 1"), (lambda: VerticalSlash(last_q=0), "last_q must be >= 1"),
    (lambda: VerticalSlash(near=0), "near must be >= 1"), (lambda: PooledBlocks(0), "blocks must be >= 1"),
    (lambda: PooledBlocks(side=0), "side must be >= 1"), (lambda: MInference(share=0), r"share must be in \(0, 1\]; got 0"),
    (lambda: HeadPattern("diagonal", 0.1), "shape must be one of"), (lambda: HeadPattern("blocks", 0), "size must be in"),
    (lambda: search(*make(t=5, s=4)), "T = 5 queries but S = 4 keys"), (lambda: search(*make(), share=2), "share must be in"),
    (lambda: search(*make(), score="speed"), "score must be 'output' or 'mass'"),
    (lambda: MInference((HeadPattern("blocks", 0.5),) * 3).select(*make()[:2]), "3 patterns for 2 query heads"),
], ids=range(14))
def test_impossible_requests_are_refused(make_it, message):
    with pytest.raises(ValueError, match=message):
        make_it()


def test_a_plan_without_lines_is_empty():
    nothing = torch.zeros(1, 2, 9, dtype=torch.bool)
    made = plan(nothing, nothing, torch.arange(9), 4)
    assert isinstance(made, Plan) and made.tiles().sum() == 0 and not made.mask(9, 9).any()
