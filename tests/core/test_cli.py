import os
import shutil
import subprocess
import sys

import pytest

from tutor.catalog import root
from tutor.scaffold import write_method


def tutor(*arguments, env=None, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "tutor.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        cwd=cwd,
    )


def test_importing_tutor_imports_no_torch():
    code = "import sys, tutor; assert not {'torch', 'numpy'} & set(sys.modules), 'heavy import'; print(tutor.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_attribute_is_an_attribute_error():
    import tutor

    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        tutor.lod  # noqa: B018
    assert "load" in dir(tutor)


def test_doctor_names_the_command_that_brings_the_model(tmp_path):
    done = tutor("doctor", env={"TUTOR_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path), "TUTOR_MODEL": ""})
    assert done.returncode == 1
    line = done.stdout.split("real model")[1].splitlines()
    assert "not found" in line[0] and "tutor fetch" in line[1]


def test_an_unknown_claim_is_told_in_one_line():
    done = tutor("claims", "--run", "h2o.makes-coffee")
    assert done.returncode == 2
    assert done.stderr.startswith("tutor: no claim 'h2o.makes-coffee'") and "Traceback" not in done.stderr


@pytest.mark.parametrize("family", ["attention", "kvcache", "speculative", "ann", "compress"])
def test_new_method_writes_four_files_whose_test_fails_until_filled_in(tmp_path, family):
    shutil.copytree(root() / "tutor", tmp_path / "tutor", ignore=shutil.ignore_patterns("__pycache__"))
    files = write_method(tmp_path, "newcomer", family)
    assert len(files) == 4 and all(path.is_file() for path in files)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = lambda *command: subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, env=env)
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{family}/test_newcomer.py")
    assert done.returncode == 1 and f"fill in tests/{family}/test_newcomer.py" in done.stdout, done.stdout + done.stderr
    listed = run("-c", f"from tutor import catalog; print([m.name for m in catalog.methods({family!r})])")
    assert "'newcomer'" in listed.stdout, listed.stderr
    with pytest.raises(ValueError, match="is taken"):
        write_method(tmp_path, "newcomer", family)


@pytest.mark.parametrize(
    "name, family, message", [("Strided", "attention", "lower_case"), ("x", "atention", "family must be one of")]
)
def test_new_method_refuses_bad_names(tmp_path, name, family, message):
    with pytest.raises(ValueError, match=message):
        write_method(tmp_path, name, family)
    assert not any(tmp_path.iterdir())


def test_every_make_target_is_a_command():
    help_text = tutor("--help").stdout
    for command in ("fetch", "lab", "test", "book", "bench", "mutants", "lint", "doctor", "catalog", "claims", "new-method"):
        assert command in help_text


def test_a_wrong_browser_setting_is_named(tmp_path):
    done = tutor("browser", env={"TUTOR_CHROMIUM": str(tmp_path / "nothing")})
    assert done.returncode == 2 and "TUTOR_CHROMIUM" in done.stderr
