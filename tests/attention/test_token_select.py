"""TokenSelect: heads vote by shares, the layer reads one set of keys, and a vote may serve several queries."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.museum.attention.token_select import cached_branch, heads_dealt_in_turn, softmax_after_the_sum
from tutor.attention.dense import attend, causal_pairs, logits, positions
from tutor.attention.methods.oracle_topk import OracleTopK
from tutor.attention.methods.token_select import PAPER, SelectionCache, TokenSelect, renumbered
from tutor.attention.selection import attend_selected
from tutor.model import rope
from tutor.model.llama import tiny_llama

COVERS = ("attention.token_select",)


def heads(*logits_of: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """One query of H heads with the given logits over the keys: head h is the unit vector e_h, key j holds column j."""
    table = torch.tensor(logits_of)                                       # (H, S)
    scale = len(table) ** 0.5                                             # undo 1 / sqrt(D), D = H
    return torch.eye(len(table))[None, :, None] * scale, table.T[None, None]


def row(selector: TokenSelect, q, k, **options) -> list[int]:
    return selector.select(q, k, **options)[0].mask()[0, 0, -1].nonzero()[:, 0].tolist()


def real(g, b=1, hq=4, hkv=2, t=40, s=120, d=16):
    return torch.randn(b, hq, t, d, generator=g), torch.randn(b, hkv, s, d, generator=g), torch.randn(b, hkv, s, d, generator=g)


def plain(method: TokenSelect, q, k) -> torch.Tensor:
    """The oracle: one loop per text, chunk and token, in the words of the rule. bool (B, Hq, T, S)."""
    (b, hq, t, d), (hkv, s) = q.shape, k.shape[1:3]
    keep = torch.zeros(b, hq, t, s, dtype=torch.bool)
    for text in range(b):
        for start in range(0, t, method.chunk):
            rows = range(start, min(start + method.chunk, t))
            n = s - t + rows[-1] + 1
            votes = {}
            for j in range(method.n_init, n - method.n_local):
                votes[j] = 0.0
            for h in range(hq):
                mean = q[text, h, list(rows)].double().mean(0)
                share = {j: float(torch.exp(mean @ k[text, h // (hq // hkv), j].double() / d**0.5)) for j in votes}
                whole = sum(share.values())
                for j in votes:
                    votes[j] += share[j] / whole
            best = sorted(votes, key=lambda j: (-votes[j], j))[:method.k_top]
            if method.n_init + method.k_top + method.n_local >= n:
                best = list(range(max(n, 0)))
            chosen = {*best, *range(min(method.n_init, s)), *range(max(n - method.n_local, 0), max(n, 0))}
            for i in rows:
                for j in chosen:
                    keep[text, :, i, j] = j <= s - t + i
    return keep


# --------------------------------------------------------------------------------------------------------- the vote

def test_votes_by_hand():
    # Head 0 gives keys 0..3 the shares 1/2, 1/4, 1/8, 1/8; head 1 gives 1/10, 1/2, 1/5, 1/5.
    # Together 0.6, 0.75, 0.325, 0.325: key 1 wins, then key 0, then of the equal ones the lower, key 2.
    q, k = heads([0.5, 0.25, 0.125, 0.125], [0.1, 0.5, 0.2, 0.2])
    k = k.log()
    method = TokenSelect(k_top=1, n_init=0, n_local=0)
    tally = method.votes(method.ballots(q.double(), k, torch.tensor([4])))[0, 0]
    torch.testing.assert_close(tally, torch.tensor([0.6, 0.75, 0.325, 0.325]).double(), rtol=0, atol=1e-6)
    assert [row(TokenSelect(n, 0, 0), q, k) for n in (1, 2, 3)] == [[1], [0, 1], [0, 1, 2]]
    assert row(TokenSelect(4, 0, 0), q, k) == [0, 1, 2, 3]


def test_the_first_and_the_last_are_kept_and_are_no_candidates():
    # The best logits stand at both ends; of the candidates 1, 2, 3 key 2 has most.
    q, k = heads([9.0, 1.0, 3.0, 2.0, 9.0, 9.0])
    assert row(TokenSelect(k_top=1, n_init=1, n_local=2), q, k) == [0, 2, 4, 5]
    assert TokenSelect(1, 1, 2).select(q, k)[1]["scored"] == 3
    assert row(TokenSelect(k_top=3, n_init=1, n_local=2), q, k) == [0, 1, 2, 3, 4, 5]
    assert TokenSelect(3, 1, 2).select(q, k)[1]["scored"] == 0, "1 + 3 + 2 >= 6 keys: nothing to choose"
    assert row(TokenSelect(k_top=1, n_init=1, n_local=0), q, k) == [0, 4], "n_local = 0: the own key must be elected"


def test_three_ways_to_vote_disagree():
    # Head 0 shouts: logits 90, 60 on keys 0, 1. Heads 1 and 2 both find key 2 by a margin of 4, then key 3.
    q, k = heads([90.0, 60.0, 0.0, 0.0, 0.0], [0.0, 0.0, 5.0, 1.0, 0.0], [0.0, 0.0, 5.0, 1.0, 0.0])
    soft, hard, logit = (TokenSelect(2, 0, 0, vote=vote) for vote in ("soft", "hard", "logit"))
    assert row(soft, q, k) == [0, 2]      # shares: 1.00, 0, 1.93, 0.04, 0.01: both findings
    assert row(hard, q, k) == [2, 3]      # votes: 1, 1, 2, 2, 0: a head's second choice counts like its first
    assert row(logit, q, k) == [0, 1]     # sums: 90, 60, 10, 2, 0: one head decides
    assert softmax_after_the_sum(logits(q, k))[0, 0].topk(2).indices.tolist() == [0, 1]


def test_the_mask_equals_the_plain_loop(rng):
    q, k, _ = real(rng, b=2, t=9, s=30)
    for method in (TokenSelect(5, 2, 6), TokenSelect(5, 0, 0), TokenSelect(4, 2, 8, chunk=4), TokenSelect(4, 0, 3, chunk=20)):
        assert torch.equal(method.select(q, k)[0].mask(), plain(method, q, k)), method


@settings(max_examples=30, deadline=None)
@given(k_top=st.integers(1, 12), n_init=st.integers(0, 6), n_local=st.integers(0, 12), chunk=st.integers(1, 7),
       t=st.integers(1, 9), s=st.integers(1, 24), seed=st.integers(0, 99))
def test_every_row_reads_what_the_rule_says(k_top, n_init, n_local, chunk, t, s, seed):
    q, k, _ = real(torch.Generator().manual_seed(seed), hq=2, hkv=1, t=t, s=s, d=4)
    method = TokenSelect(k_top, n_init, n_local, chunk=chunk)
    sel, cost = method.select(q, k)
    assert torch.equal(sel.mask(), plain(method, q, k))
    assert cost["loaded"] <= cost["pairs"] and int(sel.counts().max()) <= max(n_init + k_top + n_local, 0)


def test_all_heads_of_a_layer_read_the_same_keys_whatever_their_order(rng):
    q, k, _ = real(rng, hq=6, hkv=6)
    mask = TokenSelect(7, 2, 9).select(q, k)[0].mask()
    assert (mask == mask[:, :1]).all()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(mask, TokenSelect(7, 2, 9).select(q[:, order], k[:, order])[0].mask())


def test_one_head_that_votes_alone_is_the_oracle(rng):
    q, k, _ = real(rng, hq=1, hkv=1)
    for vote in ("soft", "hard", "logit"):
        assert torch.equal(TokenSelect(9, 0, 0, vote=vote).select(q, k)[0].mask(), OracleTopK(9).select(q, k)[0].mask())


def test_soft_votes_keep_most_of_the_mass_between_the_ends(rng):
    """Over the candidates, sum_h of a key's share is what the layer gains by it: no other k keys hold more, for any vote."""
    q, k, _ = real(rng, hq=6, hkv=2, t=12)
    shares = TokenSelect(8, 4, 10)
    summary, ends = shares.summaries(q, positions(q, k))
    a = shares.ballots(summary, k, ends).clamp(min=0)[0].sum(0)              # (T, S)
    gain = {}
    for vote in ("soft", "hard", "logit"):
        mask = TokenSelect(8, 4, 10, vote=vote).select(q, k)[0].mask()[0, 0]
        gain[vote] = (a * mask).sum(-1)
    assert (gain["soft"] >= gain["hard"] - 1e-12).all() and (gain["soft"] >= gain["logit"] - 1e-12).all()
    assert (gain["soft"] > gain["logit"]).any()


def test_a_chunk_votes_once_with_its_mean_query(rng):
    q, k, _ = real(rng, t=20, s=64)
    whole, cost = TokenSelect(6, 2, 20, chunk=20).select(q, k)
    mean = q.mean(2, keepdim=True)
    one, _ = TokenSelect(6, 2, 20).select(mean, k)
    assert torch.equal(whole.mask()[:, :, -1], one.mask()[:, :, -1])
    assert cost["scored"] == 4 * (64 - 20 - 2)
    parted = TokenSelect(6, 2, 20, chunk=10).select(q, k)[0].mask()
    assert torch.equal(parted[:, :, 10:], TokenSelect(6, 2, 20, chunk=10).select(q[:, :, 10:], k)[0].mask())


def test_a_small_local_window_is_used_up_by_the_chunk_itself(rng):
    """chunk = n_local = 8: the last row has 8 local keys, the first one its own only."""
    q, k, _ = real(rng, t=8, s=64)
    mask = TokenSelect(6, 0, 8, chunk=8).select(q, k)[0].mask()[0, 0]
    assert mask[:, 56:].sum(-1).tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (mask[:, :56].sum(-1) == 6).all()


def test_pooling_lifts_the_neighbours_of_a_winner():
    q, k = heads([0.0, 0.0, 9.0, 0.0, 5.0, 0.0, 0.0])
    assert row(TokenSelect(3, 0, 0), q, k) == [0, 2, 4]
    assert row(TokenSelect(3, 0, 0, pool=3), q, k) == [1, 2, 3]


# -------------------------------------------------------------------------------------------------------- positions

def test_clamped_scores_forget_how_far_a_key_is(rng):
    """One key written at several places: with RoPE its score depends on the distance; clamped it does not."""
    speeds, s = rope.inv_freq(16, 100_000.0), 50
    k_pre = torch.randn(1, 1, 1, 16, generator=rng).expand(1, 1, s, 16).contiguous()
    q_pre = torch.randn(1, 1, 1, 16, generator=rng)
    k, q = rope.rotate(k_pre, torch.arange(s), speeds), rope.rotate(q_pre, torch.tensor([s - 1]), speeds)
    spread = {}
    for mode in ("post", "clamped"):
        method = TokenSelect(3, 0, 5, rope=mode, vote="logit")
        summary, ends = method.summaries(q, positions(q, k))
        said = method.ballots(summary, k, ends)[..., :45]
        spread[mode] = float(said.max() - said.min())
    assert spread["clamped"] < 1e-4 < 0.1 < spread["post"]


def test_clamped_scores_are_of_the_query_at_n_local_and_the_key_at_zero(rng):
    speeds, t, s = rope.inv_freq(16, 100_000.0), 6, 40
    q_pre, k_pre, _ = real(rng, hq=2, hkv=1, t=t, s=s)
    q, k = rope.rotate(q_pre, torch.arange(s - t, s), speeds), rope.rotate(k_pre, torch.arange(s), speeds)
    method = TokenSelect(3, 1, 7, chunk=3, rope="clamped", scaled=False, vote="logit")
    summary, ends = method.summaries(q, positions(q, k))
    assert ends.tolist() == [37, 40]
    turned = rope.rotate(q_pre.double(), torch.tensor([7, 8, 9, 7, 8, 9]), speeds)
    want = torch.stack([turned[:, :, :3].mean(2), turned[:, :, 3:].mean(2)], 2) @ k_pre.double().transpose(-1, -2)
    said = method.ballots(summary, k, ends)
    torch.testing.assert_close(said[0, :, 1, 1:33], want[0, :, 1, 1:33], rtol=0, atol=1e-4)
    torch.testing.assert_close(said[0, :, 0, 1:30], want[0, :, 0, 1:30], rtol=0, atol=1e-4)
    assert (said[0, :, 0, 30:] == float("-inf")).all() and (said[0, :, 1, :1] == float("-inf")).all()


# ------------------------------------------------------------------------------------------------ renumbered positions

def test_a_list_of_the_elected_is_what_select_marks(rng):
    for n_local, rows in ((20, 20), (8, 8), (0, 5), (30, 1)):
        for mode in ("post", "clamped"):
            q, k, _ = real(rng, t=rows, s=64)
            method = TokenSelect(6, 2, n_local, chunk=rows, rope=mode)
            keys = method.elect(q, k)
            assert keys.diff().gt(0).all()
            seen = torch.zeros(rows, 64, dtype=torch.bool)
            seen[:, keys] = keys <= torch.arange(64 - rows, 64)[:, None]
            assert torch.equal(method.select(q, k)[0].mask()[0, 0], seen), (n_local, rows, mode)
    assert TokenSelect(60, 2, 5).elect(q, k).tolist() == list(range(64)), "nothing to choose: all keys"
    q, k, _ = real(rng, t=4, s=64)
    early = torch.arange(30, 34)
    assert int(TokenSelect(6, 2, 5).elect(q, k, pos_q=early).max()) == 33, "a chunk never looks past its end"


def test_renumbering_everything_changes_nothing(rng):
    q, k, v = (x.double() for x in real(rng, t=7, s=30))
    got, want = renumbered(q, k, v, torch.arange(30), dtype=torch.float64), attend(q, k, v)
    torch.testing.assert_close(got.o, want.o, rtol=0, atol=1e-12)
    torch.testing.assert_close(got.lse, want.lse, rtol=0, atol=1e-12)


def test_renumbered_by_hand():
    # D = 2: one angle, speed 1. Keys 0 and 90 are (1, 0) before RoPE, the query at 91 too; keys 0, 90, 91 are kept and
    # stand at 0, 1, 2, the query at 2. Logits cos(2), cos(1), cos(0) over sqrt(2), whatever lay between.
    speeds, one = rope.inv_freq(2, 100_000.0), torch.tensor([1.0, 0.0]).double().expand(1, 1, 92, 2)
    k, v = rope.rotate(one, torch.arange(92), speeds), torch.eye(92)[None, None].double()
    part = renumbered(k[:, :, 91:], k, v, torch.tensor([0, 90, 91]), dtype=torch.float64)
    want = torch.softmax(torch.tensor([2.0, 1.0, 0.0]).double().cos() / 2**0.5, -1)
    torch.testing.assert_close(part.o[0, 0, 0, [0, 90, 91]], want, rtol=0, atol=1e-9)
    assert float(part.o.sum()) == pytest.approx(1.0)
    without = renumbered(k[:, :, 91:], k, v, torch.tensor([0, 90]), dtype=torch.float64)      # its own key is not kept
    want = torch.softmax(torch.tensor([2.0, 1.0]).double().cos() / 2**0.5, -1)
    torch.testing.assert_close(without.o[0, 0, 0, [0, 90]], want, rtol=0, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(gap=st.integers(0, 4000), t=st.integers(1, 5), kept=st.integers(0, 9), seed=st.integers(0, 99))
def test_what_lies_between_kept_keys_does_not_count(gap, t, kept, seed):
    """The same rows in a short text, and in one with `gap` strangers after the first keys: the output is one and the same."""
    q_pre, k_pre, v = (x.double() for x in real(torch.Generator().manual_seed(seed), hq=2, hkv=1, t=t, s=kept + t, d=8))
    speeds, n = rope.inv_freq(8, 100_000.0), kept + t
    keys = torch.arange(n) + gap * (torch.arange(n) >= (kept + 1) // 2)
    short = attend(rope.rotate(q_pre, torch.arange(kept, n), speeds), rope.rotate(k_pre, torch.arange(n), speeds), v)
    k, values = torch.full((1, 1, n + gap, 8), 7.0).double(), torch.full((1, 1, n + gap, 8), 7.0).double()
    k[:, :, keys], values[:, :, keys] = rope.rotate(k_pre, keys, speeds), v
    at = keys[kept:]
    long = renumbered(rope.rotate(q_pre, at, speeds), k, values, keys, pos_q=at, dtype=torch.float64)
    torch.testing.assert_close(long.o, short.o, rtol=0, atol=1e-9)


def test_a_model_that_reads_in_chunks_and_leaves_nothing_out_is_the_model():
    model = tiny_llama(rope_base=10_000.0)
    ids = torch.randint(97, (1, 40), generator=torch.Generator().manual_seed(0))
    want, cache, got = model.forward(ids).logits, model.new_cache(), []

    def seam(layer, q, view, *, pos_q, tree_mask=None, trace=None):
        k, v = view[0].k, view[0].v
        keys = TokenSelect(k_top=32, n_init=4, n_local=16, rope="clamped", base=10_000.0).elect(q, k, pos_q=pos_q)
        return renumbered(q, k, v, keys, pos_q=pos_q, base=10_000.0, dtype=torch.float64)

    for chunk in ids.split(8, 1):
        got.append(model.forward(chunk, cache=cache, attend=seam).logits)
    torch.testing.assert_close(torch.cat(got, 1), want, rtol=0, atol=1e-9)


# ---------------------------------------------------------------------------------------------- the selection cache

def turning(angles: list[float], d: int = 4) -> torch.Tensor:
    """Queries of one head that turn by the given angles, in degrees."""
    at = torch.tensor(angles).deg2rad()
    return torch.stack([at.cos(), at.sin(), *[torch.zeros(len(at))] * (d - 2)], -1)[None, None]


def test_a_vote_serves_while_the_query_hardly_turns():
    # cos: 0 -> voted; 20 (0.94) reused; 30 (0.87 from 0) voted; 50 (0.94 from 30) reused; 60 (0.87 from 30) voted.
    q, k = turning([0.0, 20.0, 30.0, 50.0, 60.0]), 5 * turning([137.5 * j % 360 for j in range(40)])     # keys all around
    cache, method = SelectionCache(0.9), TokenSelect(3, 1, 5)
    sel, cost = method.select(q, k, cache=cache)
    mask, fresh = sel.mask()[0, 0], method.select(q, k)[0].mask()[0, 0]
    assert (cache.voted, cache.reused) == (3, 2)
    assert cost["scored"] == sum(n - 5 - 1 for n in (36, 38, 40))
    middle = slice(1, 31)                                                     # before the first vote's local keys
    for at, source in enumerate((0, 0, 2, 2, 4)):
        assert torch.equal(mask[at, middle], fresh[source, middle]), at
    assert mask[1, 32:37].all() and mask[3, 34:39].all(), "the local keys move on with the query"
    assert not torch.equal(mask, fresh), "the votes of this example differ, or it would prove nothing"


def test_step_by_step_is_all_at_once(rng):
    q, k, _ = real(rng, b=2, t=12, s=60)
    q = q[:, :, :1] + 0.5 * q                                                 # queries that turn slowly
    whole, together = TokenSelect(6, 2, 9), SelectionCache(0.9)
    want, cost = whole.select(q, k, cache=together, layer=3)
    alone, scored = SelectionCache(0.9), 0
    for t in range(12):
        end = 60 - 12 + t + 1
        sel, spent = whole.select(q[:, :, t:t + 1], k[:, :, :end], cache=alone, layer=3)
        assert torch.equal(sel.mask()[:, :, 0], want.mask()[:, :, t, :end]), t
        scored += spent["scored"]
    assert scored == cost["scored"] and (alone.voted, alone.reused) == (together.voted, together.reused)
    assert min(alone.voted, alone.reused) > 2


def test_rows_before_a_new_vote_read_what_an_earlier_call_elected(rng):
    """Row 0 of the second call still uses the vote of the first call; rows 1 and 2 turn, and vote anew."""
    q, (_, k, _) = turning([0.0, 5.0, 90.0, 95.0], d=16), real(rng, hq=1, hkv=1, s=60)
    method, cache = TokenSelect(6, 2, 9), SelectionCache(0.9)
    want = method.select(q, k, cache=SelectionCache(0.9))[0].mask()
    method.select(q[:, :, :1], k[:, :, :57], cache=cache)
    got = method.select(q[:, :, 1:], k, cache=cache)[0].mask()
    assert (cache.voted, cache.reused) == (2, 2)
    assert torch.equal(got, want[:, :, 1:]) and int(got[0, 0, 0].sum()) <= 2 + 6 + 9


def test_theta_above_one_always_votes_and_minus_one_never_again(rng):
    q, k, _ = real(rng, t=10, s=60)
    always, never = SelectionCache(1.01), SelectionCache(-1.0)
    sel, _ = TokenSelect(6, 2, 9).select(q, k, cache=always)
    assert (always.voted, always.reused) == (10, 0)
    assert torch.equal(sel.mask(), TokenSelect(6, 2, 9).select(q, k)[0].mask())
    TokenSelect(6, 2, 9).select(q, k, cache=never)
    assert (never.voted, never.reused) == (1, 9)


def test_layers_and_texts_do_not_share_votes_and_a_new_text_starts_anew(rng):
    q, k, _ = real(rng, b=2, t=1, s=60)
    cache, method = SelectionCache(-1.0), TokenSelect(6, 2, 9)
    method.select(q, k, cache=cache, layer=0)
    assert (cache.voted, cache.reused) == (2, 0), "two texts, two votes"
    method.select(q, k, cache=cache, layer=1)
    assert cache.voted == 4, "another layer votes for itself"
    method.select(q, k, cache=cache, layer=1)
    assert (cache.voted, cache.reused) == (4, 2)
    method.select(q, k[:, :, :50], cache=cache, layer=1)
    assert cache.voted == 6, "fewer keys than at the last vote: rows were taken back, so the vote is void"
    cache.clear()
    method.select(q, k, cache=cache, layer=1)
    assert (cache.voted, cache.reused) == (2, 0)


def test_short_texts_neither_vote_nor_touch_the_cache(rng):
    q, k, _ = real(rng, t=4, s=17)
    cache = SelectionCache(0.0)
    sel, cost = TokenSelect(6, 2, 9).select(q, k, cache=cache)
    assert (cache.voted, cache.reused, cost["scored"]) == (0, 0, 0)
    assert sel.nnz == 4 * causal_pairs(sel.pos, 17)


# ------------------------------------------------------------------------------------------- the rest of the contract

def test_all_candidates_are_dense_attention(rng):
    q, k, v = real(rng)
    part, truth = attend_selected(q, k, v, TokenSelect(k_top=120, n_init=0, n_local=0).select(q, k)[0]), attend(q, k, v)
    torch.testing.assert_close(part.o, truth.o, rtol=0, atol=1e-12)


def test_the_papers_sizes_read_everything_below_2688_keys(rng):
    q, k, _ = real(rng, hq=1, hkv=1, t=1, s=2688, d=4)
    assert TokenSelect(**PAPER).select(q, k)[1]["loaded"] == 2688
    q, k, _ = real(rng, hq=1, hkv=1, t=1, s=3000, d=4)
    assert TokenSelect(**PAPER).select(q, k)[1]["loaded"] == 2688


def test_the_released_kernel_reads_the_wrong_kv_head(rng):
    """`h mod Hkv` and `h // G` agree with one KV head, or one query head each, and nowhere else."""
    for hq, hkv, same in ((4, 1, True), (3, 3, True), (6, 2, False), (9, 3, False)):
        q, k, _ = real(rng, hq=hq, hkv=hkv, t=1, s=20)
        right = logits(q, k, causal=False, scale=1.0, dtype=torch.float32)
        assert torch.allclose(heads_dealt_in_turn(q, k), right, atol=1e-4) == same, (hq, hkv)


def test_the_released_cached_branch_cannot_run(rng):
    with pytest.raises(IndexError, match="[Dd]imension"):
        cached_branch(torch.randn(8, generator=rng), torch.randn(8, generator=rng))


@pytest.mark.parametrize("make, message", [
    (lambda: TokenSelect(k_top=0), "k_top must be >= 1; got 0"),
    (lambda: TokenSelect(n_init=-1), "n_init must be >= 0; got -1"),
    (lambda: TokenSelect(n_local=-2), "n_local must be >= 0; got -2"),
    (lambda: TokenSelect(chunk=0), "chunk must be >= 1; got 0"),
    (lambda: TokenSelect(vote="mean"), "vote must be one of .*got 'mean'"),
    (lambda: TokenSelect(rope="pre"), "rope must be one of"),
    (lambda: TokenSelect(pool=4), "pool must be an odd number >= 1.*got 4"),
    (lambda: SelectionCache(-1.5), "theta must be >= -1"),
], ids=["k_top", "n_init", "n_local", "chunk", "vote", "rope", "pool", "theta"])
def test_impossible_parameters_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_chunks_need_neighbouring_queries(rng):
    q, k, _ = real(rng, t=3)
    with pytest.raises(ValueError, match="pos_q must count up by one"):
        TokenSelect(chunk=2).select(q, k, pos_q=torch.tensor([3, 9, 10]))


def test_lists_that_cannot_be_renumbered_are_refused(rng):
    q, k, v = real(rng, b=2, t=3, s=20)
    with pytest.raises(ValueError, match="one text votes at a time.*got B = 2"):
        TokenSelect().elect(q, k)
    with pytest.raises(ValueError, match="count up by one"):
        TokenSelect().elect(q[:1], k[:1], pos_q=torch.tensor([3, 9, 10]))
    for keys in (torch.tensor([3, 1]), torch.tensor([1, 1]), torch.tensor([1.0, 2.0]), torch.tensor([[1, 2]])):
        with pytest.raises(ValueError, match="keys must be one ascending list"):
            renumbered(q, k, v, keys)
