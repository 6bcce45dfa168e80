"""Put a release on the Hub, one repository a shelf, so that nobody ever sees an unverified file.

1. Where the verdict of some files does not allow it, a shelf without them is made, with evidence
   about the others. Every shelf is checked as ``release verify`` does before anything is uploaded.
2. A shelf is uploaded (``upload_folder``, which goes on where it was cut off) to a branch, and the
   branch is compared with the shelf.
3. One commit on ``main``, on top of the commit that it was compared with, takes the large files
   from the branch and everything small from here, and removes what is not of the shelf. Until then
   ``main`` is as it was. The branch goes.

What is there already is not uploaded again, and a shelf that is there as it is makes no commit.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from zenconvert.base.progress import Progress
from zenconvert.base.scratch import temporary_folder
from zenconvert.errors import PublishingFailed, UsageError
from zenconvert.publication.changes import changes_text, entry
from zenconvert.publication.checking import check_release
from zenconvert.publication.checksums import CHANGES, SIGNATURE, SUMS, read_sums
from zenconvert.publication.evidence import EVIDENCE, policy_bytes, shelf_evidence, write_shelf
from zenconvert.publication.facts import ReleaseFacts, VariantFacts
from zenconvert.publication.hub import Destination, Hub, RemoteFile, quiet
from zenconvert.publication.names import repository_name
from zenconvert.publication.release_report import cleaned
from zenconvert.publication.signing import Signer, sign
from zenconvert.verification.digests import read_digest
from zenconvert.verification.markdown import code

BRANCH: Final = "zenconvert-staging"
_STAGE: Final = Path(".zenconvert") / "publishing"
_KEPT: Final = frozenset({".gitattributes", CHANGES})  # the repository's own


@dataclass(frozen=True, slots=True)
class PublishedShelf:
    """A shelf that is on the Hub now."""

    shelf: str
    repository: str
    url: str
    commit: str
    """That ``main`` is at."""
    is_new: bool
    """Whether the commit was made now; False where everything was there already."""
    changed: tuple[str, ...]
    """Files that were there with other bytes, but for the evidence."""
    left_out: Mapping[str, str]
    """Variant → why its files are not there."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Published:
    """What came of publishing a release."""

    shelves: tuple[PublishedShelf, ...]
    refused: Mapping[str, str]
    """Shelf → why it was not published."""


@dataclass(frozen=True, slots=True)
class _Staged:
    """A shelf as it will be on the Hub."""

    shelf: str
    repository: str
    folder: Path
    left_out: Mapping[str, str]
    notes: tuple[str, ...]

    def files(self) -> dict[str, str]:
        """Name → SHA-256 of everything that is uploaded."""
        found = read_sums(self.folder / SUMS)
        for name in (SUMS, SIGNATURE):
            if (self.folder / name).is_file():
                found[name] = read_digest(self.folder / name)
        return found


def publish(
    folder: Path,
    facts: ReleaseFacts,
    destination: Destination,
    *,
    allow: Sequence[str] = ("PASS",),
    signer: Signer | None = None,
    progress: Progress | None = None,
) -> Published:
    """Publish the shelves of an assembled release.

    Only variants whose outcome is in ``allow`` are published: a shelf without one is refused, and
    from a GGUF shelf the files of others are left out. Evidence about what is left is written anew,
    and only ``signer`` can sign that.

    Raises PublishingFailed, UsageError for an outcome that there is not, names that cannot be and a
    namespace that the release was not made for, and the errors of ``check_release`` and ``sign``.
    """
    _check_arguments(facts, destination, allow)
    hub = Hub(destination)
    refused: dict[str, str] = {}
    published = []
    with _stages(folder) as place, quiet():
        staged = []
        for shelf, variants in facts.shelves.items():
            chosen = [v for v in variants if v.is_made and v.outcome in allow]
            left_out = {v.name: _why(v, allow) for v in variants if v not in chosen}
            if chosen:
                staged.append(_stage(folder, place, facts, chosen, left_out, signer))
            else:
                refused[shelf] = "; ".join(f"{name}: {why}" for name, why in left_out.items())
        if staged:
            hub.patiently("the Hub", hub.api.whoami)
        for number, one in enumerate(staged):
            _report(progress, f"checking {one.shelf}", number, len(staged))
            _check(one)
        for number, one in enumerate(staged):
            _report(progress, f"publishing {one.repository}", number, len(staged))
            published.append(_publish_shelf(hub, one, facts.version))
    _report(progress, "published", len(published), len(published))
    return Published(tuple(published), refused)


def _report(progress: Progress | None, stage: str, done: int, total: int) -> None:
    if progress is not None:
        progress(stage, done, total)


def _check_arguments(facts: ReleaseFacts, destination: Destination, allow: Sequence[str]) -> None:
    if facts.hub != destination.namespace:
        raise UsageError(
            f"cards and commands of the release are about {facts.hub or 'no place on the Hub'}, "
            f"not about {destination.namespace}; name it in the recipe and make the release again"
        )
    known = ("PASS", "FAIL", "INCONCLUSIVE", "ANOMALOUS", "UNMEASURED")
    if unknown := [outcome for outcome in allow if outcome not in known]:
        raise UsageError(f"there is no outcome {', '.join(unknown)}; known are {', '.join(known)}")


def _why(variant: VariantFacts, allow: Sequence[str]) -> str:
    if variant.error is not None:
        return f"it could not be made: {variant.error}"
    return f"its outcome is {variant.outcome}; published is {', '.join(allow)}"


@contextmanager
def _stages(folder: Path) -> Iterator[Path]:
    """A folder for staged shelves on the disk of the release, gone afterwards."""
    place = folder / _STAGE
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _stage(
    folder: Path,
    place: Path,
    facts: ReleaseFacts,
    chosen: Sequence[VariantFacts],
    left_out: Mapping[str, str],
    signer: Signer | None,
) -> _Staged:
    """The shelf as it lies there; where files of it are left out, another one."""
    shelf = chosen[0].shelf
    repository = f"{facts.hub}/{repository_name(facts, shelf)}"
    origin, target = folder / shelf, place / shelf
    if all(v in chosen for v in facts.shelves[shelf] if v.is_made):
        return _Staged(shelf, repository, origin, left_out, ())
    ours = {name for variant in chosen for name in variant.files}
    foreign = {name for v in facts.shelves[shelf] for name in v.files} - ours
    sums = read_sums(origin / SUMS)
    digests = {n: d for n, d in sums.items() if n not in EVIDENCE and n not in foreign}
    for name in digests:
        _link(origin / name, target / name)
    told = cleaned(replace(facts, variants=tuple(chosen)))
    evidence = shelf_evidence(told, shelf, told.variants, digests, policy_bytes(told))
    write_shelf(target, evidence, digests)
    notes: tuple[str, ...] = ()
    if signer is not None:
        sign(target, signer)
    elif (origin / SIGNATURE).is_file():
        notes = ("published without a signature: the shelf's own is about other files",)
    return _Staged(shelf, repository, target, left_out, notes)


def _link(origin: Path, target: Path) -> None:
    """A second name for a file, or a link to it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(origin.resolve())
    except OSError:  # a file system without second names
        target.symlink_to(origin.resolve())


def _check(staged: _Staged) -> None:
    problems = [finding for finding in check_release(staged.folder) if finding.is_problem]
    if problems:
        listed = "\n".join(f"  - {finding}" for finding in problems)
        raise PublishingFailed(
            f"{staged.shelf}: the shelf is not what it says, so nothing was published:\n{listed}"
        )


def _publish_shelf(hub: Hub, staged: _Staged, version: str) -> PublishedShelf:
    repository = staged.repository
    made = hub.patiently(
        repository,
        lambda: hub.api.create_repo(repository, private=hub.destination.private, exist_ok=True),
    )
    head, there = hub.head(repository), hub.files(repository, "main")
    wanted = staged.files()
    differing = [n for n, d in wanted.items() if not _is_there(there, staged.folder / n, n, d)]
    changed = tuple(n for n in differing if n in there and n not in EVIDENCE)
    stale = _stale(there, wanted)
    commit, is_new = head, bool(differing or stale)
    if is_new:
        message, words = _message(staged, version, there, wanted, changed, stale)
        notes = _changes(hub, staged, head, there, words) if changed else None
        _upload(hub, staged, head, wanted, message)
        commit = _promote(hub, staged, head, wanted, (message, words), notes)
        hub.patiently(repository, lambda: _drop_branch(hub, repository))
    return PublishedShelf(
        staged.shelf, repository, str(made), commit, is_new, changed, staged.left_out, staged.notes
    )


def _is_there(there: Mapping[str, RemoteFile], path: Path, name: str, sha256: str) -> bool:
    return name in there and there[name].holds(path, sha256)


def _stale(there: Mapping[str, RemoteFile], wanted: Mapping[str, str]) -> list[str]:
    """Files of the repository that are not of the shelf."""
    return [name for name in there if name not in wanted and name not in _KEPT]


def _message(
    staged: _Staged,
    version: str,
    there: Mapping[str, RemoteFile],
    wanted: Mapping[str, str],
    changed: Sequence[str],
    stale: Sequence[str],
) -> tuple[str, str]:
    """Title and text of the commit."""
    title = f"zenconvert {version}: {staged.shelf}"
    lines = [f"- left out: {name}: {why}" for name, why in staged.left_out.items()]
    if changed:
        title += f", {len(changed)} {'file has' if len(changed) == 1 else 'files have'} new bytes"
        lines += entry({name: (there[name].sha256, wanted[name]) for name in changed})
    lines += [f"- removed: {code(name)}" for name in stale]
    return title, "\n".join(lines)


def _changes(
    hub: Hub, staged: _Staged, head: str, there: Mapping[str, RemoteFile], words: str
) -> bytes:
    """The repository's notes with this change on top."""
    earlier = ""
    if CHANGES in there:
        with temporary_folder() as place:
            path = hub.patiently(
                staged.repository,
                lambda: hub.api.hf_hub_download(
                    staged.repository, CHANGES, revision=head, local_dir=place
                ),
            )
            earlier = Path(path).read_text(encoding="utf-8")
    return changes_text(head, words, earlier).encode()


def _upload(hub: Hub, staged: _Staged, head: str, wanted: Mapping[str, str], message: str) -> None:
    """Bring every file to the branch, and see that it is there."""

    def upload() -> None:
        hub.api.create_branch(staged.repository, branch=BRANCH, revision=head, exist_ok=True)
        hub.api.upload_folder(
            repo_id=staged.repository,
            folder_path=staged.folder,
            revision=BRANCH,
            commit_message=message,
            allow_patterns=[glob.escape(name) for name in wanted],
        )

    hub.patiently(staged.repository, upload)
    there = hub.files(staged.repository, BRANCH)
    absent = [n for n, d in wanted.items() if not _is_there(there, staged.folder / n, n, d)]
    if absent:
        raise PublishingFailed(
            f"{staged.repository}: after the upload the branch {BRANCH} does not hold "
            f"{', '.join(absent)}; run it again, or delete the branch first"
        )


def _promote(
    hub: Hub,
    staged: _Staged,
    head: str,
    wanted: Mapping[str, str],
    message: tuple[str, str],
    notes: bytes | None,
) -> str:
    """One commit on ``main`` with everything; returns its id."""
    from huggingface_hub import CommitOperationAdd

    on_branch = hub.files(staged.repository, BRANCH)

    def commit() -> str:
        there = hub.files(staged.repository, "main")
        operations = list(_operations(staged, there, on_branch, wanted))
        if not operations:  # an earlier attempt came through, and its answer did not
            return hub.head(staged.repository)
        if notes is not None:
            operations.append(CommitOperationAdd(CHANGES, notes))
        done = hub.api.create_commit(
            staged.repository,
            operations,
            commit_message=message[0],
            commit_description=message[1],
            parent_commit=head,
        )
        return str(done.oid)

    return hub.patiently(staged.repository, commit)


def _operations(
    staged: _Staged,
    there: Mapping[str, RemoteFile],
    on_branch: Mapping[str, RemoteFile],
    wanted: Mapping[str, str],
) -> Iterator[Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    for name, digest in wanted.items():
        path = staged.folder / name
        if _is_there(there, path, name, digest):
            continue
        if on_branch[name].sha256 is not None:
            yield CommitOperationCopy(name, name, src_revision=BRANCH)
        else:
            yield CommitOperationAdd(name, path)
    for name in _stale(there, wanted):
        yield CommitOperationDelete(name)


def _drop_branch(hub: Hub, repository: str) -> None:
    from huggingface_hub.errors import RevisionNotFoundError

    with suppress(RevisionNotFoundError):
        hub.api.delete_branch(repository, branch=BRANCH)
