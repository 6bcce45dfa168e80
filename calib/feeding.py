"""One walk feeds many consumers: whoever writes statistics, and whoever solves for weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Protocol

from zenconvert.calib.workspace import Workspace
from zenconvert.reference.reference import Reference
from zenconvert.texts.selection import Selection

if TYPE_CHECKING:
    from zenconvert.calib.layer import LayerStatistics
    from zenconvert.calib.walk import LayerProgress, WalkSettings


class Consumer(Protocol):
    """Makes something of every layer, and keeps it where the next run finds it."""

    def has(self, layer: int | None) -> bool:
        """Whether it has what it wants of a layer (None: the output head)."""

    def take(self, part: LayerStatistics) -> None:
        """Use a part of a layer before the call returns; after the last part, :meth:`has` it."""


def feed(
    consumers: Sequence[Consumer],
    reference: Reference,
    selection: Selection,
    settings: WalkSettings,
    *,
    workspace: Workspace,
    progress: Callable[[LayerProgress], None] | None = None,
) -> None:
    """Walk once over what some consumer does not have yet.

    A sequential walk gives its consumers layers that they have, too: later layers see what was made
    of them. Raises as :func:`zenconvert.calib.walk.walk`, and what the consumers raise.
    """
    from zenconvert.calib.walk import walk

    sequential = settings.sequential != "off"

    def is_done(layer: int | None) -> bool:
        return all(consumer.has(layer) for consumer in consumers)

    missing = [layer for layer in range(reference.layers) if not is_done(layer)]
    if not missing and is_done(None):
        return
    if missing and missing[0] < workspace.first_layer:
        workspace.drop_states()  # they were saved for others, who had those layers
    parts = walk(
        reference,
        selection,
        settings,
        workspace=workspace,
        skip=() if sequential else set(range(reference.layers)) - set(missing),
        progress=progress,
    )
    with closing(parts):
        for part in parts:
            for consumer in consumers:
                if sequential or not consumer.has(part.layer):
                    consumer.take(part)
            if all(map(is_done, (*missing, None))):
                return
