"""spec/scheduler.md, files as lazy references to their contents."""

from __future__ import annotations

import gc
import pickle
import stat
from pathlib import Path
from typing import Any

import pytest

from otel_timespan import dagger as D
from otel_timespan.dagger.data.files import File, tofile
from otel_timespan.dagger.places.processors import OSProc
from otel_timespan.dagger.places.scopes import ProcessScope
from otel_timespan.dagger.storage import StorageError
from otel_timespan.errors import InvalidOptionError, NotCallableError
from otel_timespan.timespans import Event
from tests.dagger.acceptance.support import code_of, done, failure, identity, on, settled, timeline_of


def pickled(path: Path, value: Any) -> Path:
    """Write a pickle to the path; it."""
    path.write_bytes(pickle.dumps(value))
    return path


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_s9_1_a_file_is_its_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    """§9.1 accept: `fetch(File(path))` and a task's argument give the contents, and the file still exists."""
    monkeypatch.chdir(tmp_path)
    path = pickled(tmp_path / "data.pkl", [1, 2, 3])
    name = "data.pkl" if relative else str(path)
    assert D.fetch(D.File(name)) == [1, 2, 3]
    assert D.fetch(D.spawn(identity, D.File(name))) == [1, 2, 3]
    assert D.fetch(D.spawn(lambda *, data: data, data=D.File(name))) == [1, 2, 3]
    gc.collect()
    assert path.exists()


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_s9_1_tofile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    """§9.1 accept: `tofile` writes the default format and gives a File; the file outlives the reference."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "out.pkl"
    file = D.tofile([1, 2, 3], "out.pkl" if relative else path)
    assert isinstance(file, D.File)
    assert pickle.loads(path.read_bytes()) == [1, 2, 3] == D.fetch(file) == D.fetch(D.spawn(identity, file))
    del file
    gc.collect()
    assert path.exists()


def test_s9_1_a_missing_file_raises_at_once() -> None:
    """§9.1 accept: `File` of a path that is not there is a ValueError of ours, at once."""
    with pytest.raises(ValueError) as caught:
        D.File("/nope")
    assert isinstance(caught.value, D.TimespanError)


def test_s9_1_nothing_is_read_before_it_is_used(tmp_path: Path) -> None:
    """§9.1: a File is lazy: what the file holds when it is used counts."""
    path = pickled(tmp_path / "data", "old")
    file = D.File(path)
    pickled(path, "new")
    assert D.fetch(D.spawn(identity, file)) == "new"


def test_s9_1_functions_of_ones_own(tmp_path: Path) -> None:
    """§9.1: `use_io` says whether the functions take a stream or a path."""

    def save(data: str, path: Any) -> None:
        Path(path).write_text(data.upper())

    file = D.tofile("hello", tmp_path / "t", serialize=save, deserialize=lambda p: Path(p).read_text(), use_io=False)
    assert D.fetch(D.spawn(identity, file)) == "HELLO"
    streamed = D.File(tmp_path / "t", deserialize=lambda stream: stream.read())
    assert D.fetch(D.spawn(identity, streamed)) == b"HELLO"


def test_s9_1_the_scope_is_this_process(cluster: D.Context, tmp_path: Path) -> None:
    """§9.1: a task that uses a File runs in the process that made it, and is refused elsewhere."""
    file = D.File(pickled(tmp_path / "data", 5))
    for _ in range(10):
        assert D.fetch(D.spawn(lambda x: D.myid(), file)) == 1
    assert code_of(done(D.spawn(identity, on(2), file))) == "arg_scope"


def test_s9_1_a_broken_file_fails_its_task_only(tmp_path: Path) -> None:
    """§9.1, issue 5: contents that can't be read are the error of the task that wanted them; others go on."""
    path = tmp_path / "data"
    path.write_bytes(b"nonsense")
    bad, good = D.spawn(identity, D.File(path)), D.spawn(int)
    error = failure(done(bad))
    assert isinstance(error, D.DTaskFailedError)
    assert str(path) in str(error)
    assert D.fetch(good) == 0


def test_s9_1_meta_passes_no_contents(tmp_path: Path) -> None:
    """§1.3, §9.1: with `meta` the contents are not read."""
    path = tmp_path / "data"
    path.write_bytes(b"nonsense")
    assert D.fetch(D.spawn(lambda f: type(f).__name__, D.Options(meta=True), D.File(path))) in ("File", "Chunk")


def test_s9_1_a_move_event_of_kind_file(tmp_path: Path) -> None:
    """§9.1, docs/events.md: the log names the move of a file's contents `file`."""
    log: list[Event] = []
    with D.Context(threads=1, log_sink=log):
        task = D.spawn(identity, D.File(pickled(tmp_path / "data", 5)))
        assert D.fetch(task) == 5
        events = settled(log, task)
    assert timeline_of(events, task, "move", position=1).kind == "file"


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
def test_s9_1_files(two: D.Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: bool) -> None:
    """§9.1: a pickled file is read by a fetch and as an argument, and still exists; a missing one is refused."""
    monkeypatch.chdir(tmp_path)
    path: Any = "data.pickle" if relative else tmp_path / "data.pickle"
    with open(path, "wb") as file:
        pickle.dump([1, 2, 3], file)
    assert D.fetch(D.File(path)) == [1, 2, 3]
    assert D.fetch(D.spawn(identity, D.File(path))) == [1, 2, 3]
    made = D.tofile({"a": 1}, "other.pickle" if relative else tmp_path / "other.pickle")
    assert D.fetch(made) == {"a": 1}
    del made
    gc.collect()
    assert (tmp_path / "data.pickle").is_file()
    assert (tmp_path / "other.pickle").is_file()
    with pytest.raises(ValueError, match="no file"):
        D.File("/nope")


# --- edges ---------------------------------------------------------------------------------------------------


def test_pickled_contents(tmp_path: Path) -> None:
    """A file pickled by anybody is read; it stays when the reference is gone."""
    path = tmp_path / "data.pkl"
    path.write_bytes(pickle.dumps([1, 2, 3]))
    file = File(path)
    assert file.fetch() == [1, 2, 3]
    del file
    gc.collect()
    assert path.exists()


def test_nothing_is_read_before_use(tmp_path: Path) -> None:
    """Making a reference reads nothing, and each use reads the file as it is then."""
    reads: list[Any] = []

    def load(source: Any) -> Any:
        reads.append(source.read())
        return reads[-1]

    path = tmp_path / "data"
    path.write_bytes(b"old")
    file = File(path, deserialize=load)
    assert not reads
    assert file.fetch() == b"old"
    path.write_bytes(b"new")
    assert file.fetch() == b"new"


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is against the folder in which the reference was made."""
    monkeypatch.chdir(tmp_path)
    file = tofile({"a": 1}, "data.pkl")
    assert file.path == tmp_path / "data.pkl"
    monkeypatch.chdir("/")
    assert file.fetch() == {"a": 1}
    assert File(str(tmp_path / "data.pkl")) == file


def test_a_missing_file_is_refused_at_once(tmp_path: Path) -> None:
    """So are folders and what is no path."""
    for bad in (tmp_path / "nope", tmp_path, 3, None, b"x"):
        with pytest.raises(ValueError, match=r"there is no file|is no path"):
            File(bad)  # type: ignore[arg-type]


def test_a_file_that_vanished(tmp_path: Path) -> None:
    """Reading a file that is gone since is a clear error."""
    file = tofile(1, tmp_path / "data")
    file.path.unlink()
    with pytest.raises(StorageError, match="can't be read"):
        file.fetch()


def test_contents_of_another_format(tmp_path: Path) -> None:
    """What the deserializer raises is the cause of the error."""
    path = tmp_path / "text"
    path.write_text("hello")
    with pytest.raises(StorageError, match="can't be deserialized") as caught:
        File(path).fetch()
    assert caught.value.__cause__ is not None


def test_scope_is_this_process(tmp_path: Path) -> None:
    """The contents can be used in the process that made the reference."""
    file = tofile(1, tmp_path / "data")
    assert file.scope == ProcessScope()
    assert file.processor == OSProc()


def test_functions_of_your_own(tmp_path: Path) -> None:
    """They get a stream or, without `use_io`, a path with the same ending."""
    streamed = tofile(
        "a", tmp_path / "a", serialize=lambda v, f: f.write(v.encode()), deserialize=lambda f: f.read().decode()
    )
    assert (streamed.fetch(), streamed.path.read_bytes()) == ("a", b"a")
    suffixes: list[str] = []

    def save(value: str, path: str) -> None:
        suffixes.append(Path(path).suffix)
        Path(path).write_text(value)

    named = tofile("b", tmp_path / "b.txt", serialize=save, deserialize=lambda p: Path(p).read_text(), use_io=False)
    assert (named.fetch(), suffixes) == ("b", [".txt"])


def test_arrays_by_path(tmp_path: Path) -> None:
    """numpy's own functions, which insist on an ending, fit as they are."""
    np = pytest.importorskip("numpy")
    file = tofile(
        np.arange(5), tmp_path / "x.npy", serialize=lambda v, p: np.save(p, v), deserialize=np.load, use_io=False
    )
    assert file.fetch().tolist() == [0, 1, 2, 3, 4]


def test_mapped_files(tmp_path: Path) -> None:
    """With `mmap` the deserializer gets the file mapped into memory, valid as long as it is used."""
    path = tmp_path / "raw"
    path.write_bytes(b"abcdef")
    mapped = File(path, deserialize=lambda m: m, mmap=True).fetch()
    assert mapped[2:4] == b"cd"
    with pytest.raises(TypeError):
        mapped[0] = 1
    mapped.close()
    assert File(path, deserialize=lambda m: m.read(), mmap=True).fetch() == b"abcdef"


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    """A failing write leaves the old contents and nothing else; the file has the usual rights."""
    path = tmp_path / "data"
    tofile([1], path)

    def fails(value: Any, file: Any) -> None:
        file.write(b"half")
        raise RuntimeError("out of luck")

    with pytest.raises(StorageError, match="out of luck"):
        tofile([2], path, serialize=fails)
    with pytest.raises(StorageError, match="can't be written"):
        tofile([2], tmp_path / "missing" / "data")
    assert File(path).fetch() == [1]
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    (tmp_path / "plain").write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_references_are_values(tmp_path: Path) -> None:
    """They are equal by path and format, hashable, and survive pickling."""
    file = tofile(1, tmp_path / "data")
    assert File(tmp_path / "data") == file != File(tmp_path / "data", use_io=False)
    assert hash(File(tmp_path / "data")) == hash(file)
    copied = pickle.loads(pickle.dumps(file))
    assert copied == file
    assert (copied.fetch(), copied.scope) == (1, file.scope)
    assert repr(file) == f"File({str(file.path)!r})"


def test_bad_functions_are_refused(tmp_path: Path) -> None:
    """At once, before anything is written."""
    with pytest.raises(NotCallableError, match="serialize must be a function"):
        tofile(1, tmp_path / "data", serialize=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidOptionError, match="mmap needs use_io"):
        tofile(1, tmp_path / "data", use_io=False, mmap=True)
    assert not list(tmp_path.iterdir())
