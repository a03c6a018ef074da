import numpy as np
import pytest

from tutor.trace import Recorder, Trace, schema_of


def small_trace() -> Trace:
    recorder = Recorder(
        "kvcache.evict/1", method="window", params={"budget": 2}, subject={"tokens": ["a", "b", "c"], "budget": 2}
    )
    recorder.event("appended", pos=0, layer=0, head=0)
    recorder.next_step()
    recorder.event("evicted", pos=0, layer=0, head=0, score=0.5)
    return recorder.finish(
        layers=np.array([0], np.int32),
        appended_at=np.array([0, 0, 1], np.int32),
        evicted_at=np.array([[[1, -1, -1]]], np.int32),
        nbytes=np.array([2048, 2048]),
    )


def test_columns_born_late_are_filled():
    trace = small_trace()
    assert trace.steps == 2
    assert trace.events["pos"].tolist() == [0, 0]
    assert np.isnan(trace.events["score"][0]) and trace.events["score"][1] == np.float32(0.5)


def test_describe_speaks_of_the_state():
    assert (
        small_trace().describe(1) == "Step 1: token 2 'c' arrives; token 0 'a' evicted, from 1 of the recorded heads; "
        "each head holds 2 rows, the cache 2 kB."
    )


def test_saved_and_loaded_traces_are_equal(tmp_path):
    trace = small_trace()
    again = Trace.load(trace.save(tmp_path / "t.safetensors"))
    assert again.header() == trace.header()
    for name, column in trace.events.items():
        np.testing.assert_array_equal(again.events[name], column)
        assert again.events[name].dtype == column.dtype
    for name, array in trace.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)
    assert not list(tmp_path.glob("*.tmp"))


def test_unknown_schema_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="kvcache.evict/9"):
        Recorder("kvcache.evict/9", method="window")


def test_a_cut_file_is_refused(tmp_path):
    path = small_trace().save(tmp_path / "t.safetensors")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="not a readable trace"):
        Trace.load(path)


def test_a_foreign_file_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="no trace"):
        Trace.load(tmp_path / "x.safetensors")


def test_missing_arrays_and_foreign_kinds_are_refused():
    recorder = Recorder("kvcache.evict/1", method="window")
    with pytest.raises(ValueError, match="kind must be one of"):
        recorder.event("lost", pos=1)
    with pytest.raises(ValueError, match="lacks arrays"):
        recorder.finish(layers=np.array([0]))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = small_trace().save(tmp_path / "t.safetensors")
    before = path.read_bytes()

    def broken(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.numpy.save_file", broken)
    with pytest.raises(OSError, match="disk full"):
        small_trace().save(path)
    assert path.read_bytes() == before and not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    "name", ["attention.grid/1", "text.weights/1", "kvcache.evict/1", "speculative.run/1", "ann.search/1", "frontier/1"]
)
def test_every_figure_has_its_schema(name):
    assert schema_of(name).name == name
