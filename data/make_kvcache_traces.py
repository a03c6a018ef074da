"""Make `data/kvcache/<policy>.safetensors`: one short text through five policies, for the cache shelf.

    python data/make_kvcache_traces.py

The text is ours (Apache-2.0). Model: SmolLM2-135M-Instruct, 4-bit weights dequantised to bf16.
"""

from __future__ import annotations

from pathlib import Path

import tutor
from tutor.kvcache.record import record

TEXT = """The lighthouse key hangs behind the blue door. Remember that, because the rest of this story is about the sea.

The keeper walked along the shore each morning and wrote down what he saw: the wind, the colour of the water, the \
number of ships. On Monday there were four ships, on Tuesday there were none, and on Wednesday the fog was so thick \
that he could not see his own hands. He kept the lamp burning all day. In the evening a small boat came in, and the \
woman who rowed it asked him how she could get into the lighthouse. He thought about it for a while, looked at his \
notes, and said that he was not sure. Then he remembered. The lighthouse key hangs behind the blue door."""
BUDGET, DECODE = 40, 90
LAYERS = (1, 9, 18, 27)
POLICIES = ("full", "window", "sinks_window", "h2o", "random")


def main() -> None:
    folder = Path(__file__).parent / "kvcache"
    folder.mkdir(exist_ok=True)
    model = tutor.load()
    for policy in POLICIES:
        trace = record(model, TEXT, policy, None if policy == "full" else BUDGET, decode_steps=DECODE, layers=LAYERS)
        path = trace.save(folder / f"{policy}.safetensors")
        print(f"{path.name}: {trace.steps} steps, {len(trace.events['kind'])} events, {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
