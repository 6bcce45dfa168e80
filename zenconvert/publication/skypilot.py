"""A SkyPilot task that brings up a Ray cluster and makes a release on it.

The task's format: https://docs.skypilot.co/en/latest/reference/yaml-spec.html. SkyPilot runs a Ray
of its own; ``~/sky_templates/ray/start_cluster``, which it puts on every machine, starts another
one beside it: https://docs.skypilot.co/en/latest/examples/training/ray.html. Volumes:
https://docs.skypilot.co/en/latest/reference/volumes.html
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Final

import yaml

from zenconvert.publication.preview import Preview
from zenconvert.version import __version__

MOUNT: Final = "/release"
"""Where every machine has the volume, with the folder of the recipe."""
_GB: Final = 1_000_000_000
_PORT: Final = 6379


def task_file(
    recipe: Path, preview: Preview, *, nodes: int, volume: str, accelerators: str | None = None
) -> str:
    """The YAML of a task.

    The volume must be one that several machines can write at once (ReadWriteMany): outputs are
    written at offsets and under locks, for which mounted buckets will not do. It holds the folder
    of the recipe, with what the recipe's relative paths name; the first machine makes the release,
    the others carry out its jobs until it is done.
    """
    peak = preview.peak
    resources: dict[str, Any] = {
        "memory": f"{_gigabytes(peak.ram)}+",
    }
    if accelerators is not None:
        resources["accelerators"] = accelerators
    run = f"""\
~/sky_templates/ray/start_cluster
if [ "$SKYPILOT_NODE_RANK" = 0 ]; then
  export RAY_ADDRESS=127.0.0.1:{_PORT}
  cd {MOUNT} && zenconvert release {shlex.quote(recipe.name)} --executor ray
fi
"""
    task = {
        "name": f"release-{preview.folder.name}".lower(),
        "num_nodes": nodes,
        "resources": resources,
        "volumes": {MOUNT: volume},
        "setup": f"pip install 'zenconvert[ray]=={__version__}'\n",
        "run": run,
    }
    return yaml.safe_dump(task, sort_keys=False)


def _gigabytes(count: int) -> int:
    return -(-count // _GB)
