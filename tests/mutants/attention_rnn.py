"""Planted bugs in FlashRNN: the cells, the way back through time, and the kernel."""

from tests.mutants.mutant import Mutant

PY, KERNEL = "tutor/attention/methods/flash_rnn.py", "tutor/kernels/rnn.py"
TRUTH, FAST = "tests/attention/test_flash_rnn.py", "tests/kernels/test_rnn.py -k 'not compiles'"

MUTANTS = [
    Mutant("rnn: forget and input gates change places", PY, 'torch.sigmoid(g["f"]) * c + torch.sigmoid(g["i"])',
           'torch.sigmoid(g["i"]) * c + torch.sigmoid(g["f"])', TRUTH),
    Mutant("rnn: the GRU resets the whole candidate", PY, 'torch.tanh(g["n_in"] + r * g["n_rec"])',
           'torch.tanh(r * (g["n_in"] + g["n_rec"]))', TRUTH),
    Mutant("rnn: the sLSTM keeps no running maximum", PY, 'torch.maximum(g["i"], kept))', 'g["i"])', TRUTH),
    Mutant("rnn: an sLSTM's first token may blow up what is not there", PY, "(kept - top).clamp(max=0)", "kept - top", TRUTH),
    Mutant("rnn: R is used transposed", PY, '"ned,bnd->bne", R[i], h', '"nde,bnd->bne", R[i], h', TRUTH),
    Mutant("rnn: the gradient of R pairs each gate with its own step's state", PY,
           "for s in before[:-1]], 1)", "for s in before[1:]], 1)", TRUTH),
    Mutant("rnn: gradients do not flow through R", PY, 'd_state[0] = d_state[0] + torch.einsum("ned,bne->bnd", R[i], d_g[name])',
           "pass", TRUTH),
    Mutant("rnn: a head may use every multiprocessor and one more", PY,
           "(chip.sms - 1) // gate_tiles + 1)", "chip.sms // gate_tiles + 2)", TRUTH),
    Mutant("rnn kernel: all programs read the first texts", KERNEL, "rows = tl.program_id(0) * BLOCK_B + ",
           "rows = tl.program_id(0) * 0 + ", FAST),
    Mutant("rnn kernel: every step is the first", KERNEL, "tl.where(t == 0, i, top)", "tl.where(t >= 0, i, top)", FAST),
    Mutant("rnn kernel: a first token may blow up what is not there", KERNEL, "tl.minimum(kept - top, 0.0)", "kept - top",
           FAST),
    Mutant("rnn kernel: the output does not move on", KERNEL, "        out_at += NH * DH\n", "", FAST),
    Mutant("rnn kernel: the last state is the first head's", KERNEL, "tl.store(last_ptr + at, h, mask=there)",
           "tl.store(last_ptr + at - head * DH, h, mask=there)", FAST),
]
