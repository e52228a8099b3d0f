"""Compiling and loading the C++ of the backend `native`, by the machine's own compiler when it is first needed.

The compiler is the first of ``$CXX``, ``c++``, ``g++`` and ``clang++`` whose library loads. The library lies in
``label-efficient-bundles`` of ``$XDG_CACHE_HOME`` or ``~/.cache``, in a folder that only its owner may write, under a
name made of the source, the compiler and the flags. The flags name the instruction set that torch found on the machine,
so that machines which share a home folder do not run each other's libraries.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("native.cpp")
# not -ffast-math: gcc would link code that sets flush-to-zero for the whole process
FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast")
TARGETS = {
    "AVX512": ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"),
    "AVX2": ("-mavx2", "-mfma"),
}


@cache
def load() -> ctypes.CDLL | str:
    """The library, or the reason why there is none; compiles it if it has never been."""
    if os.name != "posix":
        return "it is built on Linux and macOS only"
    named = map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))
    compilers, reasons = list(dict.fromkeys(filter(None, named))), []
    if not compilers:
        return "no C++ compiler was found: none of $CXX, c++, g++, clang++"
    for compiler in compilers:
        try:
            library = ctypes.CDLL(str(_compiled(compiler)))
            _declare(library)
        except Exception as error:  # whatever is wrong with the machine, there are other backends
            reasons.append(f"{type(error).__name__}: {error}")
        else:
            return library
    return "; ".join(dict.fromkeys(reasons))


def _declare(library: ctypes.CDLL) -> None:
    numbers = [ctypes.c_int64] * 3
    library.scan_forward.argtypes = [ctypes.c_void_p, *numbers[:2]]
    library.scan_backward.argtypes = [ctypes.c_void_p, *numbers]
    library.scan_forward.restype = library.scan_backward.restype = None


def _compiled(compiler: str) -> Path:
    """The library's file, compiled if it is not there yet.

    Raises:
        RuntimeError: the compiler failed, or the folder is one where others could put a library of theirs.
        OSError: the folder cannot be made or written.
    """
    flags = (*FLAGS, *TARGETS.get(torch.backends.cpu.get_cpu_capability(), ()))
    made_of = "\n".join((SOURCE.read_text(), platform.system(), platform.machine(), compiler, *flags))
    key = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    folder = _private_folder()
    file = folder / f"selective_scan_{key}.so"
    if file.exists():
        return file
    handle, unfinished = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    try:
        command = [compiler, *flags, str(SOURCE), "-o", unfinished]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            raise RuntimeError(f"{compiler} failed: {done.stderr.strip()[-500:]}")
        os.replace(unfinished, file)  # two processes at once both succeed
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return file


def _private_folder() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "label-efficient-bundles"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise RuntimeError(f"{folder} is not this user's alone to write; make it so, or set XDG_CACHE_HOME")
    return folder
