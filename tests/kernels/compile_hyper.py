"""Compile the kernel of HyperAttention for a GPU that is not here: `python compile_hyper.py CAPABILITY DTYPE D M N ...`.

Run in a process of its own, because Triton compiles or interprets for the whole life of a process.
"""

import sys

import torch

torch.cuda.is_available = lambda: True      # so that tutor.kernels leaves Triton compiling

import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from tutor.kernels import hyper  # noqa: E402


def compile_for(capability: int, dtype: str, d: int, block_m: int, block_n: int):
    """The kernel as `hyper_step` launches it: pointers, 32-bit sizes and strides, one float."""
    kernel, width = hyper._hyper_kernel, hyper._padded(d)
    constants = {"G": 3, "D": d, "DV": d, "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_D": width, "BLOCK_DV": width,
                 "DOT_F32": False}
    kinds = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "o_ptr"), "*" + dtype)
    kinds |= dict.fromkeys(("q_order_ptr", "k_order_ptr", "place_ptr"), "*i64")
    kinds |= {"lse_ptr": "*fp32", "weight_ptr": "*fp32", "scale_log2": "fp32"} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {name: kinds.get(name, "i32") for name in kernel.arg_names}, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_stages": 2})


if __name__ == "__main__":
    capability, *variants = sys.argv[1:]
    for at in range(0, len(variants), 4):
        dtype, d, block_m, block_n = variants[at:at + 4]
        built = compile_for(int(capability), dtype, int(d), int(block_m), int(block_n))
        print(dtype, d, "ptx", "mma" in built.asm["ptx"], "shared", built.metadata.shared, flush=True)
