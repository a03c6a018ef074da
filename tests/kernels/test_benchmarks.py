"""The kernel benchmarks run: checked, counted, and every call that a GPU would time is made once, on a CPU."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from tutor import kernels

if not kernels.available():
    pytest.skip("kernels need Triton, which is not installed here", allow_module_level=True)

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("[!_]*.py") if "from _gpu import" in path.read_text("utf-8"))


@pytest.fixture
def frame(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("_gpu")


def tiny(frame, **change):
    stated = dict(name="tiny", question="is twice the sum?", columns=("N",), shapes=[(4,)], small=[(3,)],
                  inputs=lambda shape, dtype, device: frame.normal(dtype, device, shape),
                  ours={"a": lambda x: lambda: x + x, "b": lambda x: lambda: 2 * x},
                  rule=lambda dtype, x: 2 * x.to(dtype), dtypes=("float32",),
                  floor=lambda shape, **on: kernels.roofline.Roofline(8 * shape[0], shape[0],
                                                                      kernels.roofline.hardware(on["on"]), on["dtype"]))
    return frame.Benchmark(**stated | change)


def test_a_wrong_kernel_is_told_before_anything_else(frame, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tiny.py"])
    tiny(frame).main()
    assert "within tolerance" in capsys.readouterr().out
    for wrong in (lambda x: lambda: 2.01 * x, lambda x: lambda: x * float("nan")):
        with pytest.raises(AssertionError, match="b, result 0"):
            tiny(frame, ours={"a": lambda x: lambda: x + x, "b": wrong}).main()
    with pytest.raises(ValueError, match="gives 2 tensors"):
        tiny(frame, ours={"a": lambda x: lambda: (x, x)}).main()
    assert not capsys.readouterr().out


def test_the_counted_part_by_hand(frame):
    # 8 * 4 bytes and 4 operations; 32 / 3.35e12 s = 9.55e-9 ms
    row = tiny(frame).counted((4,), "float32", "H100 SXM")
    assert row == {"N": 4, "dtype": "float32", "bytes": 32, "flops": 4, "floor_ms": pytest.approx(9.552e-9, rel=1e-3),
                   "bound_by": "memory"}
    assert "floor_ms" not in tiny(frame).counted((4,), "float32", None)          # a card whose data sheet is not known


def test_the_fastest_is_compared_and_what_cannot_run_is_reported(frame):
    def missing(x):
        raise ModuleNotFoundError("No module named 'peer'")

    clock, failed = iter([3.0, 2.0, 5.0]), {}
    bench = tiny(frame, beside={"slow": lambda x: lambda: x, "peer": missing})
    row = bench.timed((4,), "float32", "cpu", lambda run: run() is not None and next(clock), failed)
    assert row == {"a_ms": 3.0, "b_ms": 2.0, "ours_ms": 2.0, "slow_ms": 5.0, "slow_over_ours": 2.5, "peer_ms": None,
                   "peer_over_ours": None}
    assert failed == {"peer": "ModuleNotFoundError: No module named 'peer'"}


def test_results_are_saved_for_each_device(frame, monkeypatch, tmp_path):
    monkeypatch.setattr(frame, "RESULTS", tmp_path)
    frame.save("tiny", "why?", "NVIDIA H100 80GB HBM3", "H100 SXM", [{"N": 4}], ["peer did not run: not here"])
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-nvidia-h100-80gb-hbm3.json"]
    told = json.loads((tmp_path / "tiny-nvidia-h100-80gb-hbm3.json").read_text())
    assert told["device"] == "NVIDIA H100 80GB HBM3" and len(told["date"]) == 10
    assert told["rows"] == [{"N": 4}] and told["notes"] == ["peer did not run: not here"]


@pytest.mark.parametrize("card", ["NVIDIA H200", "a card of tomorrow"])
def test_with_a_gpu_all_is_timed_and_saved(frame, monkeypatch, tmp_path, capsys, card):
    monkeypatch.setattr(sys, "argv", ["tiny.py", "--gpu"])
    monkeypatch.setattr(frame, "RESULTS", tmp_path)
    monkeypatch.setattr(frame, "median_ms", lambda run: 1.0 + (run() is None))
    monkeypatch.setattr(frame.kernels, "interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: card)
    asked = []
    tiny(frame, inputs=lambda shape, dtype, device: asked.append(device) or [torch.ones(shape, dtype=dtype)],
         beside={"peer": lambda x: x.no_such_thing}, notes=lambda rows: [f"{len(rows)} row"]).main()
    told = json.loads(next(tmp_path.iterdir()).read_text())
    assert set(asked) == {"cuda"} and told["device"] == card and told["rows"][0]["ours_ms"] == 1.0
    assert told["notes"][0] == "1 row" and "peer did not run: AttributeError" in told["notes"][1]
    assert ("of_floor" in told["rows"][0]) == (told["floor_of"] is not None) == (card == "NVIDIA H200")
    assert "1 row\npeer did not run" in capsys.readouterr().out


def test_the_crossover_is_the_shortest_length_from_which_on_all_are_won(frame):
    rows = [{"Hq": 9, "Hkv": 3, "D": 64, "dtype": "float16", "T": t, "sdpa_over_ours": x}
            for t, x in ((1, 1.5), (2, 0.9), (4, 1.1), (8, 1.2))]
    crossovers = importlib.import_module("hyper").crossovers
    assert "from 4 tokens on" in crossovers(rows)[0]
    assert "not faster" in crossovers([*rows, rows[0] | {"T": 16, "sdpa_over_ours": None}])[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")
def test_without_a_gpu_none_can_be_asked_for(frame, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tiny.py", "--gpu"])
    with pytest.raises(SystemExit, match="no CUDA device"):
        tiny(frame).main()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="make bench-gpu does more")
@pytest.mark.parametrize("name", NAMES)
def test_each_benchmark_is_right_counts_and_can_be_timed(frame, name, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)              # FlexAttention as plain torch: it is not timed here
    module = importlib.import_module(name)
    for bench in (x for x in vars(module).values() if isinstance(x, frame.Benchmark)):
        bench.gate("cpu")
        rows, failed = [bench.counted(shape, bench.dtypes[0], "H100 SXM") for shape in bench.shapes], {}
        assert bench.floor is None or all(row["bytes"] > 0 and row["floor_ms"] > 0 for row in rows)
        row = bench.timed(bench.small[0], bench.dtypes[0], "cpu", lambda run: float(bool(frame.numbers(run()))), failed)
        assert set(failed) <= {"fla", "cudnn_lstm"}, failed                # not installed; and needs a GPU
        assert all(row[f"{each}_ms"] == 1.0 for each in (*bench.ours, *bench.beside) if each not in failed)
