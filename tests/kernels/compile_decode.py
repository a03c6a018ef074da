"""Compile the decode kernels for a GPU that is not here: `python compile_decode.py CAPABILITY DTYPE D TILE G ...`.

Run in a process of its own, because Triton compiles or interprets for the whole life of a process.
"""

import sys

import torch

torch.cuda.is_available = lambda: True      # so that tutor.kernels leaves Triton compiling

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tutor.kernels import lean_decode, split_decode  # noqa: E402

POINTERS = {"part_o_ptr": "*fp32", "part_lse_ptr": "*fp32", "lse_ptr": "*fp32", "lengths_ptr": "*i32", "begin_ptr": "*i32",
            "scale_log2": "fp32"}


def compile_for(kernel, capability: int, dtype: str, d: int, tile: int, group: int):
    """A kernel as its wrapper launches it: pointers, 32-bit sizes and strides, one float."""
    constants = {"G": group, "T": 1, "R": group, "D": d, "DV": d, "BLOCK_M": split_decode.padded(group),
                 "BLOCK_N": tile, "BLOCK_D": split_decode.padded(d), "BLOCK_DV": split_decode.padded(d), "CAUSAL": True,
                 "DOT_F32": False, "SEARCH": 7, "BLOCK_O": 32}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    kinds = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "o_ptr"), "*" + dtype) | POINTERS | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {name: kinds.get(name, "i32") for name in kernel.arg_names}, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_stages": 2, "num_warps": 4})


if __name__ == "__main__":
    capability, *variants = sys.argv[1:]
    for at in range(0, len(variants), 4):
        dtype, d, tile, group = variants[at:at + 4]
        for kernel in (split_decode._split_kernel, split_decode._join_kernel, lean_decode._line_kernel,
                       lean_decode._share_kernel, lean_decode._fix_kernel):
            built = compile_for(kernel, int(capability), dtype, int(d), int(tile), int(group))
            print(kernel.fn.__name__, dtype, d, "ptx", "mma" in built.asm["ptx"], "shared", built.metadata.shared, flush=True)
