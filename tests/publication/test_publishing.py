"""Publishing to a stand-in for the Hub, through huggingface_hub itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.publication.conftest import Made
from tests.publication.hub import TOKEN, Fault, Hub
from tests.publication.test_signing import make_keys
from zenconvert import open_checkpoint
from zenconvert.errors import PublishingFailed, UsageError
from zenconvert.publication.checking import check_release
from zenconvert.publication.evidence import assemble
from zenconvert.publication.facts import ReleaseFacts, VariantFacts
from zenconvert.publication.hub import Destination
from zenconvert.publication.publishing import BRANCH, Published, publish
from zenconvert.publication.signing import Signer, sign
from zenconvert.verification.facts import facts_of
from zenconvert.verification.gate import Check, Outcome, Verdict

GGUF = "zen-lab/zen-nano-GGUF"
GPTQ = "zen-lab/zen-nano-GPTQ-w4g128"
ONNX = "zen-lab/zen-nano-ONNX-int4"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    # the stand-in speaks the LFS protocol, which the client falls back to without Xet
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    server = Hub()
    yield server
    server.close()


@pytest.fixture
def ready(release: Made) -> Made:
    """A release made for the Hub, without the variant that could not be made."""
    facts, folder = release
    facts = replace(facts, hub="zen-lab", variants=tuple(v for v in facts.variants if v.is_made))
    assemble(facts, folder)
    return facts, folder


def to(hub: Hub) -> Destination:
    return Destination("zen-lab", endpoint=hub.url, token=TOKEN, attempts=3, wait_s=0.01)


def only(facts: ReleaseFacts, shelf: str) -> ReleaseFacts:
    return replace(facts, variants=facts.shelves[shelf])


def failed(variant: VariantFacts) -> VariantFacts:
    """The variant, judged otherwise."""
    check = Check("torch", "overall", "kl.mean", Outcome.FAIL, "kl.mean 9 at most 1")
    assert variant.verdict is not None
    verdict = variant.verdict
    return replace(
        variant, verdict=Verdict(verdict.policy, verdict.policy_sha256, verdict.tier, (check,))
    )


def lay_out(hub: Hub, repo: str, folder: Path) -> Path:
    """What somebody downloads."""
    folder.mkdir(parents=True)
    for path, blob in hub.repos[repo].at("main").items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(
            blob.data if blob.data is not None else hub.store[blob.sha256 or ""]
        )
    return folder


def test_every_shelf_becomes_a_repository_in_one_commit(
    hub: Hub, ready: Made, tmp_path: Path
) -> None:
    facts, folder = ready
    private, public = make_keys(tmp_path)
    for name in facts.shelves:
        sign(folder / name, Signer(private))
    stages: list[str] = []
    found = publish(folder, facts, to(hub), progress=lambda stage, *_: stages.append(stage))
    assert [s.repository for s in found.shelves] == [GGUF, GPTQ, ONNX]
    assert found.refused == {}
    assert stages[0] == "checking GGUF"
    assert stages[-1] == "published"
    for shelf in found.shelves:
        repo = hub.repos[shelf.repository]
        assert [title for title, _ in hub.commits(shelf.repository)] == [
            "initial commit", f"zenconvert {facts.version}: {shelf.shelf}"
        ]  # fmt: skip
        assert repo.branches == {"main": shelf.commit}
        assert shelf.is_new
        here = lay_out(hub, shelf.repository, tmp_path / "got" / shelf.shelf)
        assert check_release(here, public_key=public) == ()
        ours = {p.relative_to(folder / shelf.shelf) for p in (folder / shelf.shelf).rglob("*")}
        theirs = {p.relative_to(here) for p in here.rglob("*")}
        assert theirs - ours == {Path(".gitattributes")}
    assert not (folder / ".zenconvert" / "publishing").exists()


def test_publishing_again_changes_nothing(hub: Hub, ready: Made) -> None:
    facts, folder = ready
    first = publish(folder, only(facts, "GGUF"), to(hub))
    puts, commits = list(hub.puts), len(hub.repos[GGUF].log)
    again = publish(folder, only(facts, "GGUF"), to(hub))
    assert not again.shelves[0].is_new
    assert again.shelves[0].commit == first.shelves[0].commit
    assert (hub.puts, len(hub.repos[GGUF].log)) == (puts, commits)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(Fault("PUT", "/store/"), id="reset in mid-upload"),
        pytest.param(Fault("PUT", "/store/", 503), id="503 in mid-upload"),
        pytest.param(Fault("POST", "/branch/", 429, headers={"Retry-After": "1"}), id="429"),
        pytest.param(Fault("POST", "/commit/main", 503, times=2), id="503 at the commit"),
        pytest.param(Fault("POST", "/commit/main", after=True), id="answer of the commit lost"),
        pytest.param(Fault("POST", "/repos/create", after=True), id="answer of the creation lost"),
        pytest.param(Fault("DELETE", "/branch/", after=True), id="answer of the deletion lost"),
    ],
)
def test_passing_faults_pass(hub: Hub, ready: Made, fault: Fault) -> None:
    facts, folder = ready
    hub.faults.append(fault)
    found = publish(folder, only(facts, "GPTQ-w4g128"), to(hub))
    assert fault.times == 0
    assert found.shelves[0].is_new
    assert found.shelves[0].commit == hub.repos[GPTQ].branches["main"]
    assert len(hub.commits(GPTQ)) == 2
    assert hub.repos[GPTQ].branches.keys() == {"main"}


def test_after_a_failure_only_what_is_missing_is_uploaded(hub: Hub, ready: Made) -> None:
    facts, folder = ready
    last = (folder / "GGUF" / "SHA256SUMS").read_text().split()[-2]
    hub.faults.append(Fault("PUT", f"/store/{last}", 400, times=99))
    with pytest.raises(PublishingFailed, match="zen-nano-Q8_0") as caught:
        publish(folder, only(facts, "GGUF"), to(hub))
    assert caught.value.exit_code == 8
    assert TOKEN not in str(caught.value)
    assert hub.repos[GGUF].at("main").keys() == {".gitattributes"}
    before = list(hub.puts)
    assert before
    assert last not in before
    hub.faults.clear()
    publish(folder, only(facts, "GGUF"), to(hub))
    assert hub.puts == [*before, last]
    assert "zen-nano-Q8_0.gguf" in hub.repos[GGUF].at("main")


def test_a_fault_that_stays_is_said_and_main_is_untouched(hub: Hub, ready: Made) -> None:
    facts, folder = ready
    hub.faults.append(Fault("POST", "/commit/main", 503, times=99))
    with pytest.raises(PublishingFailed, match=r"503.*3 attempts"):
        publish(folder, only(facts, "GPTQ-w4g128"), to(hub))
    assert hub.repos[GPTQ].at("main").keys() == {".gitattributes"}
    assert BRANCH in hub.repos[GPTQ].branches


def test_a_repository_that_changed_meanwhile_is_not_overwritten(hub: Hub, ready: Made) -> None:
    facts, folder = ready

    original = hub.fault

    def fault(method: str, path: str) -> Fault | None:
        if method == "POST" and "/preupload/main" in path:
            repo = hub.repos[GPTQ]
            repo.commit("main", "somebody else", "", dict(repo.at("main")))
        return original(method, path)

    hub.fault = fault  # type: ignore[method-assign]
    with pytest.raises(PublishingFailed, match="changed meanwhile"):
        publish(folder, only(facts, "GPTQ-w4g128"), to(hub))
    assert hub.commits(GPTQ)[-1][0] == "somebody else"


def test_a_release_for_another_place_is_refused(hub: Hub, ready: Made) -> None:
    facts, folder = ready
    with pytest.raises(UsageError, match="zen-lab, not about elsewhere"):
        publish(folder, facts, replace(to(hub), namespace="elsewhere"))


def test_a_wrong_token_is_said_before_anything_is_done(hub: Hub, ready: Made) -> None:
    facts, folder = ready
    with pytest.raises(PublishingFailed, match="HF_TOKEN"):
        publish(folder, facts, replace(to(hub), token="hf_wrong"))
    assert hub.repos == {}


def test_only_what_passed_is_published(hub: Hub, ready: Made, tmp_path: Path) -> None:
    facts, folder = ready
    variants = tuple(failed(v) if v.name in {"Q4_0", "GPTQ-w4g128"} else v for v in facts.variants)
    facts = replace(facts, variants=variants)
    assemble(facts, folder)
    private, public = make_keys(tmp_path)
    sign(folder / "GGUF", Signer(private))
    found = publish(folder, facts, to(hub), signer=Signer(private))
    assert found.refused == {"GPTQ-w4g128": "GPTQ-w4g128: its outcome is FAIL; published is PASS"}
    assert hub.repos.keys() == {GGUF, ONNX}
    shelf = found.shelves[0]
    assert shelf.left_out == {"Q4_0": "its outcome is FAIL; published is PASS"}
    assert "left out: Q4_0" in hub.commits(GGUF)[-1][1]
    assert "zen-nano-Q4_0.gguf" not in hub.repos[GGUF].at("main")
    assert "zen-nano-Q4_0.gguf" not in hub.text(GGUF, "SHA256SUMS")
    assert "FROM ./zen-nano-Q8_0.gguf" in hub.text(GGUF, "Modelfile")
    assert [v["name"] for v in json.loads(hub.text(GGUF, "report.json"))["variants"]] == ["Q8_0"]
    assert check_release(lay_out(hub, GGUF, tmp_path / "got"), public_key=public) == ()
    # and the release itself is as it was
    assert "zen-nano-Q4_0.gguf" in (folder / "GGUF" / "SHA256SUMS").read_text()


def test_without_the_signer_a_part_of_a_signed_shelf_has_no_signature(
    hub: Hub, ready: Made, tmp_path: Path
) -> None:
    facts, folder = ready
    facts = replace(facts, variants=(failed(facts.variants[0]), *facts.variants[1:2]))
    assemble(facts, folder)
    sign(folder / "GGUF", Signer(make_keys(tmp_path)[0]))
    found = publish(folder, facts, to(hub))
    assert "without a signature" in found.shelves[0].notes[0]
    assert "model.sig" not in hub.repos[GGUF].at("main")


def test_a_variant_that_could_not_be_made_leaves_the_shelf_as_it_is(
    hub: Hub, release: Made, tmp_path: Path
) -> None:
    facts, folder = release
    facts = replace(facts, hub="zen-lab")
    assemble(facts, folder)
    private, public = make_keys(tmp_path)
    sign(folder / "GGUF", Signer(private))
    found = publish(folder, only(facts, "GGUF"), to(hub))
    assert found.shelves[0].left_out["Q2_K"].startswith("it could not be made")
    assert check_release(lay_out(hub, GGUF, tmp_path / "got"), public_key=public) == ()


def test_offline_is_said_at_once(hub: Hub, ready: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    def offline(*_: object, **__: object) -> None:
        raise OfflineModeIsEnabled("offline mode is enabled")

    monkeypatch.setattr("huggingface_hub.HfApi.whoami", offline)
    with pytest.raises(PublishingFailed, match=r"offline mode is enabled$"):
        publish(ready[1], ready[0], replace(to(hub), wait_s=60.0))


def test_outcomes_can_be_allowed(hub: Hub, ready: Made) -> None:
    facts, folder = ready
    facts = replace(only(facts, "GPTQ-w4g128"), variants=(failed(facts.variants[2]),))
    with pytest.raises(UsageError, match="GREAT"):
        publish(folder, facts, to(hub), allow=["GREAT"])
    assert publish(folder, facts, to(hub)) == Published(
        (), {"GPTQ-w4g128": "GPTQ-w4g128: its outcome is FAIL; published is PASS"}
    )
    assert hub.requests == []


def test_an_unverified_file_is_never_uploaded(hub: Hub, ready: Made) -> None:
    facts, folder = ready
    path = folder / "ONNX-int4" / "model.onnx.data"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(PublishingFailed, match=r"model\.onnx\.data: its bytes changed"):
        publish(folder, facts, to(hub))
    assert hub.repos == {}
    assert hub.puts == []


def test_new_bytes_are_told_and_old_files_go(hub: Hub, ready: Made) -> None:
    facts, folder = ready
    gptq = only(facts, "GPTQ-w4g128")
    publish(folder, gptq, to(hub))
    repo = hub.repos[GPTQ]
    old = repo.branches["main"]
    repo.commit(
        "main", "by hand", "", {**repo.at("main"), "stray.bin": repo.at("main")["README.md"]}
    )
    path = folder / "GPTQ-w4g128" / "generation_config.json"
    for round_, text in enumerate(('{"max_new_tokens": 1}', '{"max_new_tokens": 22}'), 1):
        old = repo.branches["main"]
        path.write_text(text)
        report = gptq.variants[0].report
        assert report is not None
        now = facts_of(open_checkpoint(path.parent))
        variant = replace(gptq.variants[0], report=replace(report, candidate_facts=now))
        facts = replace(gptq, variants=(variant,))
        assemble(facts, folder)
        found = publish(folder, facts, to(hub))
        assert found.shelves[0].changed == ("generation_config.json",)
        title, words = hub.commits(GPTQ)[-1]
        assert title.endswith("GPTQ-w4g128, 1 file has new bytes")
        assert "generation_config.json" in words
        notes = hub.text(GPTQ, "CHANGES.md")
        assert notes.count("## Since") == round_
        assert notes.startswith(f"# Changes\n\n## Since {old[:16]}\n")
    assert "stray.bin" not in repo.at("main")
    assert publish(folder, facts, to(hub)).shelves[0].is_new is False
    assert hub.text(GPTQ, "CHANGES.md") == notes
