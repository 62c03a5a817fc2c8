"""Names of objects in a configuration: ``package.module:name``, imported, never evaluated."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from typing import Any

from tracelab.errors import UsageError

__all__ = ["Reference"]

_FORM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_SCRIPT = "__main__"


@dataclass(frozen=True, slots=True)
class Reference:
    """An object's place.

    Parameters
    ----------
    key : str
        The key of the configuration that names it.
    module, name : str
        The module and, inside it, the object.
    """

    key: str
    module: str
    name: str

    @classmethod
    def of(cls, key: str, value: Any) -> Reference:
        """Return the reference that a configuration gives.

        Raises
        ------
        UsageError
            If it has another form.
        """
        if not isinstance(value, str) or not _FORM.fullmatch(value):
            raise UsageError(f"{key} must have the form 'package.module:name', got {value!r}")
        module, _, name = value.partition(":")
        return cls(key, module, name)

    @property
    def in_script(self) -> bool:
        """Whether the script itself defines it, so that it is there only once the script runs."""
        return self.module == _SCRIPT

    def load(self) -> Any:
        """Return the object.

        Raises
        ------
        UsageError
            If its module cannot be imported or does not have it.
        """
        where = "the script" if self.in_script else f"module {self.module!r}"
        try:
            found: Any = importlib.import_module(self.module)
        except Exception as error:
            raise UsageError(
                f"{self.key}: {where} cannot be imported: {type(error).__name__}: {error}; it is "
                "searched where the script's own imports are"
            ) from error
        for part in self.name.split("."):
            try:
                found = getattr(found, part)
            except AttributeError:
                raise UsageError(
                    f"{self.key}: {where} has no {self.name!r}; name what it defines at top level"
                ) from None
        return found
