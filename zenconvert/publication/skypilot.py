"""A SkyPilot task that brings up a Ray cluster and makes a release on it.

The task's format: https://docs.skypilot.co/en/latest/reference/yaml-spec.html. SkyPilot runs a Ray
of its own; ``~/sky_templates/ray/start_cluster``, which it puts on every machine, starts another one
beside it: https://docs.skypilot.co/en/latest/examples/training/ray.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from zenconvert import __version__
from zenconvert.errors import UsageError
from zenconvert.publication.preview import Preview

MOUNT: Final = "/release"
"""Where every machine has the bucket, with the recipe and the outputs."""
_GB: Final = 1_000_000_000
_PORT: Final = 6379
_STORES: Final = ("s3://", "gs://", "r2://", "https://", "cos://", "nebius://", "oci://")


def task_file(
    recipe: Path, preview: Preview, *, nodes: int, bucket: str, accelerators: str | None = None
) -> str:
    """The YAML of a task. Raises UsageError for a bucket that SkyPilot could not mount.

    The bucket holds the folder of the recipe, with its relative paths; the first machine makes the
    release, the others carry out its jobs until it is done.
    """
    if not bucket.startswith(_STORES):
        raise UsageError(f"bucket {bucket!r}: expected a URL that begins with {_STORES[0]}")
    peak = preview.peak
    resources: dict[str, Any] = {
        "memory": f"{_gigabytes(peak.ram)}+",
        "disk_size": 100 + _gigabytes(peak.disk),
    }
    if accelerators is not None:
        resources["accelerators"] = accelerators
    run = f"""\
~/sky_templates/ray/start_cluster
if [ "$SKYPILOT_NODE_RANK" = 0 ]; then
  export RAY_ADDRESS=127.0.0.1:{_PORT} ZENCONVERT_CACHE={MOUNT}/.zenconvert-cache
  cd {MOUNT} && zenconvert release {recipe.name} --executor ray
fi
"""
    task = {
        "name": f"release-{preview.folder.name}".lower(),
        "num_nodes": nodes,
        "resources": resources,
        "file_mounts": {MOUNT: {"source": bucket, "mode": "MOUNT_CACHED"}},
        "setup": f"pip install 'zenconvert[ray]=={__version__}'\n",
        "run": run,
    }
    return yaml.safe_dump(task, sort_keys=False)


def _gigabytes(count: int) -> int:
    return -(-count // _GB)
