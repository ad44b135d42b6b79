"""Feast, imported in a quarter of the time, by every command and every replica: without typeguard's checks, and without torch.

Feast decorates its classes with typeguard's `typechecked`, which parses and compiles a module once more for every method of a
class. typeguard itself says that its checks are not meant for production, and leaves them out under `python -O`; they are left out
here for Feast alone, while it is imported. Our own calls of Feast are checked by mypy. And Feast imports torch, where there is one,
to give features as tensors to whoever asks for that; here torch is imported when somebody asks.

Installed by the packages that import Feast; where somebody has imported Feast before, nothing happens.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

TORCH_WRAPPER = "feast.torch_wrapper"
"""Feast's module with `get_torch`."""


class QuickFeast(MetaPathFinder, Loader):
    """Finds Feast once, in the place of those that come after it, and runs it as the module says."""

    def __init__(self) -> None:
        self._loader: Loader | None = None

    @classmethod
    def install(cls) -> None:
        """Take part in the next import of Feast."""
        if "feast" not in sys.modules and not any(isinstance(finder, cls) for finder in sys.meta_path):
            sys.meta_path.insert(0, cls())

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See `MetaPathFinder`: Feast's spec with this as its loader, None for all else."""
        if fullname != "feast":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See `Loader`."""
        assert self._loader is not None
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """See `Loader`."""
        assert self._loader is not None
        assert module.__spec__ is not None
        module.__loader__ = module.__spec__.loader = self._loader
        sys.modules.setdefault(TORCH_WRAPPER, _late_torch())
        with _without_checks():
            self._loader.exec_module(module)


def _late_torch() -> ModuleType:
    module = ModuleType(TORCH_WRAPPER, "Feast's `get_torch`, which here imports torch when it is called.")
    module.__dict__["get_torch"] = partial(import_module, "torch")
    return module


@contextmanager
def _without_checks() -> Iterator[None]:
    import typeguard

    held = typeguard.typechecked
    typeguard.typechecked = _as_it_is
    try:
        yield
    finally:
        typeguard.typechecked = held


def _as_it_is(target: Any = None, **settings: Any) -> Any:
    """In the place of `typeguard.typechecked`, with and without settings."""
    return partial(_as_it_is, **settings) if target is None else target
