"""The hand-over: a folder that others can use, and a repository on a loopback Hub, by the real client."""

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hf_xet import XetAuthenticationError
from huggingface_hub import constants

from gradelora.artifacts import Adapter, Agreed, MergedModel, ModelSnapshot
from gradelora.cli import main
from gradelora.code_version import code_version
from gradelora.config import LoraSettings, Runtime
from gradelora.errors import BadConfig, GatedRepo, HubRefused, HubUnavailable
from gradelora.hub.failures import named
from gradelora.prompt import load_layout
from gradelora.push import folder as push_folder
from gradelora.push.folder import assemble
from gradelora.push.staging import staging
from gradelora.push.upload import upload
from gradelora.report import Handover, model_card
from gradelora.report.use import commands
from gradelora.sandbox.demo import REPO_ID
from gradelora.sandbox.hub import Cut, Fault, LoopbackHub, Status, Throttle
from tests.conftest import QUICK, ROOT, wait_for
from tests.test_report import given
from tests.tiny_tokenizers import write_tokenizer

HANDED_OVER = Handover(kind="adapter", where="school/scorer", config="deployments/demo.yaml")
TOKEN, REPO = "hf_a_token_that_must_not_leak", "school/scorer"
SMALL = {
    "config.json": "{}",
    "generation_config.json": '{"eos_token_id": 2}',
    "tokenizer.json": '{"any": "tokenizer"}',
    "chat_template.jinja": "{{ messages }}",
    "LICENSE": "the base's licence",
    "README.md": "# the base's card",
    "model.safetensors.index.json": "{}",
}


@pytest.fixture
def snapshot(tmp_path: Path) -> ModelSnapshot:
    """The base as it lies in the Hub cache: links to blobs."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "base").mkdir()
    for name, text in (SMALL | {"model-00001-of-00001.safetensors": "the base's weights"}).items():
        (tmp_path / "blobs" / name).write_text(text)
        (tmp_path / "base" / name).symlink_to(tmp_path / "blobs" / name)
    return ModelSnapshot.collect(tmp_path / "base", repo_id="owner/tiny", commit="a" * 40)


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    folder = tmp_path / "sealed_adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 400)
    (folder / "adapter_config.json").write_text('{"r": 8}')
    (folder / "receipt.json").write_text("{}")
    facts = {"trainable_parameters": 1, "total_parameters": 2, "steps": 1, "final_loss": 0.0}
    return Adapter.collect(folder, repo_id="owner/tiny", commit="a" * 40, **facts)


@pytest.fixture
def merged(tmp_path: Path) -> MergedModel:
    folder = tmp_path / "sealed_merged"
    folder.mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "model.safetensors.index.json"):
        (folder / name).write_text(SMALL[name])
    for number in (1, 2):
        (folder / f"model-0000{number}-of-00002.safetensors").write_bytes(bytes([number]) * 200_000)
    return MergedModel.collect(folder, repo_id="owner/tiny", commit="a" * 40, merged_tensors=8)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The token as a worker has it; hf_xet speaks a protocol that the loopback Hub does not."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)


def runtime(hub: LoopbackHub, retries: int = 0) -> Runtime:
    return Runtime(hub_endpoint=hub.url, hub_retries=retries)


def hub_at(folder: Path, **more: object) -> LoopbackHub:
    folder.mkdir(exist_ok=True)
    return LoopbackHub(folder, token=TOKEN, uploads="lfs", **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_an_adapters_folder_holds_all_that_serving_needs_and_nothing_of_the_bases_own_description(
    snapshot: ModelSnapshot, adapter: Adapter, tmp_path: Path
) -> None:
    names = assemble(tmp_path / "out", adapter, snapshot, "# the card")
    held = contents(tmp_path / "out")
    assert sorted(held) == names
    assert set(held) == {
        "adapter_model.safetensors", "adapter_config.json", "generation_config.json", "tokenizer.json",
        "chat_template.jinja", "LICENSE", "README.md",
    }  # fmt: skip
    assert held["README.md"] == b"# the card"
    assert not any(p.is_symlink() for p in (tmp_path / "out").rglob("*"))


def test_a_merged_folder_is_whole_and_its_large_files_take_no_space(
    snapshot: ModelSnapshot, merged: MergedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_folder, "LINK_FROM_BYTES", 100_000)
    assemble(tmp_path / "out", merged, snapshot, "# the card")
    held = contents(tmp_path / "out")
    assert {f.name for f in merged.files} < set(held)
    for file in merged.files:
        ours, sealed = tmp_path / "out" / file.name, merged.path / file.name
        assert held[file.name] == sealed.read_bytes()
        assert ours.samefile(sealed) == (file.size >= 100_000)


def test_a_folder_that_holds_something_is_refused(snapshot: ModelSnapshot, adapter: Adapter, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(BadConfig, match="not empty"):
        assemble(tmp_path / "out", adapter, snapshot, "# the card")
    assert contents(tmp_path / "out") == {"thesis.tex": b"years of work"}


def test_the_same_folder_once_more_is_as_good_as_new_and_half_of_one_is_none(
    snapshot: ModelSnapshot, adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", full)
        with pytest.raises(OSError, match="no room"):
            assemble(out, adapter, snapshot, "# the card")
    assert not out.exists()
    assert assemble(out, adapter, snapshot, "# the card") == assemble(out, adapter, snapshot, "# the card")
    before = contents(out)
    with pytest.raises(BadConfig, match="not empty"):
        assemble(out, adapter, snapshot, "# another card")
    assert contents(out) == before
    assert not list(tmp_path.glob(".out*"))


def test_what_a_killed_push_has_left_goes_with_the_next_one_and_not_before_it_is_over(tmp_path: Path) -> None:
    """SIGKILL leaves the links, SIGTERM nothing."""
    script = (
        "import sys, time; from pathlib import Path; from gradelora.push.staging import staging\n"
        "with staging(Path(sys.argv[1])) as place:\n"
        "    (place / 'model').mkdir(); print(place, flush=True); time.sleep(60)\n"
    )

    def pushing() -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen([sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True)
        return process, Path(process.stdout.readline().strip())

    first, place = pushing()
    second, other = pushing()
    assert (place / "model").is_dir()
    first.kill()
    first.communicate()
    assert place.is_dir()
    second.terminate()
    second.communicate()
    assert not other.exists()
    with staging(tmp_path) as third:
        assert not place.exists()
        assert third.is_dir()
    assert [p.name for p in tmp_path.iterdir()] == [".push.lock"]


@pytest.mark.usefixtures("client")
def test_a_push_makes_a_private_repository_with_every_byte(
    snapshot: ModelSnapshot, adapter: Adapter, tmp_path: Path
) -> None:
    assemble(tmp_path / "out", adapter, snapshot, "# the card")
    with hub_at(tmp_path / "hub") as hub:
        pushed = upload(tmp_path / "out", REPO, public=False, runtime=runtime(hub))
        assert hub.access[REPO] == "private"
        assert pushed.commit == hub.repositories.commit(REPO, "main").id
    assert pushed.private
    assert contents(tmp_path / "hub" / REPO) == contents(tmp_path / "out")


@pytest.mark.usefixtures("client")
def test_a_push_that_broke_off_sends_only_what_is_missing_and_was_no_model_before(
    snapshot: ModelSnapshot, merged: MergedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda s: None)
    assemble(tmp_path / "out", merged, snapshot, "# the card")
    second = hashlib.sha256(bytes([2]) * 200_000).hexdigest()
    broken = Fault(Cut(100_000), on="upload", path=second, times=None)
    with hub_at(tmp_path / "hub", faults=[broken]) as hub:
        with pytest.raises(HubUnavailable, match=r"no answer from .*RemoteProtocolError|WriteError|ReadError"):
            upload(tmp_path / "out", REPO, public=False, runtime=runtime(hub))
        assert contents(tmp_path / "hub" / REPO) == {}
        hub.faults.clear()
        upload(tmp_path / "out", REPO, public=False, runtime=runtime(hub))
        assert sent(hub) == 2
    assert contents(tmp_path / "hub" / REPO) == contents(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.usefixtures("client")
def test_a_push_that_was_killed_among_the_weights_sends_none_of_them_twice(
    snapshot: ModelSnapshot, merged: MergedModel, tmp_path: Path
) -> None:
    assemble(tmp_path / "out", merged, snapshot, "# the card")
    slow = Fault(Throttle(100_000), on="upload", path=hashlib.sha256(bytes([2]) * 200_000).hexdigest())
    script = (
        "import sys; from pathlib import Path; from gradelora.config import Runtime\n"
        "from gradelora.push.upload import upload\n"
        "upload(Path(sys.argv[1]), sys.argv[2], public=False, runtime=Runtime(hub_endpoint=sys.argv[3]))\n"
    )
    with hub_at(tmp_path / "hub", faults=[slow]) as hub:
        command = [sys.executable, "-c", script, str(tmp_path / "out"), REPO, hub.url]
        process = subprocess.Popen(command, env={**os.environ, "HF_HUB_DISABLE_XET": "1"})
        wait_for(lambda: slow.fired and sent(hub) == 1, 60, "the second shard was never begun")
        process.kill()
        process.wait()
        assert contents(tmp_path / "hub" / REPO) == {}
        upload(tmp_path / "out", REPO, public=False, runtime=runtime(hub))
        assert sent(hub) == 2
    assert contents(tmp_path / "hub" / REPO) == contents(tmp_path / "out")


def sent(hub: LoopbackHub) -> int:
    """Large files that have arrived whole."""
    return sum("/lfs-upload/" in r.path and r.status == 200 for r in hub.requests)


def test_a_hub_that_takes_every_file_as_a_small_one_is_served_with_xet_installed(
    snapshot: ModelSnapshot, merged: MergedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert not constants.HF_HUB_DISABLE_XET
    assemble(tmp_path / "out", merged, snapshot, "# the card")
    (tmp_path / "hub").mkdir()
    with LoopbackHub(tmp_path / "hub", token=TOKEN, uploads="regular") as hub:
        upload(tmp_path / "out", REPO, public=False, runtime=runtime(hub))
    assert contents(tmp_path / "hub" / REPO) == contents(tmp_path / "out")


@pytest.mark.usefixtures("client")
def test_a_push_whose_last_answer_was_lost_is_found_to_have_arrived(
    snapshot: ModelSnapshot, adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda s: None)
    assemble(tmp_path / "out", adapter, snapshot, "# the card")
    with hub_at(tmp_path / "hub", faults=[Fault(Status(503), on="api", path="/commit/")]) as hub:
        pushed = upload(tmp_path / "out", REPO, public=False, runtime=runtime(hub, retries=1))
        assert pushed.commit == hub.repositories.commit(REPO, "main").id
    assert contents(tmp_path / "hub" / REPO) == contents(tmp_path / "out")


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize(
    ("effect", "place", "times"),
    [
        (Status(503), "api", 1),
        (Status(429, retry_after_s=0), "api", 1),
        (Cut(0), "api", 1),
        # The client itself tries six times.
        (Cut(50_000), "upload", 6),
        (Status(503), "upload", 6),
    ],
    ids=["503", "429", "cut", "cut in the weights", "503 for weights"],
)
def test_a_hub_that_stumbles_is_asked_again(
    snapshot: ModelSnapshot, adapter: Adapter, tmp_path: Path, effect: Status, place: str, times: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("time.sleep", lambda s: None)
    assemble(tmp_path / "out", adapter, snapshot, "# the card")
    fault = Fault(effect, on=place, path="/preupload/" if place == "api" else "", times=times)
    with hub_at(tmp_path / "hub", faults=[fault]) as hub:
        upload(tmp_path / "out", REPO, public=False, runtime=runtime(hub, retries=2))
    assert fault.fired == times
    assert contents(tmp_path / "hub" / REPO) == contents(tmp_path / "out")


@pytest.mark.usefixtures("client")
def test_what_the_hub_will_not_take_is_refused_at_once(
    snapshot: ModelSnapshot, adapter: Adapter, tmp_path: Path
) -> None:
    assemble(tmp_path / "out", adapter, snapshot, "# the card")
    fault = Fault(Status(413), on="upload", times=None)
    with hub_at(tmp_path / "hub", faults=[fault]) as hub, pytest.raises(HubRefused, match="answered 413") as raised:
        upload(tmp_path / "out", REPO, public=False, runtime=runtime(hub, retries=3))
    assert fault.fired == 1
    assert "lfs-upload" not in str(raised.value)


def test_what_goes_wrong_in_xet_has_a_name(
    snapshot: ModelSnapshot, adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loopback Hub takes large files, but gives nobody a token for Xet's storage."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assemble(tmp_path / "out", adapter, snapshot, "# the card")
    with hub_at(tmp_path / "hub") as hub, pytest.raises(HubRefused, match="answered 404"):
        upload(tmp_path / "out", REPO, public=False, runtime=runtime(hub))
    lost = ConnectionError("Network error: error sending request for url (http://storage?signature=secret)")
    refused = XetAuthenticationError("secret")
    assert str(named(lost, REPO, "https://hub")) == (
        f"{REPO}: no answer from the Hub's storage (ConnectionError); check the network"
    )
    assert isinstance(named(refused, REPO, "https://hub"), GatedRepo)


@pytest.mark.usefixtures("client")
def test_a_push_replaces_the_one_before_in_one_step_and_leaves_what_is_not_its_own(
    snapshot: ModelSnapshot, merged: MergedModel, tmp_path: Path
) -> None:
    assemble(tmp_path / "first", merged, snapshot, "# the first card")
    assemble(tmp_path / "second", merged, snapshot, "# the second card")
    (tmp_path / "second" / "model-00002-of-00002.safetensors").write_bytes(b"other weights")
    third = tmp_path / "first" / "model-00003-of-00003.safetensors"
    third.write_bytes(b"stale")
    (tmp_path / "first" / "delta_survival.jsonl").write_text("{}")
    own = {".gitattributes": b"*.safetensors filter=lfs", "figures/curve.png": b"somebody's own"}
    with hub_at(tmp_path / "hub") as hub:
        upload(tmp_path / "first", REPO, public=False, runtime=runtime(hub))
        for name, text in own.items():
            (tmp_path / "hub" / REPO / name).parent.mkdir(exist_ok=True)
            (tmp_path / "hub" / REPO / name).write_bytes(text)
        before = hub.repositories.commit(REPO, "main").id
        pushed = upload(tmp_path / "second", REPO, public=False, runtime=runtime(hub))
        again = upload(tmp_path / "second", REPO, public=False, runtime=runtime(hub))
        commits = [r for r in hub.requests if "/commit/" in r.path]
    assert pushed.removed == ("delta_survival.jsonl", third.name)
    assert contents(tmp_path / "hub" / REPO) == contents(tmp_path / "second") | own
    assert (again.commit, again.removed) == (pushed.commit, ())
    assert pushed.commit != before
    assert len(commits) == 2, "one each, none where nothing has changed"


@pytest.mark.usefixtures("client")
def test_a_public_repository_takes_a_push_only_when_that_is_said(
    snapshot: ModelSnapshot, adapter: Adapter, tmp_path: Path
) -> None:
    assemble(tmp_path / "out", adapter, snapshot, "# the card")
    (tmp_path / "hub" / REPO).mkdir(parents=True)
    with hub_at(tmp_path / "hub") as hub:
        with pytest.raises(BadConfig, match="is public"):
            upload(tmp_path / "out", REPO, public=False, runtime=runtime(hub))
        assert contents(tmp_path / "hub" / REPO) == {}
        assert not upload(tmp_path / "out", REPO, public=True, runtime=runtime(hub)).private
        hub.access[REPO] = "private"
        assert upload(tmp_path / "out", REPO, public=True, runtime=runtime(hub)).private, (
            "as it is, not as it was asked"
        )
    assert contents(tmp_path / "hub" / REPO) == contents(tmp_path / "out")


@pytest.mark.usefixtures("client")
def test_a_merged_model_is_not_pushed_over_an_adapter(
    snapshot: ModelSnapshot, adapter: Adapter, merged: MergedModel, tmp_path: Path
) -> None:
    assemble(tmp_path / "adapter", adapter, snapshot, "# the card")
    assemble(tmp_path / "merged", merged, snapshot, "# the card")
    with hub_at(tmp_path / "hub") as hub:
        upload(tmp_path / "adapter", REPO, public=False, runtime=runtime(hub))
        with pytest.raises(BadConfig, match=r"adapter_config\.json"):
            upload(tmp_path / "merged", REPO, public=False, runtime=runtime(hub))
    assert contents(tmp_path / "hub" / REPO) == contents(tmp_path / "adapter")


@pytest.mark.parametrize(("token", "message"), [(None, "set HF_TOKEN"), ("hf_of_somebody_else", "refused to write")])
def test_a_push_without_a_token_that_may_write_says_so(
    adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, message: str
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with hub_at(tmp_path / "hub") as hub, pytest.raises(BadConfig, match=message) as raised:
        upload(adapter.path, REPO, public=False, runtime=runtime(hub))
    assert "hf_of" not in str(raised.value)
    assert not (tmp_path / "hub" / REPO).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [([], "--repo OWNER/NAME"), (["--public", "--to-folder", "x"], "belongs to --repo"), (["--repo", "x"], "OWNER")],
)
def test_options_that_say_too_little_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", "--config", str(ROOT / "deployments" / "demo.yaml"), *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_card_names_lineage_and_commands_for_where_the_model_is(tmp_path: Path, kind: str) -> None:
    agreed = Agreed(
        items=32, changed_scores=2, ties=1, mean_difference=0.012, largest_difference=0.3, adapter_effect=4.5, shift=0
    )
    merged = MergedModel(
        path=tmp_path, files=(), repo_id="owner/tiny", commit="a" * 40, merged_tensors=8, agreed=agreed
    )
    whole = given(tmp_path).model_copy(update={"code_version": code_version(), "merged": merged})
    (whole.snapshot.path / "README.md").write_text("---\nlicense: apache-2.0\ntags: [a]\n---\n# the base's card")
    text = model_card(whole, Handover(kind=kind, where=REPO, config="my/school.yaml"))
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == {"adapter": "peft", "merged": "transformers"}[kind]
    assert yaml.safe_load(front)["license"] == "apache-2.0"
    compared = "2 of 32 scores changed, 1 of them near-ties; log-probabilities by 0.0120 nats on average"
    assert (compared in body) == (kind == "merged")
    for proof in (whole.snapshot.commit, whole.records.digest, whole.adapter.digest, code_version()):
        assert proof in body
    commands = {
        "adapter": (
            "--enable-lora --max-lora-rank 8",
            f"--lora-modules demo={REPO}",
            f'(base, "{REPO}")',
            "convert_lora_to_gguf.py --base-model-id owner/tiny",
            "  demo --outfile demo-lora.gguf",
            "gradelora score --config my/school.yaml --adapter demo --out scores answers.json",
        ),
        "merged": (f"vllm serve {REPO}", f'from_pretrained("{REPO}", dtype="auto")', "convert_hf_to_gguf.py demo"),
    }
    assert all(command in body for command in commands[kind])
    assert str(tmp_path) not in text


def test_an_adapter_on_experts_is_loaded_on_dequantised_weights_and_says_what_vllm_needs(tmp_path: Path) -> None:
    whole = given(tmp_path)
    (whole.snapshot.path / "config.json").write_text('{"quantization_config": {"quant_method": "mxfp4"}}')
    lora = LoraSettings(r=200, dropout=0, target_parameters=("mlp.experts.down_proj",))
    run = whole.run.model_copy(update={"train": whole.run.train.model_copy(update={"lora": lora})})
    texts = [c.text for c in commands(whole.model_copy(update={"run": run}), HANDED_OVER)]
    python, vllm, request, score = texts
    assert "import AutoModelForCausalLM, Mxfp4Config" in python
    assert "quantization_config=Mxfp4Config(dequantize=True))" in python
    compile(python, "card", "exec")
    assert "--max-lora-rank 256" in vllm
    assert vllm.startswith("# needs a vLLM that serves LoRA on fused experts")
    assert "v1/completions" in request
    assert "gradelora score" in score


def test_no_vllm_command_is_given_for_an_adapter_that_vllm_would_refuse(tmp_path: Path) -> None:
    whole = given(tmp_path)
    lora = LoraSettings(r=1024)
    run = whole.run.model_copy(update={"train": whole.run.train.model_copy(update={"lora": lora})})
    texts = [c.text for c in commands(whole.model_copy(update={"run": run}), HANDED_OVER)]
    assert not [text for text in texts if "vllm" in text or "v1/completions" in text]


def test_the_request_for_the_served_model_runs_as_it_stands_and_asks_as_training_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ids of a whole item up to its score, whatever the answer spells."""
    folder = write_tokenizer(tmp_path / "model")
    whole, asked = given(tmp_path), []
    at = Handover(kind="merged", where=str(folder), config="c.yaml")
    (text,) = [c.text for c in commands(whole, at) if "v1/completions" in c.text]

    class Served:
        """Takes the request, and scores it with 2."""

        def __init__(self, *_: object) -> None:
            pass

        def request(self, *given: str) -> None:
            asked.append(json.loads(given[2]))

        def getresponse(self) -> io.BytesIO:
            return io.BytesIO(b'{"choices": [{"text": "{\\"score\\": 2}"}]}')

    monkeypatch.setattr("http.client.HTTPConnection", Served)
    exec(compile(text.replace("the student's answer", "<|end|>"), "card", "exec"), {})
    layout = load_layout(folder, whole.run.encode)
    item = [*layout.prefix("the question", "the rubric", 3), *layout.answer("<|end|>"), *layout.closing]
    assert asked[0]["prompt"] == [*item, *layout.target_opening]
    assert asked[0]["model"] == whole.run.name


@pytest.fixture(scope="module")
def trained(repositories: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Repositories of its own with the tiny gpt-oss, and a folder for a store."""
    work = tmp_path_factory.mktemp("push")
    shutil.copytree(repositories / REPO_ID, work / "hub" / REPO_ID)
    return work / "hub", work


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter", "merged"])
def test_the_command_trains_pushes_and_what_arrives_loads(trained: tuple[Path, Path], kind: str) -> None:
    root, work = trained
    places = [f"store.root={work}/store", f"runtime.hub_cache={work}/cache", f"data.files=[{ROOT}/data/sample/*.json]"]
    options = [part for override in [*QUICK, *places] for part in ("--set", override)]
    repo = f"school/{kind}"
    with LoopbackHub(root, token=TOKEN, uploads="lfs") as hub:
        extensions = os.environ.get("TORCH_EXTENSIONS_DIR", str(ROOT / ".cache" / "torch_extensions"))
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-m", "gradelora.cli", "push", "--config", "deployments/demo.yaml", "--json"]
        command += [*options, "--repo", repo, *(["--merged"] if kind == "merged" else [])]
        env["TORCH_EXTENSIONS_DIR"] = extensions

        def push(*more: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*command, *more], env=env, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
            )

        refused = push()
        assert refused.returncode == 2, refused.stderr[-4000:]
        assert "BadConfig: push: the gate refuses this adapter" in refused.stderr
        done = push("--refused")
        assert done.returncode == 0, done.stderr[-4000:]
        assert json.loads(done.stdout)["private"]
        assert TOKEN not in done.stdout + done.stderr
    assert not list((work / "store").glob(".push-*"))
    pushed = root / repo
    load(pushed if kind == "merged" else root / REPO_ID, pushed if kind == "adapter" else None)
    assert TOKEN.encode() not in b"".join(contents(pushed).values())


def load(base: Path, adapter: Path | None) -> None:
    """As the card says, from the folder; every key found."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(base, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    ids = AutoTokenizer.from_pretrained(adapter or base)("two points", return_tensors="pt").input_ids
    assert torch.isfinite(model(ids).logits).all()
