"""Compile the paged decode kernels for a GPU that is not here: `python compile_paged_decode.py CAPABILITY DTYPE D`.

Run in a process of its own, because Triton compiles or interprets for the whole life of a process.
"""

import sys

import torch

torch.cuda.is_available = lambda: True      # so that tutor.kernels leaves Triton compiling

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tutor.kernels import paged_decode  # noqa: E402


def compile_for(kernel, capability: int, dtype: str, d: int):
    """A kernel as its wrapper launches it: pools and queries of one dtype, 32-bit tables, 64-bit keys, floats out."""
    constants = {"G": 3, "PAGE": 16, "D": d, "DV": d, "BLOCK_G": 16, "BLOCK_N": 64, "DOT_F32": False,
                 "BLOCK_D": paged_decode._padded(d), "BLOCK_DV": paged_decode._padded(d)}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    kinds = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), "*" + dtype)
    kinds |= {"table_ptr": "*i32", "length_ptr": "*i32", "keys_ptr": "*i64", "out_ptr": "*fp32", "o_ptr": "*fp32",
              "lse_ptr": "*fp32", "scale": "fp32", "scale_log2": "fp32"} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {name: kinds.get(name, "i32") for name in kernel.arg_names}, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_stages": 2})


if __name__ == "__main__":
    capability, dtype, d = sys.argv[1:]
    for kernel in (paged_decode._score_kernel, paged_decode._attend_kernel):
        built = compile_for(kernel, int(capability), dtype, int(d))
        print(kernel.fn.__name__, "ptx", "mma" in built.asm["ptx"], "shared", built.metadata.shared, flush=True)
