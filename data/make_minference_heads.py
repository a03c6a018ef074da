"""Which shape has each of the 270 heads? `python data/make_minference_heads.py` writes data/attention/minference_heads.json.

MInference's offline search on the shared model: two texts (the Python language reference, docstrings of the standard
library) at 2 048 tokens, and the first text at 4 096 too. Five candidates, each fitted to an eighth of dense attention's
tiles of 16 x 16 on every head, judged by relative output error on 16 query blocks. Each layer is written when it is
done, so an interrupted run goes on where it stopped; about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm.auto import tqdm

import tutor
from tutor import texts
from tutor.attention.methods.minference import SIDE, default_candidates, search
from tutor.model.capture import capture
from tutor.model.load import find

SHARE = 1 / 8
RUNS = (("reference", 2048), ("docstrings", 2048), ("reference", 4096))


def read(text: str) -> str:
    if text == "reference":
        return texts.reference()
    return "\n\n".join(f"{name}\n{doc}" for name, doc in texts.docstrings()[:2000:8])      # from many modules


def rounded(x: torch.Tensor, digits: int) -> list:
    return [[round(value, digits) if value < float("inf") else None for value in row] for row in x.tolist()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--to", type=Path, default=Path(__file__).parent / "attention" / "minference_heads.json")
    parser.add_argument("--again", action="store_true", help="forget what was searched before")
    options = parser.parse_args()
    options.to.parent.mkdir(exist_ok=True)
    partial = options.to.with_suffix(".part")
    model = tutor.load(dtype=torch.float32)
    with (find() / "model.safetensors").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    about = {"model": "SmolLM2-135M-Instruct, 4-bit weights dequantised", "model_sha256": digest, "share": SHARE, "side": SIDE,
             "score": "relative output error, mean over 16 query blocks of the last three quarters",
             "licence": "texts: Python Software Foundation License Version 2", "python": platform.python_version(),
             "torch": torch.__version__, "maker": "data/make_minference_heads.py", "seed": "none: nothing is drawn"}
    done = json.loads(partial.read_text()) if partial.exists() and not options.again else {}
    with torch.no_grad():
        for text, tokens in RUNS:
            ids = torch.tensor(model.tokenizer.encode(read(text)[: 16 * tokens])[:tokens])
            layers = done.setdefault(f"{text} {tokens}", {})
            missing = [layer for layer in range(model.config.n_layers) if str(layer) not in layers]
            if not missing:
                continue
            recorded = capture(model, ids, missing)
            for layer in tqdm(missing, desc=f"{text}, {tokens} tokens", unit="layer"):
                found = search(recorded.q(layer), recorded.k(layer), recorded.v(layer), share=SHARE)
                layers[str(layer)] = {"size": rounded(found.size, 5), "error": rounded(found.error, 4)}
                partial.write_text(json.dumps(done))
    runs = [{"text": text, "tokens": tokens}
            | {name: [done[f"{text} {tokens}"][str(layer)][name] for layer in range(model.config.n_layers)]
               for name in ("error", "size")} for text, tokens in RUNS]
    about["date"] = datetime.now(UTC).date().isoformat()
    content = {"about": about, "candidates": default_candidates(SHARE), "runs": runs}
    finished = options.to.with_suffix(".tmp")
    finished.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
    os.replace(finished, options.to)
    partial.unlink()
    print(f"{options.to}: {options.to.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
