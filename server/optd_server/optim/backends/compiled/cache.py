"""The cache of compiled kernels between processes.

numba's own cache needs a writable folder, and does not notice when a called function has changed. This one also reads
read-only folders, as in an image. It has a folder for each way to compile, which holds files for each kernel, with a
name that changes when the kernel does. If no folder is writable, kernels live in memory.
"""

import hashlib
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, _CacheLocator


def folder() -> Path:
    """Return the folders of kernels compiled from this version of the sources."""
    return _base() / f"optd-kernels-{_compiler()}"


def _base() -> Path:
    for variable in ("OPTD_KERNEL_CACHE", "NUMBA_CACHE_DIR"):
        if os.environ.get(variable):
            return Path(os.environ[variable])
    beside = Path(__file__).parent / "__pycache__"
    if os.access(beside if beside.exists() else beside.parent, os.W_OK):
        return beside
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "optd"
    with suppress(RuntimeError):  # a user without a home
        return Path.home() / ".cache" / "optd"
    return beside


@cache
def _compiler() -> str:
    """Return what all compiled code depends on: this package's sources, which every kernel uses, and the compiler."""
    versions = (numba.__version__, llvmlite.__version__, np.__version__, sys.implementation.cache_tag)
    digest = hashlib.sha256(" ".join(map(str, versions)).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


class _Locator(_CacheLocator):
    def __init__(self, name: str) -> None:
        self._name = name

    @classmethod
    def from_function(cls, py_func: Any, _py_file: str) -> "_Locator":
        return cls(py_func.__name__)

    def get_cache_path(self) -> str:
        return str(folder())

    def get_source_stamp(self) -> str:
        return _compiler()

    def get_disambiguator(self) -> str:
        return self._name


class _Implementation(CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class KernelCache(FunctionCache):
    """A cache of one function, which ignores files that it cannot read or write.

    Each signature has files of its own. In numba's own way, with one index for all, two processes that compile
    different kernels at the same time may take the same file for both.

    `name` tells kernels of equal code apart that differ in a function they call, or in a version of it.
    """

    _impl_class = _Implementation

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        super().__init__(function)
        self._prefix = name

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled code on disk, or None."""
        self._cache_file = self._files(sig, target_context.codegen())
        with suppress(OSError):
            return super().load_overload(sig, target_context)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Write compiled code to disk."""
        self._cache_file = self._files(sig, data.codegen)
        with suppress(OSError):
            super().save_overload(sig, data)

    def _files(self, sig: Any, codegen: Any) -> Any:
        key = hashlib.sha256(repr(self._index_key(sig, codegen)).encode()).hexdigest()[:16]
        return IndexDataCacheFile(self._cache_path, f"{self._prefix}-{key}", _compiler())
