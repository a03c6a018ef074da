"""Compile the vertical-slash kernel for a GPU that is not here: `python compile_vertical_slash.py CAPABILITY DTYPE D TILE ...`.

Run in a process of its own, because Triton compiles or interprets for the whole life of a process.
"""

import sys

import torch

torch.cuda.is_available = lambda: True      # so that tutor.kernels leaves Triton compiling

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tutor.kernels import vertical_slash  # noqa: E402


def compile_for(capability: int, dtype: str, d: int, tile: int):
    kernel, width = vertical_slash._vertical_slash_kernel, vertical_slash._padded(d)
    constants = {"G": 3, "D": d, "DV": d, "BLOCK": tile, "BLOCK_D": width, "BLOCK_DV": width, "DOT_F32": False}
    kinds = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "o_ptr"), "*" + dtype)
    kinds |= dict.fromkeys(("starts_ptr", "columns_ptr", "n_starts_ptr", "n_columns_ptr"), "*i32")
    kinds |= {"lse_ptr": "*fp32", "scale_log2": "fp32"} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {name: kinds.get(name, "i32") for name in kernel.arg_names}, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_stages": 2})


if __name__ == "__main__":
    capability, *variants = sys.argv[1:]
    for at in range(0, len(variants), 3):
        dtype, d, tile = variants[at:at + 3]
        built = compile_for(int(capability), dtype, int(d), int(tile))
        print(dtype, d, tile, "ptx", "mma" in built.asm["ptx"], "shared", built.metadata.shared, flush=True)
