"""The lightning kernels equal the float64 definition by the tolerance rule: forward, backward, one step."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.tolerance import assert_within
from tutor import kernels
from tutor.attention.methods import lightning as reference
from tutor.attention.methods.lightning import Lightning, naive

COVERS = ("attention.lightning",)

if not kernels.available():
    pytest.skip("kernels need Triton, which is not installed here", allow_module_level=True)

from tutor.kernels.lightning import lightning, lightning_backward, recurrent_step, roofline  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
#           B Hq Hkv   T   D  Dv
SHAPES = [(1, 1, 1, 1, 16, 16),          # one token
          (1, 2, 1, 33, 16, 16),         # one token more than two blocks; two query heads to a KV head
          (1, 3, 1, 50, 24, 40),         # widths below their padding, two slices of values
          (2, 4, 2, 31, 32, 16),         # two texts
          (1, 1, 1, 64, 64, 64),         # whole blocks, two slices either way
          (1, 2, 2, 17, 72, 8)]          # three slices of keys


def make(shape, dtype=torch.float32, seed=0, state=True):
    """(q, k, v, s, state): rows of unit variance, decays from none to strong."""
    b, hq, hkv, t, d, dv = shape
    g = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(b, h, t, w, generator=g).to(dtype).to(DEVICE) for h, w in ((hq, d), (hkv, d), (hkv, dv)))
    s = torch.linspace(0.0, 1.5, hkv) if hkv > 1 else torch.tensor([0.2])
    return q, k, v, s.to(DEVICE), torch.randn(b, hkv, d, dv, generator=g).to(DEVICE) if state else None


def double(*given):
    return [None if x is None else x.double() for x in given]


def eager(q, k, v, s, state):
    """The definition with every product in the dtype of q, as plain torch would do it."""
    groups, t = q.shape[1] // k.shape[1], torch.arange(q.shape[2], device=q.device)
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    s = s.repeat_interleave(groups)
    gap = t[:, None] - t
    fade = torch.exp(-s[:, None, None] * gap.clamp(min=0)) * (gap >= 0)
    since = torch.exp(-s[:, None] * (t + 1))[..., None]
    kv = state.repeat_interleave(groups, 1).to(q.dtype)
    return ((q @ k.mT * fade.to(q.dtype)) @ v + since.to(q.dtype) * (q @ kv)).to(q.dtype)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "B{}-Hq{}-Hkv{}-T{}-D{}-Dv{}".format(*s))
def test_the_kernel_is_the_definition(shape, dtype):
    q, k, v, s, state = make(shape, dtype)
    found, truth = lightning(q, k, v, s, state=state, block=16), naive(*double(q, k, v, s), state=state.double())
    assert found.o.dtype == dtype and found.state.dtype == torch.float32
    assert_within(found.o, eager(q, k, v, s, state), truth.o, dtype)
    assert_within(found.state, Lightning(16).attend(q, k, v, s, state=state).state, truth.state, dtype, "state")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", SHAPES[1:], ids=lambda s: "B{}-Hq{}-Hkv{}-T{}-D{}-Dv{}".format(*s))
def test_gradients_are_those_of_the_definition(shape, dtype):
    q, k, v, s, state = make(shape, dtype)
    g = torch.Generator().manual_seed(3)
    do = torch.randn(*q.shape[:3], v.shape[3], generator=g).to(dtype).to(DEVICE)
    dstate = torch.randn(state.shape, generator=g).to(DEVICE)
    truth = reference.lightning_backward(*double(do, q, k, v, s), state=state.double(), dstate=dstate.double())
    plain = [x.clone().requires_grad_() for x in (q, k, v)]
    o, after = eager(*plain, s, state), Lightning(16).attend(*plain, s, state=state).state
    by_torch = [a + b.to(a.dtype) for a, b in zip(torch.autograd.grad(o, plain, do, retain_graph=True),
                torch.autograd.grad(after, plain, dstate, allow_unused=True, materialize_grads=True))]
    found = lightning_backward(do, q, k, v, s, state=state, dstate=dstate, block=16)
    for name, ours, theirs, right in zip("qkv", found, by_torch, truth):
        assert_within(ours, theirs, right, dtype, f"d{name}")
    assert_within(found.state, reference.lightning_backward(do, q, k, v, s, state=state, dstate=dstate).state, truth.state,
                  dtype, "dstate")


def test_it_can_be_differentiated():
    q, k, v, s, state = make(SHAPES[1])
    given = [x.requires_grad_() for x in (q, k, v, state)]
    (lightning(q, k, v, s, state=state, block=16).o ** 2).sum().backward()
    ours = [x.grad.clone() for x in given]
    plain = [x.detach().double().requires_grad_() for x in given]
    (naive(*plain[:3], s.double(), state=plain[3]).o ** 2).sum().backward()
    for mine, theirs in zip(ours, plain):
        torch.testing.assert_close(mine.double(), theirs.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_blocks_then_steps_are_one_text(dtype):
    q, k, v, s, _ = make((2, 4, 2, 21, 24, 40), dtype, state=False)
    truth = naive(*double(q, k, v, s))
    o, state = lightning(*(x[:, :, :18] for x in (q, k, v)), s, block=16)
    parts = [o]
    for t in range(18, 21):
        o, state = recurrent_step(*(x[:, :, t:t + 1] for x in (q, k, v)), s, state)
        parts.append(o)
    zero = torch.zeros(2, 2, 24, 40, device=DEVICE)
    assert_within(torch.cat(parts, 2), eager(q, k, v, s, zero), truth.o, dtype)
    assert_within(state, Lightning(16).attend(q, k, v, s).state, truth.state, dtype, "state")


def test_strong_decay_stays_finite():
    q, k, v, _, state = make(SHAPES[1])
    found = lightning(q, k, v, torch.tensor([50.0]), state=state, block=16)
    assert_within(found.o, naive(q, k, v, torch.tensor([50.0]), state=state).o,
                  naive(*double(q, k, v, torch.tensor([50.0])), state=state.double()).o, torch.float32)


def test_every_entry_is_written(monkeypatch):
    q, k, v, s, state = make(SHAPES[2])
    poison = lambda made: lambda *a, **o: made(*a, **o).fill_(float("nan"))
    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    found = [*lightning(q, k, v, s, state=state), *lightning_backward(torch.ones(1, 3, 50, 40), q, k, v, s, state=state),
             *recurrent_step(q[:, :, :1], k[:, :, :1], v[:, :, :1], s, state)]
    assert not any(x.isnan().any() for x in found)


def test_no_tokens_leave_the_state():
    q, k, v, s, state = make((1, 2, 1, 0, 16, 16))
    assert torch.equal(lightning(q, k, v, s, state=state).state, state)
    assert torch.equal(lightning_backward(torch.zeros(1, 2, 0, 16), q, k, v, s, dstate=state).state, state)


def test_bad_input_is_named():
    q, k, v, s, state = make(SHAPES[1])
    for words, call in (("power of two", lambda: lightning(q, k, v, s, block=20)),
                        ("decay rate", lambda: lightning(q, k, v, -s)), ("as many keys", lambda: lightning(q[:, :, 1:], k, v, s)),
                        ("state must", lambda: lightning(q, k, v, s, state=state[..., 1:])),
                        ("output's shape", lambda: lightning_backward(q[:, :, 1:], q, k, v, s)),
                        ("one token", lambda: recurrent_step(q, k, v, s)),
                        ("share one dtype", lambda: lightning(q.half(), k, v, s))):
        with pytest.raises(ValueError, match=words):
            call()


def test_the_roofline_by_hand():
    # 1 text, 2 query heads, 1 KV head, 4 tokens, widths 16, bf16: rows 3 * 4 * 32 * 2 = 768, state 2 * 256 * 4 = 2048
    floor = roofline(1, 2, 1, 4, 16, block=2)
    assert floor.bytes == 768 + 2048 and floor.flops == 4 * (2 * 2 * (2 * 32 + 256) + 2 * 256)
