"""Compile the centroid kernel for a GPU that is not here: `python compile_centroids.py CAPABILITY DTYPE D`.

Run in a process of its own, because Triton compiles or interprets for the whole life of a process.
"""

import sys

import torch

torch.cuda.is_available = lambda: True      # so that tutor.kernels leaves Triton compiling

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tutor.kernels import centroids  # noqa: E402


def compile_for(capability: int, dtype: str, d: int, together: bool):
    """The kernel as `centroid_select` launches it: 64-bit counts, decisions in bytes or sums in float32."""
    kernel = centroids._centroid_kernel
    constants = {"G": 3, "D": d, "BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_D": d, "TOGETHER": together, "DOT_F32": False}
    kinds = {"q_ptr": "*" + dtype, "c_ptr": "*" + dtype, "n_ptr": "*i64", "out_ptr": "*fp32" if together else "*i8",
             "lse_ptr": "*fp32", "scale_log2": "fp32", "log2_t": "fp32"} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {name: kinds.get(name, "i32") for name in kernel.arg_names}, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_stages": 2})


if __name__ == "__main__":
    capability, dtype, d = sys.argv[1:]
    for together in (False, True):
        built = compile_for(int(capability), dtype, int(d), together)
        print("together" if together else "each", "ptx", "mma" in built.asm["ptx"], "shared", built.metadata.shared, flush=True)
