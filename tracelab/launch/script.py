"""A script, run as ``python`` itself would run it."""

from __future__ import annotations

import builtins
import importlib.util
import io
import os
import sys
from dataclasses import dataclass
from importlib.abc import InspectLoader
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import ModuleType

from tracelab.errors import UsageError

__all__ = ["Script"]


@dataclass(frozen=True, slots=True)
class Script:
    """A program.

    Parameters
    ----------
    name : str
        A Python file, or the name of a module.
    arguments : tuple of str
        What it finds in ``sys.argv`` behind its name.
    is_module : bool
        Whether it is run as ``python -m`` runs it.
    """

    name: str
    arguments: tuple[str, ...] = ()
    is_module: bool = False

    def check(self) -> None:
        """Check that there is something to run.

        Raises
        ------
        UsageError
            If there is not.
        """
        if not self.is_module:
            if not os.path.isfile(self.name):
                raise UsageError(f"there is no file {self.name!r} to run; check the script's name")
            return
        try:
            found = not self.name.startswith(".") and _find(self.name) is not None
        except ModuleNotFoundError as error:
            # A package on the way may itself lack a module: that is the script's own error.
            found = error.name is None or not f"{self.name}.".startswith(f"{error.name}.")
        except Exception:
            found = True
        if not found:
            raise UsageError(f"there is no module {self.name!r} to run; check its name")

    def enter(self) -> None:
        """Set ``sys.argv`` and ``sys.path`` as the script shall find them."""
        sys.argv = [self.name, *self.arguments]
        if not self.is_module and not sys.flags.safe_path:
            # Until now it is the working directory, as for every `python -m`.
            sys.path[0] = os.path.dirname(os.path.realpath(self.name))

    def run(self) -> None:
        """Run it as ``__main__``; whatever it raises comes through."""
        # Not by `runpy`: it takes `__main__` away before the script's `atexit` functions and
        # threads are done with it, and gives a file another sys.argv[0].
        module = ModuleType("__main__")
        if self.is_module:
            spec = _find(self.name)
            if spec is None or not isinstance(spec.loader, InspectLoader):
                raise ImportError(f"there is no Python code in module {self.name!r}")
            code = spec.loader.get_code(spec.name)
            file, cached = spec.origin, spec.cached
            module.__loader__, module.__package__, module.__spec__ = spec.loader, spec.parent, spec
            sys.argv[0] = str(file)
        else:
            file, cached = os.path.abspath(self.name), None
            module.__loader__ = SourceFileLoader("__main__", file)
            with io.open_code(file) as stream:
                code = compile(stream.read(), file, "exec", dont_inherit=True)
        vars(module).update(
            __annotations__={}, __builtins__=builtins, __file__=file, __cached__=cached
        )
        sys.modules["__main__"] = module
        assert code is not None
        exec(code, vars(module))


def _find(name: str) -> ModuleSpec | None:
    """Return where the code of a module is, of a package that of its ``__main__``."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        return importlib.util.find_spec(f"{name}.__main__")
    return spec
