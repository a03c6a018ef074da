"""Compile the recurrent kernel for a GPU that is not here, in a process of its own: `python compile_rnn.py CAPABILITY`."""

import sys

import torch

torch.cuda.is_available = lambda: True      # so that tutor.kernels leaves Triton compiling

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tutor.attention.methods.flash_rnn import CELLS  # noqa: E402
from tutor.kernels import rnn  # noqa: E402

for cell, dtype, width in (("lstm", "bf16", 64), ("gru", "fp16", 32), ("slstm", "bf16", 16)):
    constants = {"CELL": cell, "G_IN": len(CELLS[cell].inputs), "DH": width, "BLOCK_B": 16, "FRESH": True, "DOT_F32": False}
    kinds = dict.fromkeys((n for n in rnn._rnn_kernel.arg_names if n.endswith("_ptr")), "*" + dtype)
    kinds |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(rnn._rnn_kernel, {n: kinds.get(n, "i32") for n in rnn._rnn_kernel.arg_names}, constexprs=constants)
    built = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32))
    print(cell, dtype, width, "ptx", "mma" in built.asm["ptx"], flush=True)
