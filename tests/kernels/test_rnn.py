"""The fused recurrent kernel equals the float64 recurrence by the tolerance rule, interpreted and compiled alike."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.tolerance import assert_within
from tutor import kernels
from tutor.attention.methods import flash_rnn
from tutor.attention.methods.flash_rnn import CELLS

COVERS = ("attention.flash_rnn",)

if not kernels.available():
    pytest.skip("kernels need Triton, which is not installed here", allow_module_level=True)

from tutor.kernels.rnn import rnn, roofline  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
#           B   T  Nh  Dh
SHAPES = [(1, 1, 1, 16),        # one text, one token
          (17, 3, 1, 16),       # one text more than a program holds
          (3, 7, 2, 16),
          (2, 5, 3, 32),        # an odd number of heads
          (5, 2, 1, 64)]        # the widest head


def make(cell, shape, dtype, start=False, seed=0):
    (B, T, Nh, Dh), kind = shape, CELLS[cell]
    g = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=g)
    states = draw(len(kind.states), B, 1, Nh, Dh) if start else None
    if start and cell == "slstm":
        states[2] = 1 + states[2].abs()
    found = (draw(B, T, len(kind.inputs), Nh, Dh), draw(len(kind.recurrent), Nh, Dh, Dh) / Dh**0.5,
             draw(len(kind.bias), Nh, Dh), states)
    return [None if x is None else x.to(dtype).to(DEVICE) for x in found]


def check(cell, given, **options):
    found = rnn(*given, cell=cell, **options)
    dtype = given[0].dtype
    truth = flash_rnn.rnn(*[None if x is None else x.double() for x in given], cell=cell)
    eager = flash_rnn.rnn(*given, cell=cell)
    for i, name in enumerate(CELLS[cell].states):
        assert_within(found.states[i], eager.states[i], truth.states[i], dtype, name)
        assert_within(found.last[i], eager.last[i], truth.last[i], dtype, f"last {name}")


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-T{}-Nh{}-Dh{}".format(*s))
def test_the_kernel_is_the_recurrence(cell, shape, dtype):
    check(cell, make(cell, shape, dtype))


@pytest.mark.parametrize("cell", CELLS)
def test_it_goes_on_from_a_state(cell):
    check(cell, make(cell, (2, 4, 2, 16), torch.float32, start=True))


@pytest.mark.parametrize("cell", CELLS)
def test_two_calls_are_one(cell):
    wx, R, b, _ = make(cell, (2, 6, 1, 16), torch.float32)
    whole, first = rnn(wx, R, b, cell=cell), rnn(wx[:, :4], R, b, cell=cell)
    second = rnn(wx[:, 4:], R, b, first.last, cell=cell)
    torch.testing.assert_close(torch.cat([first.states, second.states], 2), whole.states, rtol=0, atol=1e-6)


def test_every_entry_is_written(monkeypatch):
    """Memory that was not initialised holds NaN here: a row that the kernel forgot would show."""
    poison = lambda made: lambda *a, **o: made(*a, **o).fill_(float("nan"))
    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    found = rnn(*make("slstm", (17, 2, 2, 16), torch.float32), cell="slstm")
    assert not found.states.isnan().any() and not found.last.isnan().any()


@pytest.mark.parametrize("level", [200, -200])
def test_large_gates_stay_finite(level):
    wx, R, b, _ = make("slstm", (1, 3, 1, 16), torch.float32)
    wx[:, :, 0] += level
    wx[:, :, 1] += 200
    check("slstm", [wx, R, b, None])


def test_no_tokens_leave_the_state():
    wx, R, b, states = make("lstm", (2, 0, 1, 16), torch.float32, start=True)
    found = rnn(wx, R, b, states, cell="lstm")
    assert torch.equal(found.last, states) and found.states.shape[2] == 0


@pytest.mark.parametrize("change, words", [
    (dict(wx=torch.zeros(2, 3, 4, 1, 24)), "Dh one of"), (dict(wx=torch.zeros(2, 3, 3, 1, 16)), "wx must have shape"),
    (dict(R=torch.zeros(4, 2, 16, 16)), "R must have shape"), (dict(b=torch.zeros(4, 1, 16).double()), "share one dtype"),
    (dict(states=torch.zeros(1, 2, 1, 1, 16)), "states must have shape"),
], ids=["width", "gates", "R", "dtype", "states"])
def test_bad_input_is_named(change, words):
    wx, R, b, states = make("lstm", (2, 3, 1, 16), torch.float32)
    given = {"wx": wx, "R": R, "b": b, "states": states} | change
    with pytest.raises(ValueError, match=words):
        rnn(**given, cell="lstm")
    with pytest.raises(ValueError, match="block_b"):
        rnn(wx, R, b, cell="lstm", block_b=8)


def test_the_roofline_by_hand():
    # 2 texts, 3 tokens, 1 head of 16, lstm, 2 bytes: wx 2*3*4*16*2 = 768, states 2*3*2*16*2 = 384, R 4*256*2 = 2048
    floor = roofline(2, 3, 1, 16)
    assert floor.bytes == 768 + 384 + 2048 and floor.flops == 2 * 2 * 3 * 4 * 256
