"""Compile the lightning kernels for a GPU that is not here, in a process of its own: `python compile_lightning.py CAPABILITY`."""

import sys

import torch

torch.cuda.is_available = lambda: True      # so that tutor.kernels leaves Triton compiling

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tutor.kernels import lightning  # noqa: E402

CONSTANTS = {"G": 3, "D": 64, "DV": 64, "PAD_D": 64, "PAD_DV": 64, "SLICE": 32, "BLOCK": 64, "DOT_F32": False}
for name in ("_forward_kernel", "_dq_kernel", "_dk_kernel", "_dv_kernel", "_step_kernel"):
    kernel = getattr(lightning, name)
    constants = {key: value for key, value in CONSTANTS.items() if key in kernel.arg_names}
    rows = {key: "*bf16" for key in kernel.arg_names if key.endswith("_ptr")}
    states = {key: "*fp32" for key in rows if "state" in key or key in ("s_ptr", "after_ptr", "dstart_ptr")}
    kinds = rows | states | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {key: kinds.get(key, "i32") for key in kernel.arg_names}, constexprs=constants)
    built = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32))
    print(name, "ptx", "mma" in built.asm["ptx"], "shared", built.metadata.shared, flush=True)
