"""Storage devices: where the bytes of a value are, in memory or in files.

A spill file ends with its length and checksum, so that a damaged one is an error and never a wrong value. It
appears under its name only when it is complete, is readable by its owner only, and goes when its reference
dies or the process ends, unless it is to be retained. What is spilled is unpickled again: a spill folder
must be as private as the program itself.

See docs/data.md.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import secrets
import struct
import tempfile
import weakref
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ... import exits, forks
from ...errors import InvalidOptionError, NotCallableError, StorageError

__all__ = [
    "ABSENT",
    "RAM",
    "FileFormat",
    "GenericFileDevice",
    "PickleFileDevice",
    "RAMDevice",
    "StorageDevice",
    "StorageError",
    "Stored",
    "replacing",
]

Filter = tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]
"""One stage of a file device: what is done to the bytes on writing, and undone on reading."""


class Stored:
    """What devices know of one value: its size, its tags, and per leaf device where it is.

    `nbytes`: the size that counts against limits; `tag`, `leaf_tag`: the file name wanted, if any;
    `retain`: what is on a device stays when the reference dies. `places` belongs to the devices. `watch`
    is told, if there is one, when a device moves the value out of memory: `watch.spilled()`, which must not
    block or raise.
    """

    __slots__ = ("leaf_tag", "nbytes", "places", "retain", "tag", "watch")

    def __init__(self, nbytes: int, tag: Any = None, leaf_tag: Any = None, retain: bool = False) -> None:
        self.nbytes, self.tag, self.leaf_tag, self.retain = nbytes, tag, leaf_tag, retain
        self.places: dict[StorageDevice, Any] = {}
        self.watch: Any = None


class StorageDevice(ABC):
    """A place for values. All methods may be called from any thread; they raise `StorageError`."""

    @abstractmethod
    def write(self, stored: Stored, value: Any) -> None:
        """Keep the value. When this raises, nothing has changed."""

    @abstractmethod
    def read(self, stored: Stored) -> Any:
        """The value that was kept."""

    @abstractmethod
    def delete(self, stored: Stored) -> None:
        """Forget the value; what is retained stays in its file. Does nothing if it is not here."""

    def holds(self, stored: Stored) -> bool:
        """Whether the value is here."""
        return self in stored.places

    def in_memory(self, stored: Stored) -> bool:
        """Whether the value can be read without any input or output."""
        return False

    def peek(self, stored: Stored) -> Any:
        """The value if it is in memory, else `ABSENT`. Never waits."""
        return ABSENT

    def check(self, stored: Stored) -> None:  # noqa: B027 - nothing to refuse is the default
        """Refuse what could never be kept, before the first write. Raises `InvalidOptionError` for a bad tag."""

    def ordered(self) -> contextlib.AbstractContextManager[Any]:
        """While it is held, no value moves between memory and the device on another thread."""
        return contextlib.nullcontext()


ABSENT: Any = object()
"""No value: not in memory."""


class RAMDevice(StorageDevice):
    """Keeps values in memory, as they are."""

    def write(self, stored: Stored, value: Any) -> None:
        """Keep the very object."""
        stored.places[self] = value

    def read(self, stored: Stored) -> Any:
        """The very object."""
        try:
            return stored.places[self]
        except KeyError:
            raise StorageError("the value is not in memory (any more)") from None

    def delete(self, stored: Stored) -> None:
        """Drop the object."""
        stored.places.pop(self, None)

    def in_memory(self, stored: Stored) -> bool:
        """As `holds`."""
        return self in stored.places

    def peek(self, stored: Stored) -> Any:
        """The very object, if it is here."""
        return stored.places.get(self, ABSENT)


RAM = RAMDevice()
"""The memory of this process."""


# --- files -------------------------------------------------------------------------------------------


class _FileDevice(StorageDevice):
    """Common to devices that keep one file a value in a folder."""

    def __init__(self, directory: str | os.PathLike[str] | None, suffix: str) -> None:
        self._own: int | None = None
        """The process that the folder belongs to; None for one that was given."""
        try:
            if directory is None:
                self._make_own()
            else:
                self.directory = Path(os.fspath(directory)).absolute()
                self.directory.mkdir(parents=True, exist_ok=True)
        except (OSError, TypeError) as error:
            raise InvalidOptionError(f"{directory!r} can't be a storage folder: {error}") from error
        self._suffix = suffix
        # By which process a file was made: a forked child leaves its parent's files alone.
        self._files: dict[Path, tuple[int, Stored]] = {}
        _file_devices.add(self)

    def _make_own(self) -> None:
        with forks.held_off:
            self._own, self.directory = os.getpid(), Path(tempfile.mkdtemp(prefix="otel-timespan-")).absolute()

    def delete(self, stored: Stored) -> None:
        """Delete the file, or leave it where it is if it is to be retained."""
        path = stored.places.pop(self, None)
        if path is None:
            return
        owner, _ = self._files.pop(path, (None, None))
        if owner == os.getpid() and not stored.retain:
            _unlink(path)

    def check(self, stored: Stored) -> None:
        """Refuse a tag that is no file name, or that is taken."""
        if stored.leaf_tag is not None or stored.tag is not None:
            self._path(stored)

    def _path(self, stored: Stored) -> Path:
        name = stored.leaf_tag if stored.leaf_tag is not None else stored.tag
        if self._own not in (None, os.getpid()):
            self._make_own()  # a forked child: the folder is the parent's, and goes with it
        if name is None:
            return self.directory / f"{os.getpid()}-{next(_numbers)}{self._suffix}"
        text = os.fspath(name) if isinstance(name, (str, os.PathLike)) else str(name)
        if not text or os.path.basename(text) != text or text in (".", ".."):
            raise InvalidOptionError(f"storage tag {name!r}: it must be the name of a file, without folders")
        path = self.directory / text
        if path in self._files and stored.places.get(self) != path:
            raise InvalidOptionError(f"storage tag {name!r} is in use by another value in {self.directory}")
        return path

    def _kept(self, stored: Stored, path: Path) -> None:
        stored.places[self] = path
        self._files[path] = os.getpid(), stored

    def _place(self, stored: Stored) -> Path:
        try:
            place: Path = stored.places[self]
        except KeyError:
            raise StorageError(f"the value is not in {self.directory} (any more)") from None
        return place

    def close(self) -> None:
        """Delete the files of values that still exist and are not to be retained, as at the end of the process."""
        here = os.getpid()
        for path, (owner, stored) in tuple(self._files.items()):
            if owner == here and not stored.retain:
                del self._files[path]
                _unlink(path)
        if self._own == here:
            with contextlib.suppress(OSError):  # retained files keep the folder
                self.directory.rmdir()


_numbers = itertools.count(1)
"""Of files without a name: one count, as two devices may share a folder."""

_file_devices: weakref.WeakSet[_FileDevice] = weakref.WeakSet()


def _close_all() -> None:
    """What has not died yet dies now."""
    for device in tuple(_file_devices):
        device.close()


exits.at_exit(_close_all)


def _unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


@contextlib.contextmanager
def replacing(path: Path, private: bool = False) -> Iterator[Path]:
    """A path to write a file to; it becomes `path`, complete, or nothing if the block raises.

    `private`: only for its owner. The path has the ending of `path`, as some formats insist on it.
    """
    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{secrets.token_hex(4)}{path.suffix}")
    try:
        if private:
            os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


_FOOTER = struct.Struct("<QI8s")
_MAGIC = b"OTSPILL1"


class _Summing:
    """A writer that counts and sums up what goes through, so that nothing has to be in memory twice."""

    def __init__(self, inner: BinaryIO) -> None:
        self._inner, self.count, self.crc = inner, 0, 0

    def write(self, data: Any) -> int:
        written = memoryview(data).nbytes
        self.crc = zlib.crc32(data, self.crc)
        self.count += written
        self._inner.write(data)
        return written


class PickleFileDevice(_FileDevice):
    """Keeps each value in a file of its own, pickled.

    `directory`: where (made if missing); None: a random folder of this process. `filters`: pairs of
    functions from bytes to bytes, such as `(zlib.compress, zlib.decompress)`, applied in order.
    """

    def __init__(self, directory: str | os.PathLike[str] | None = None, filters: Sequence[Filter] = ()) -> None:
        self.filters = tuple(filters)
        for stage in self.filters:
            if not (isinstance(stage, tuple) and len(stage) == 2 and all(map(callable, stage))):
                raise NotCallableError(f"a filter is a pair of functions (on writing, on reading), not {stage!r}")
        super().__init__(directory, ".spill")

    def write(self, stored: Stored, value: Any) -> None:
        """Pickle into a new file. Raises `StorageError` for a full or read-only folder, or what can't be pickled."""
        path = self._path(stored)
        try:
            with replacing(path, private=True) as temporary, open(temporary, "wb") as file:
                summing = _Summing(file)
                if self.filters:
                    summing.write(self._filtered(pickle.dumps(value, 5)))
                else:
                    pickle.dump(value, summing, 5)
                file.write(_FOOTER.pack(summing.count, summing.crc, _MAGIC))
        except OSError as error:
            raise StorageError(f"{path} can't be written ({error}): check the folder and its free space") from error
        except Exception as error:
            raise StorageError(f"a {type(value).__name__} can't be pickled for {path}: {error!r}") from error
        self._kept(stored, path)

    def read(self, stored: Stored) -> Any:
        """Unpickle. Raises `StorageError` if the file is gone or damaged."""
        path = self._place(stored)
        try:
            with open(path, "rb") as file:
                size = _verified(file, path)
                if not self.filters:
                    return pickle.load(file)
                data = file.read(size)
                for _, undo in reversed(self.filters):
                    data = undo(data)
                return pickle.loads(data)
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"{path} can't be read: {error}") from error
        except Exception as error:
            raise StorageError(f"what is in {path} can't be made into a value again: {error!r}") from error

    def _filtered(self, data: bytes) -> bytes:
        for apply, _ in self.filters:
            data = apply(data)
        return data


def _verified(file: BinaryIO, path: Path) -> int:
    """The length of what was written, if it is all there and unchanged; the file is at its beginning."""
    size = file.seek(0, os.SEEK_END) - _FOOTER.size
    if size < 0:
        raise StorageError(f"{path} is damaged: it is too short")
    file.seek(size)
    count, crc, magic = _FOOTER.unpack(file.read(_FOOTER.size))
    file.seek(0)
    if magic != _MAGIC or count != size:
        raise StorageError(f"{path} is damaged: it was cut off, or is not ours")
    found, left = 0, size
    while left:
        block = file.read(min(left, 1 << 20))
        if not block:
            break
        found, left = zlib.crc32(block, found), left - len(block)
    if left or found != crc:
        raise StorageError(f"{path} is damaged: its checksum does not match")
    file.seek(0)
    return size


class GenericFileDevice(_FileDevice):
    """Keeps each value in a file as your own functions write it.

    `serialize(value, target)` and `deserialize(source)` get an open binary file, or its path where
    `use_io` is false. `mmap`: `deserialize` gets the file mapped into memory, read-only, instead. A
    reference's tag names its file.
    """

    def __init__(
        self,
        serialize: Callable[[Any, Any], Any] = pickle.dump,
        deserialize: Callable[[Any], Any] = pickle.load,
        use_io: bool = True,
        directory: str | os.PathLike[str] | None = None,
        *,
        mmap: bool = False,
    ) -> None:
        for role, fn in (("serialize", serialize), ("deserialize", deserialize)):
            if not callable(fn):
                raise NotCallableError(f"{role} must be a function, not {fn!r}")
        self.format = FileFormat(serialize, deserialize, use_io, mmap)
        super().__init__(directory, ".data")

    def write(self, stored: Stored, value: Any) -> None:
        """Call `serialize`. What that raises arrives as the cause of a `StorageError`."""
        path = self._path(stored)
        self.format.write(path, value)
        self._kept(stored, path)

    def read(self, stored: Stored) -> Any:
        """Call `deserialize`. What that raises arrives as the cause of a `StorageError`."""
        return self.format.read(self._place(stored))


@dataclass(frozen=True)
class FileFormat:
    """How values are written to and read from files; see `GenericFileDevice` for the fields."""

    serialize: Callable[[Any, Any], Any] = pickle.dump
    deserialize: Callable[[Any], Any] = pickle.load
    use_io: bool = True
    mmap: bool = False

    def __post_init__(self) -> None:
        if self.mmap and not self.use_io:
            raise InvalidOptionError("mmap needs use_io: a function that takes a path can map the file itself")

    def write(self, path: Path, value: Any) -> None:
        """Write the whole file or nothing. Raises `StorageError`."""
        try:
            with replacing(path) as temporary:
                if self.use_io:
                    with open(temporary, "wb") as file:
                        self.serialize(value, file)
                else:
                    self.serialize(value, str(temporary))
        except OSError as error:
            raise StorageError(f"{path} can't be written: {error}") from error
        except Exception as error:
            raise StorageError(f"a {type(value).__name__} can't be serialized to {path}: {error!r}") from error

    def read(self, path: Path) -> Any:
        """Read the file. Raises `StorageError`."""
        try:
            if not self.use_io:
                return self.deserialize(str(path))
            with open(path, "rb") as file:
                return self.deserialize(_mapped(file) if self.mmap else file)
        except OSError as error:
            raise StorageError(f"{path} can't be read: {error}") from error
        except Exception as error:
            raise StorageError(f"what is in {path} can't be deserialized: {error!r}") from error


def _mapped(file: BinaryIO) -> Any:
    """The map stays valid after the file is closed, as long as anything refers to it."""
    import mmap

    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
