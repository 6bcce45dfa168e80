"""Values of which a model has hundreds of thousands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

_Class = TypeVar("_Class")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(cls: type[_Class]) -> type[_Class]:
    """A dataclass of slots that nothing assigns to: the type checker sees to that.

    A dataclass that refuses assignments itself takes ten times as long to make.
    """
    return dataclass(slots=True, unsafe_hash=True)(cls)
