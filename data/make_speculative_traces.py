"""Record the runs that the token_tree figure shows: `python data/make_speculative_traces.py` writes data/speculative/.

The real model in bf16 on the CPU; texts are of our own making (tutor/speculative/bench.py), answers are the model's.
Recorded once and checked in: another machine may round differently and tell another story.
"""

from __future__ import annotations

from pathlib import Path

from tqdm.auto import tqdm

import tutor
from tutor.speculative.bench import PASSAGE, SELF_DRAFT, prompts
from tutor.speculative.draft.model_chain import ModelChain
from tutor.speculative.draft.model_tree import ModelTree
from tutor.speculative.draft.prompt_lookup import PromptLookup
from tutor.speculative.engine import generate
from tutor.speculative.warp import GREEDY, Warp
from tutor.trace import Recorder

OUT = Path(__file__).resolve().parent / "speculative"


def main() -> None:
    OUT.mkdir(exist_ok=True)
    model = tutor.load()
    layers = SELF_DRAFT[model.config.name]
    story = model.tokenizer.encode(PASSAGE[:PASSAGE.index("Today")].strip())
    warp = Warp(0.8)
    runs = {
        "lookup_overlap": (PromptLookup(), {"length": 10, "sizes": [3, 2, 1]}, prompts(model, "overlap")[0], GREEDY, 64),
        "lookup_chat": (PromptLookup(), {"length": 10, "sizes": [3, 2, 1]}, prompts(model, "chat")[0], GREEDY, 32),
        "chain_prose": (ModelChain(model, 4, layers=layers), {"gamma": 4, "layers": len(layers)}, story, warp, 40),
        "tree_prose": (ModelTree(model, (2, 2, 2), layers=layers), {"shape": [2, 2, 2], "layers": len(layers)}, story, warp, 40),
    }
    for name, (drafter, params, prompt, how, max_new) in tqdm(runs.items(), desc="recording"):
        recorder = Recorder("speculative.run/1", method=drafter.name, params=params,
                            subject={"model": model.config.name, "weights": model.config.source, "date": "2026-11-23"})
        out = generate(model, drafter, prompt, max_new=max_new, warp=how, seed=0, trace=recorder)
        path = out.trace.save(OUT / f"{name}.safetensors")
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} kB, {out.stats.tokens_per_step:.2f} tokens per step, "
              f"{100 * out.stats.acceptance:.0f} % accepted: {out.text!r}")


if __name__ == "__main__":
    main()
