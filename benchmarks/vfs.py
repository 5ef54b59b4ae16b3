"""What SQLite does to its files, seen from underneath: a VFS that lets everything through to the
real one and says so.

It is registered with the very library that the `sqlite3` module uses, so that the store is the
real one, its connections, threads and pragmas included. `Unavailable` where that library is linked
in such a way that it cannot be reached.
"""

from __future__ import annotations

import _sqlite3
import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_void_p
from typing import Any

# (what, file, offset or size, bytes): what is "write", "truncate", "sync" or "delete".
Tell = Callable[[str, str, int, bytes], None]

_OK = 0
_METHODS = 18  # function pointers of an io_methods of version 3
_CLOSE, _WRITE, _TRUNCATE, _SYNC = 0, 2, 3, 4

# Names go as addresses: SQLite keeps them, and has more behind their ends.
_Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
_Delete = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int)
_Close = CFUNCTYPE(c_int, c_void_p)
_Write = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_Truncate = CFUNCTYPE(c_int, c_void_p, c_int64)
_Sync = CFUNCTYPE(c_int, c_void_p, c_int)


class _Methods(ctypes.Structure):
    _fields_ = (("version", c_int), ("calls", c_void_p * _METHODS))


class _File(ctypes.Structure):
    _fields_ = (("methods", POINTER(_Methods)),)


class _Vfs(ctypes.Structure):
    _fields_ = (
        ("version", c_int),
        ("file_size", c_int),
        ("path_max", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", c_void_p),
        ("delete", c_void_p),
        ("others", c_void_p * 13),
    )


class Unavailable(Exception):
    """The library behind `sqlite3` cannot be reached from here."""


# Connections may outlive the block that saw them opened: what they call has to stay.
_kept: list[Any] = []


class _Watcher:
    def __init__(self, real: Any, tell: Tell, *, syncs_alone: bool) -> None:
        self.tell = tell
        self._syncs_alone = syncs_alone
        self.vfs = _Vfs()
        ctypes.pointer(self.vfs)[0] = real
        self.vfs.name = b"watched"
        self.names: dict[int, str] = {}
        self._tables: dict[int, _Methods] = {}
        self._real_open = _Open(real.open)
        self._real_delete = _Delete(real.delete)
        self._calls = (_Open(self._open), _Delete(self._delete))
        self.vfs.open = ctypes.cast(self._calls[0], c_void_p)
        self.vfs.delete = ctypes.cast(self._calls[1], c_void_p)

    def _open(self, vfs: int, name: int | None, file: int, flags: int, out: Any) -> int:
        done = int(self._real_open(vfs, name, file, flags, out))
        opened = _File.from_address(file)
        if done == _OK and opened.methods and name is not None:
            self.names[file] = ctypes.string_at(name).decode()
            opened.methods = ctypes.pointer(self._watched(opened.methods))
        return done

    def _delete(self, vfs: int, name: int, sync: int) -> int:
        done = int(self._real_delete(vfs, name, sync))
        if done == _OK:
            self.tell("delete", ctypes.string_at(name).decode(), 0, b"")
        return done

    def _watched(self, methods: Any) -> _Methods:
        """A copy of a file's methods with ours among them; one for each kind of file."""
        address = ctypes.addressof(methods.contents)
        if address in self._tables:
            return self._tables[address]
        real = methods.contents
        close, write = _Close(real.calls[_CLOSE]), _Write(real.calls[_WRITE])
        truncate, sync = _Truncate(real.calls[_TRUNCATE]), _Sync(real.calls[_SYNC])

        def on_close(file: int) -> int:
            self.names.pop(file, None)
            return int(close(file))

        def on_write(file: int, data: int, size: int, offset: int) -> int:
            self.tell("write", self.names[file], offset, ctypes.string_at(data, size))
            return int(write(file, data, size, offset))

        def on_truncate(file: int, size: int) -> int:
            self.tell("truncate", self.names[file], size, b"")
            return int(truncate(file, size))

        def on_sync(file: int, flags: int) -> int:
            done = int(sync(file, flags))
            self.tell("sync", self.names[file], 0, b"")  # only now it is on the disk
            return done

        ours = (_Close(on_close), _Write(on_write), _Truncate(on_truncate), _Sync(on_sync))
        copy = _Methods()
        ctypes.pointer(copy)[0] = real
        for place, call in zip((_CLOSE, _WRITE, _TRUNCATE, _SYNC), ours, strict=True):
            if self._syncs_alone and place in (_WRITE, _TRUNCATE):
                continue
            copy.calls[place] = ctypes.cast(call, c_void_p).value
        _kept.append(ours)
        self._tables[address] = copy
        return copy


@contextmanager
def watched(tell: Tell, *, syncs_alone: bool = False) -> Iterator[None]:
    """Connections that are opened in the block tell what they do to their files. `tell` is called
    on the thread that does it. `syncs_alone`: writes go by unseen, and cost nothing."""
    try:
        library = ctypes.CDLL(_sqlite3.__file__)
        find, register = library.sqlite3_vfs_find, library.sqlite3_vfs_register
        unregister = library.sqlite3_vfs_unregister
    except (AttributeError, OSError) as error:
        raise Unavailable(str(error)) from error
    find.restype = POINTER(_Vfs)
    real = find(None)
    watcher = _Watcher(real.contents, tell, syncs_alone=syncs_alone)
    _kept.append(watcher)
    register(ctypes.byref(watcher.vfs), 1)
    try:
        yield
    finally:
        unregister(ctypes.byref(watcher.vfs))
        register(real, 1)
