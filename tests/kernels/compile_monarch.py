"""Compile the Monarch kernel for a GPU that is not here: `python compile_monarch.py CAPABILITY DTYPE SIDE ROWS ...`.

Run in a process of its own, because Triton compiles or interprets for the whole life of a process.
"""

import sys

import torch

torch.cuda.is_available = lambda: True      # so that tutor.kernels leaves Triton compiling

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tutor.kernels import monarch  # noqa: E402


def compile_for(capability: int, dtype: str, side: int, rows: int):
    """The kernel as `fft_conv` launches it, both gates given."""
    kernel = monarch._monarch_kernel
    constants = {"SIDE": side, "ROWS": rows, "BATCH": 2, "PRE": True, "POST": True, "DOT_F32": False}
    kinds = dict.fromkeys(("u_ptr", "pre_ptr", "post_ptr", "y_ptr", "matrix_ptr"), "*" + dtype)
    kinds |= dict.fromkeys(("spectrum_ptr", "turns_ptr"), "*fp32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {name: kinds.get(name, "i32") for name in kernel.arg_names}, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4 if side < 64 else 8})


if __name__ == "__main__":
    capability, *variants = sys.argv[1:]
    for at in range(0, len(variants), 3):
        dtype, side, rows = variants[at:at + 3]
        built = compile_for(int(capability), dtype, int(side), int(rows))
        print(dtype, side, rows, "ptx", "mma", "mma" in built.asm["ptx"], "shared", built.metadata.shared, flush=True)
