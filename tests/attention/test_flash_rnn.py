"""FlashRNN: four cells, their gradients by hand, heads as blocks, and what fits on a chip."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutor.attention.methods.flash_rnn import CELLS, Chip, FlashRNN, largest_head, rnn, rnn_backward, traffic

COVERS = ("attention.flash_rnn",)
each_cell = pytest.mark.parametrize("cell", CELLS)


def case(cell, B=2, T=5, Nh=3, Dh=4, seed=0, start=True):
    """(wx, R, b, states) in float64; a start that an sLSTM can have (n >= 1)."""
    g, kind = torch.Generator().manual_seed(seed), CELLS[cell]
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    states = draw(len(kind.states), B, 1, Nh, Dh) if start else None
    if start and cell == "slstm":
        states[2] = 1 + states[2].abs()
    return draw(B, T, len(kind.inputs), Nh, Dh), draw(len(kind.recurrent), Nh, Dh, Dh) / Dh, draw(len(kind.bias), Nh, Dh), states


def test_an_lstm_step_by_hand():
    # Gates i, f, z, o of one unit: pre-activations ln 3, 0, atanh .5, 0 give sigma = 3/4, 1/2, tanh = 1/2, sigma = 1/2.
    # From c = 1: c' = 1/2 * 1 + 3/4 * 1/2 = 7/8;  h' = 1/2 * tanh(7/8).
    wx = torch.tensor([math.log(3), 0, math.atanh(0.5), 0]).double().reshape(1, 1, 4, 1, 1)
    states = torch.tensor([0.0, 1.0]).double().reshape(2, 1, 1, 1, 1)
    found = rnn(wx, torch.zeros(4, 1, 1, 1).double(), torch.zeros(4, 1, 1).double(), states, cell="lstm")
    assert found.last.flatten().tolist() == pytest.approx([math.tanh(7 / 8) / 2, 7 / 8])


def test_an_elman_unit_by_hand():
    # h1 = tanh(1); h2 = tanh(1 - 2 h1): the matrix multiplies what came before.
    wx = torch.ones(1, 2, 1, 1, 1).double()
    found = rnn(wx, torch.full((1, 1, 1, 1), -2.0).double(), torch.zeros(1, 1, 1).double(), cell="elman")
    h1 = math.tanh(1)
    assert found.states.flatten().tolist() == pytest.approx([h1, math.tanh(1 - 2 * h1)])


def test_the_first_slstm_step_writes_with_weight_one():
    # n = 0: m' = i, so i' = 1, c = tanh(z), n = 1 and y = sigma(o) tanh(z), however large i is.
    wx = torch.tensor([60.0, -3.0, 0.5, 0.0]).double().reshape(1, 1, 4, 1, 1)
    y, c, n, m = rnn(wx, torch.zeros(4, 1, 1, 1).double(), torch.zeros(4, 1, 1).double(), cell="slstm").last.flatten().tolist()
    assert (y, c, n, m) == pytest.approx((math.tanh(0.5) / 2, math.tanh(0.5), 1, 60))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_it_is_the_cell_of_torch(cell):
    """Torch orders an LSTM's gates i, f, g, o and a GRU's r, z, n, with a bias for n on either side of r."""
    wx, R, b, states = case(cell, B=3, T=7, Nh=1, Dh=6)
    build = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    peer = build(wx.shape[2] * 6, 6, batch_first=True).double()
    with torch.no_grad():                          # the input already holds W x: hand it through unchanged
        eye = torch.eye(wx.shape[2] * 6).double().reshape(wx.shape[2], 6, -1)
        if cell == "lstm":
            peer.weight_ih_l0.copy_(eye.reshape(24, -1))
            peer.weight_hh_l0.copy_(R[:, 0].reshape(24, 6))
            peer.bias_ih_l0.copy_(b.reshape(24))
            peer.bias_hh_l0.zero_()
        else:
            peer.weight_ih_l0.copy_(eye.reshape(18, -1))
            peer.weight_hh_l0.copy_(R[[1, 2, 0], 0].reshape(18, 6))
            peer.bias_ih_l0.copy_(torch.cat([b[1, 0], b[2, 0], b[3, 0]]))
            peer.bias_hh_l0.copy_(torch.cat([torch.zeros(12).double(), b[0, 0]]))
        begin = states[:, :, 0, 0][:, None]        # (S, 1, B, D)
        out, _ = peer(wx.reshape(3, 7, -1), (begin[0], begin[1]) if cell == "lstm" else begin[0])
    ours = rnn(wx, R, b, states, cell=cell).states[0, :, :, 0]
    torch.testing.assert_close(ours, out, rtol=0, atol=1e-12)


@each_cell
def test_heads_are_one_head_with_a_block_diagonal_matrix(cell):
    wx, R, b, states = case(cell)
    G, Nh, Dh, _ = R.shape
    wide = torch.zeros(G, 1, Nh * Dh, Nh * Dh).double()
    for n in range(Nh):
        wide[:, 0, n * Dh:(n + 1) * Dh, n * Dh:(n + 1) * Dh] = R[:, n]
    one = rnn(wx.flatten(3)[:, :, :, None], wide, b.flatten(1)[:, None], states.flatten(3)[:, :, :, None], cell=cell)
    torch.testing.assert_close(one.states[..., 0, :], rnn(wx, R, b, states, cell=cell).states.flatten(3), rtol=0, atol=1e-12)


@each_cell
def test_a_text_in_two_parts_gives_what_it_gives_in_one(cell):
    wx, R, b, states = case(cell, T=9)
    whole = rnn(wx, R, b, states, cell=cell)
    first = rnn(wx[:, :4], R, b, states, cell=cell)
    second = rnn(wx[:, 4:], R, b, first.last, cell=cell)
    assert torch.equal(torch.cat([first.states, second.states], 2), whole.states) and torch.equal(second.last, whole.last)


@each_cell
def test_no_tokens_leave_the_state(cell):
    wx, R, b, states = case(cell, T=0, B=1)
    found = rnn(wx, R, b, states, cell=cell)
    assert found.states.shape[2] == 0 and torch.equal(found.last, states)


@each_cell
def test_the_future_does_not_matter(cell):
    wx, R, b, states = case(cell, T=6)
    before = rnn(wx, R, b, states, cell=cell).states
    wx[:, 4:] = 7
    assert torch.equal(rnn(wx, R, b, states, cell=cell).states[:, :, :4], before[:, :, :4])


@each_cell
@pytest.mark.parametrize("start", [True, False], ids=["started", "from-zero"])
def test_gradients_by_hand_are_those_of_autograd(cell, start):
    given_ = [x.requires_grad_() if x is not None else None for x in case(cell, start=start)]
    found = rnn(*given_, cell=cell).states
    d = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = torch.autograd.grad((found * d).sum(), [x for x in given_ if x is not None])
    ours = rnn_backward(*[x.detach() if x is not None else None for x in given_], d, cell=cell)
    for mine, truth in zip(ours, wanted):
        torch.testing.assert_close(mine, truth, rtol=0, atol=1e-10)


def test_gradients_agree_with_small_differences():
    wx, R, b, states = case("slstm", B=1, T=3, Nh=1, Dh=2)
    run = lambda *x: rnn(*x, cell="slstm").states
    assert torch.autograd.gradcheck(run, tuple(x.requires_grad_() for x in (wx, R, b, states)))


def test_slstm_stabilised_is_slstm():
    """Without the running maximum: i' = e^i, f' = sigma(f). Equal while nothing overflows and n stays above its floor."""
    wx, R, b, _ = case("slstm", B=1, T=8, Nh=1, Dh=3, seed=4, start=False)
    wx = wx.clone()
    wx[:, 0, 0] = 0                                        # the floor n >= 1 counts in units of e^m: keep m at 0 or below
    wx[:, 1:, 0] -= 8
    wx[:, :, 1] += 6
    b[0], R[0] = 0, 0
    c = n = h = torch.zeros(3).double()
    for t in range(8):
        i, f, z, o = (wx[0, t, g, 0] + b[g, 0] + R[g, 0] @ h for g in range(4))
        c = torch.sigmoid(f) * c + torch.exp(i) * torch.tanh(z)
        n = torch.sigmoid(f) * n + torch.exp(i)
        h = torch.sigmoid(o) * c / n
        y, _, units, m = rnn(wx[:, :t + 1], R, b, cell="slstm").last[:, 0, 0, 0]
        if (units > 1).all() or t == 0:
            torch.testing.assert_close(y, h, rtol=0, atol=1e-12)
            torch.testing.assert_close(units * torch.exp(m), n, rtol=1e-10, atol=0)


@pytest.mark.parametrize("level", [60.0, 800.0])
def test_slstm_stays_finite_where_exponentials_do_not(level):
    wx, R, b, _ = case("slstm", start=False)
    wx[:, :, :2] += level
    assert rnn(wx.float(), R.float(), b.float(), cell="slstm").states[:3].isfinite().all()


def test_a_first_token_may_be_worth_next_to_nothing():
    # m' = i = -800 and nothing is kept, whatever e^(log sigma(f) - i) = e^799 is: c = 1 * tanh(1/2), n = 1, y = c / 2.
    wx = torch.tensor([-800.0, 0, 0.5, 0]).reshape(1, 1, 4, 1, 1)
    last = rnn(wx, torch.zeros(4, 1, 1, 1), torch.zeros(4, 1, 1), cell="slstm").last.flatten()
    assert last.tolist() == pytest.approx([math.tanh(0.5) / 2, math.tanh(0.5), 1, -800])


@pytest.mark.parametrize("level", [60.0, 800.0])
def test_slstm_keeps_an_important_token_through_unimportant_ones(level):
    # The first token writes tanh(1/2) with weight e^level, the next two with e^-level: the state stays tanh(1/2).
    wx = torch.zeros(1, 3, 4, 1, 1).double()
    wx[0, :, 0], wx[0, :, 1], wx[0, 0, 2] = -level, 20.0, 0.5
    wx[0, 0, 0] = level
    y = rnn(wx, torch.zeros(4, 1, 1, 1).double(), torch.zeros(4, 1, 1).double(), cell="slstm").states[0].flatten()
    assert y.tolist() == pytest.approx([math.tanh(0.5) / 2] * 3, rel=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(CELLS)), st.integers(1, 3), st.integers(0, 6), st.integers(1, 3), st.integers(1, 5))
def test_shapes_and_bounds_hold_for_any_size(cell, B, T, Nh, Dh):
    found = rnn(*case(cell, B, T, Nh, Dh, start=False), cell=cell)
    assert found.states.shape == (len(CELLS[cell].states), B, T, Nh, Dh)
    if cell != "slstm":
        assert (found.states[0].abs() <= 1).all()


def test_bytes_of_the_matrix_by_hand():
    # 4 gates, 2 heads of width 3, 2 bytes: 4 * 2 * 9 * 2 = 144 bytes, at each of 10 steps or once
    assert traffic(10, 4, 2, 3) == 1440 and traffic(10, 4, 2, 3, fused=True) == 144


def test_cost_counts_the_recurrent_products():
    wx, R, b, _ = case("gru", start=False)
    _, cost = FlashRNN("gru").run(wx, R, b)
    assert cost["flops"] == 2 * 2 * 5 * 3 * 3 * 16 and cost["bytes_read"] == 5 * 3 * 3 * 16 * 8


def test_the_largest_head_obeys_the_rules_and_no_larger_one_does():
    chip = Chip("small", sms=8, fast_bytes=20_000)
    best = largest_head(chip)
    wider = [(width, g, h) for width in range(best.width, 800, 32) for g in range(1, 8) for h in range(1, 8)
             if g * h < 8 and 4 * width % (32 * g) == 0 and width % h == 0
             and 2 * 4 * width**2 // (g * h) + 4 * 4 * width // g < 20_000]
    assert {w for w, _, _ in wider} == {best.width} and (best.width, best.gate_tiles, best.hidden_tiles) in wider


def test_one_multiprocessor_holds_a_head_of_128_and_many_hold_a_wider_one():
    # 4 gates of 128 x 128 in 2 bytes are 131 072 bytes, plus 2 048 of states; 160 x 160 would be 204 800 > 165 000
    assert largest_head(Chip("one", sms=2)).width == 128
    assert largest_head().width > 4 * 128


@pytest.mark.parametrize("change, words", [
    (dict(cell="rnn"), "cell must be one of"), (dict(wx=torch.zeros(2, 5, 3, 3, 4).double()), "wx must have shape"),
    (dict(R=torch.zeros(4, 3, 4, 5).double()), "R of lstm"), (dict(b=torch.zeros(3, 3, 4).double()), "b of lstm"),
    (dict(states=torch.zeros(1, 2, 1, 3, 4).double()), "states of lstm"),
], ids=["cell", "gates", "R", "b", "states"])
def test_bad_input_is_named(change, words):
    wx, R, b, states = case("lstm")
    given_ = {"wx": wx, "R": R, "b": b, "states": states, "cell": "lstm"} | change
    with pytest.raises(ValueError, match=words):
        rnn(*[given_[name] for name in ("wx", "R", "b", "states")], cell=given_["cell"])
    with pytest.raises(ValueError, match="holds no head"):
        largest_head(Chip("tiny", sms=2, fast_bytes=1000))
