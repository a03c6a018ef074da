"""Do a head's shape and its lines survive a change of text? Found on one text, tried on four of other kinds.

    python benchmarks/minference_transfer.py            # five texts, twelve layers; resumable, some five minutes on two cores
    python benchmarks/minference_transfer.py --again    # forget what was measured before

Text 1 is the beginning of the Python language reference. The others come with Python too: source code, a list of names and
numbers, sessions with the interpreter, and the licence, each 2 048 tokens. On every text the offline search of MInference
fits five candidates to an eighth of dense attention's tiles, head by head. Then the 64 heaviest columns and the 64 heaviest
diagonals of each head are chosen from the last 64 queries, apart from those that are kept in any case (the first 4 columns,
the nearest 32 diagonals) and from columns near these queries, and compared with those of text 1: how many are the same, and
how much of the attention of these queries the lines of text 1 keep (`borrowed`), beside own lines and the next 64 first
columns and nearest diagonals (`blind`). Each text and layer is written when it is done, so an interrupted run goes on where
it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import os
import platform
import re
from datetime import UTC, datetime
from pathlib import Path

import torch
from tqdm.auto import tqdm

import tutor
from tutor import texts
from tutor.attention.methods.minference import (
    ALWAYS,
    SIDE,
    default_candidates,
    heaviest_lines,
    jaccard,
    kept_by_lines,
    search,
)
from tutor.model.capture import capture

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "minference-transfer.json"
TOKENS, SHARE, LINES, LAST = 2048, 1 / 8, 64, 64
ERRORS = ("error_a_shape", "error_few_columns", "error_some_columns", "error_many_columns", "error_blocks")  # in order
LAYERS = (0, 2, 5, 8, 11, 14, 16, 18, 20, 22, 25, 28)


def sources() -> dict[str, str]:
    """Five texts of different kinds that every Python brings; text 1 first."""
    import argparse as code
    import html.entities as names

    sessions = (re.findall(r"^ *(?:>>>|\.\.\. ).*(?:\n(?! *$).*)*", text, re.M) for _, text in texts.docstrings())
    licence = Path(os.__file__).with_name("LICENSE.txt")
    if not licence.is_file():
        raise SystemExit(f"{licence} is not here: this Python came without its licence")
    return {"manual": texts.reference(), "code": inspect.getsource(code.ArgumentParser),
            "list": inspect.getsource(names), "sessions": "\n".join(part for parts in sessions for part in parts),
            "licence": licence.read_text("utf-8")}


def measure(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> dict:
    """Errors `(Hq, 5)` of the candidates, and columns and diagonals `(2, Hq, 64)` that the last queries would choose."""
    chosen = heaviest_lines(q, k, LINES, LAST)[:, 0]
    return {"error": [[round(x, 4) if x < float("inf") else None for x in row]
                      for row in search(q, k, v, share=SHARE).error.tolist()],
            "lines": chosen.nonzero()[:, 2].reshape(*chosen.shape[:2], LINES).tolist()}


def flags(numbers: list, keys: int) -> torch.Tensor:
    """bool `(2, 1, Hq, S)`: True at the numbers `(2, Hq, 64)`."""
    at = torch.tensor(numbers)
    return torch.zeros(*at.shape[:2], keys, dtype=torch.bool).scatter_(2, at, True)[:, None]


def compared(q: torch.Tensor, k: torch.Tensor, mine: dict, first: dict) -> dict:
    """Per head: the Jaccard index of the lines of two texts, and the weight that own, borrowed and the nearest lines keep."""
    own, borrowed = (flags(x["lines"], k.shape[2]) for x in (mine, first))
    blind = torch.zeros_like(own)
    for kind, begin in zip(blind, ALWAYS):
        kind[..., begin: begin + LINES] = True
    out = dict(zip(("columns", "diagonals"), jaccard(own, borrowed)[:, 0]))
    for name, chosen in (("own", own), ("borrowed", borrowed), ("blind", blind)):
        out[name] = kept_by_lines(q, k, chosen, LAST)[0]
    return {name: [round(x, 4) for x in values.tolist()] for name, values in out.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--again", action="store_true", help="forget what was measured before")
    options = parser.parse_args()
    partial = RESULTS.with_suffix(".part")
    if options.again:
        partial.unlink(missing_ok=True)
    done = json.loads(partial.read_text("utf-8")) if partial.exists() else {}
    model = tutor.load(dtype=torch.float32)
    rows, hashes = [], {}
    with torch.no_grad():
        for name, text in sources().items():
            ids = torch.tensor(model.tokenizer.encode(text[: 16 * TOKENS])[:TOKENS])
            if len(ids) < TOKENS:
                raise SystemExit(f"the text {name!r} has {len(ids)} tokens, {TOKENS} are needed")
            hashes[name] = hashlib.sha256(ids.numpy().tobytes()).hexdigest()[:16]
            found = done.setdefault(f"{name} {hashes[name]}", {})
            missing = [layer for layer in LAYERS if str(layer) not in found]
            recorded = capture(model, ids, missing) if missing else None
            for layer in tqdm(missing, desc=name, unit="layer"):
                q, k, v = recorded.q(layer), recorded.k(layer), recorded.v(layer)
                mine = measure(q, k, v)
                first = mine if name == "manual" else done[f"manual {hashes['manual']}"][str(layer)]
                found[str(layer)] = mine | {"compared": compared(q, k, mine, first)}
                partial.write_text(json.dumps(done), encoding="utf-8")
            for layer in LAYERS:
                errors = dict(zip(ERRORS, zip(*found[str(layer)]["error"])))                 # nine heads each
                rows.append({"text": name, "layer": layer} | errors | found[str(layer)]["compared"])
    content = {"question": "which shapes and lines of a head, found on one text, serve other texts",
               "date": datetime.now(UTC).date().isoformat(), "machine": "2-core laptop-class CPU",
               "model": "SmolLM2-135M-Instruct, 4-bit weights dequantised", "tokens": TOKENS,
               "lines": LINES, "last_queries": LAST, "share": SHARE, "side": SIDE, "candidates": default_candidates(SHARE),
               "texts_sha256": hashes, "versions": {"python": platform.python_version(), "torch": torch.__version__},
               "note": "Nine heads a layer. error: relative output error of each candidate; columns, diagonals: Jaccard index "
                       "with text 1; own, borrowed, blind: attention of the last queries that lines keep.",
               "rows": rows}
    finished = RESULTS.with_suffix(".tmp")
    finished.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
    finished.replace(RESULTS)
    partial.unlink()
    print(f"{RESULTS}: {RESULTS.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
