"""How much does it save to keep the recurrent matrix on the chip, and how fast is the fused kernel beside cuDNN? See _gpu.py.

torch's LSTM has one dense head of width Nh Dh and multiplies its input too: more work, not the same. cuDNN takes float16, and
not bfloat16, so float16 is what is timed.
"""

from __future__ import annotations

import torch
from _gpu import Benchmark, normal

from tutor.attention.methods import flash_rnn
from tutor.kernels.rnn import rnn, roofline


def inputs(shape: tuple, dtype: torch.dtype, device: str) -> tuple:
    """Pre-activations, matrices and biases of an LSTM."""
    batch, steps, heads, width = shape
    wx, R, b = normal(dtype, device, (batch, steps, 4, heads, width), (4, heads, width, width), (4, heads, width))
    return wx, R * width**-0.5, b


def cudnn(wx, R, b):
    batch, steps, _, heads, width = wx.shape
    assert torch.backends.cudnn.is_acceptable(wx), "cuDNN does not take this"
    lstm = torch.nn.LSTM(heads * width, heads * width, batch_first=True, device=wx.device, dtype=wx.dtype).requires_grad_(False)
    x = normal(wx.dtype, wx.device.type, (batch, steps, heads * width))[0]
    return lambda: lstm(x)


def matrix_bytes(shape: tuple, *_) -> dict:
    """Bytes of the recurrent matrix that move: read once, or at every step."""
    _, steps, heads, width = shape
    return {"R_bytes_fused": flash_rnn.traffic(steps, 4, heads, width, fused=True),
            "R_bytes_alternating": flash_rnn.traffic(steps, 4, heads, width)}


BENCHMARK = Benchmark(
    name="rnn",
    question="the fused recurrent kernel against its roofline and cuDNN's LSTM",
    columns=("B", "T", "Nh", "Dh"),
    shapes=[(16, 1024, 12, 64), (64, 1024, 12, 64), (16, 4096, 12, 64), (16, 1024, 24, 32)],
    small=[(17, 5, 3, 32)],
    inputs=inputs,
    ours={"rnn": lambda wx, R, b: lambda: rnn(wx, R, b)},
    rule=lambda dtype, *given: flash_rnn.rnn(*(x.to(dtype) for x in given)),
    floor=lambda shape, **on: roofline(*shape, **on),
    beside={"cudnn_lstm": cudnn},
    also=matrix_bytes,
    dtypes=("float16",),
)

if __name__ == "__main__":
    BENCHMARK.main()
