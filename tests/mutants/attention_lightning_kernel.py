"""Planted bugs in the lightning kernels."""

from tests.mutants.mutant import Mutant

FILE, TESTS = "tutor/kernels/lightning.py", "tests/kernels/test_lightning.py -k 'not compiles'"

MUTANTS = [
    Mutant("lightning kernel: the state is one decay too old", FILE,
           "since = tl.exp(-s * (r + 1))", "since = tl.exp(-s * r)", TESTS),
    Mutant("lightning kernel: the last block fades as if it were full", FILE, "return mask, since, until, tl.exp(-s * left)",
           "return mask, since, until, tl.exp(-s * BLOCK)", TESTS),
    Mutant("lightning kernel: a key sees later queries' decay", FILE,
           "gap = r[:, None] - r[None, :]", "gap = r[None, :] - r[:, None]", TESTS),
    Mutant("lightning kernel: query heads read the wrong KV head", FILE,
           "    kv_head = head // G\n    s = tl.load(s_ptr + kv_head % HKV)\n"
           "    i, j = tl.arange(0, PAD_D), at + tl.arange(0, SLICE)\n    where",
           "    kv_head = head // G * 0\n    s = tl.load(s_ptr + kv_head % HKV)\n"
           "    i, j = tl.arange(0, PAD_D), at + tl.arange(0, SLICE)\n    where", TESTS),
    Mutant("lightning kernel: dk counts one query head of the group", FILE,
           "            dk += _dot(tl.trans(da.to(q.dtype)), q, DOT_F32)",
           "            dk += (g == 0) * _dot(tl.trans(da.to(q.dtype)), q, DOT_F32)", TESTS),
    Mutant("lightning kernel: the gradient of the state never fades", FILE,
           "        dv = until[:, None] * _dot(k, dkv.to(k.dtype), DOT_F32)\n        dkv = whole * dkv",
           "        dv = until[:, None] * _dot(k, dkv.to(k.dtype), DOT_F32)\n        dkv = dkv", TESTS),
    Mutant("lightning kernel: a step reads the state before the token", FILE, "tl.sum(q[:, None] * kv, axis=0)",
           "tl.sum(q[:, None] * (kv - k[:, None] * v[None, :]), axis=0)", TESTS),
]
