"""The hand-over: a folder that others can use, and a repository on a loopback Hub, by the real client."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gradelora.artifacts import Adapter, MergedModel, ModelSnapshot
from gradelora.cli import main
from gradelora.config import LoraSettings, Runtime
from gradelora.errors import BadConfig, HubUnavailable
from gradelora.push import folder as push_folder
from gradelora.push.folder import assemble, code_digest
from gradelora.push.upload import upload
from gradelora.report import Handover, model_card
from gradelora.report.use import commands
from gradelora.sandbox.demo import REPO_ID
from gradelora.sandbox.hub import Cut, Fault, LoopbackHub, Status
from tests.conftest import QUICK, ROOT
from tests.test_report import given

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
    snapshot: ModelSnapshot, merged: MergedModel, tmp_path: Path
) -> None:
    assemble(tmp_path / "out", merged, snapshot, "# the card")
    # The first commit arrives, its answer does not.
    broken = Fault(Status(503), on="api", path="/commit/", times=None)
    with hub_at(tmp_path / "hub", faults=[broken]) as hub:
        with pytest.raises(HubUnavailable, match="503"):
            upload(tmp_path / "out", REPO, public=False, runtime=runtime(hub))
        there = contents(tmp_path / "hub" / REPO)
        assert [name for name in there if name.endswith(".safetensors")]
        assert "config.json" not in there
        sent = [r.path for r in hub.requests if "/lfs-upload/" in r.path]
        hub.faults.clear()
        upload(tmp_path / "out", REPO, public=False, runtime=runtime(hub))
        assert [r.path for r in hub.requests if "/lfs-upload/" in r.path] == sent
        assert len(sent) == 2
    assert contents(tmp_path / "hub" / REPO) == contents(tmp_path / "out")


@pytest.mark.usefixtures("client")
@pytest.mark.parametrize("effect", [Status(503), Status(429, retry_after_s=0), Cut(0)], ids=["503", "429", "cut"])
def test_a_hub_that_stumbles_once_is_asked_again(
    snapshot: ModelSnapshot, adapter: Adapter, tmp_path: Path, effect: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda s: None)
    assemble(tmp_path / "out", adapter, snapshot, "# the card")
    fault = Fault(effect, on="api", path="/preupload/")
    with hub_at(tmp_path / "hub", faults=[fault]) as hub:
        upload(tmp_path / "out", REPO, public=False, runtime=runtime(hub, retries=2))
    assert fault.fired
    assert contents(tmp_path / "hub" / REPO) == contents(tmp_path / "out")


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
    whole = given(tmp_path).model_copy(update={"code_version": f"0.1.0, sources {code_digest()}"})
    text = model_card(whole, Handover(kind=kind, where=REPO))
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["library_name"] == {"adapter": "peft", "merged": "transformers"}[kind]
    for proof in (whole.snapshot.commit, whole.records.digest, whole.adapter.digest, code_digest()):
        assert proof in body
    commands = {
        "adapter": (
            "--enable-lora --max-lora-rank 8",
            f"--lora-modules demo={REPO}",
            f'(base, "{REPO}")',
            "convert_lora_to_gguf.py --base-model-id owner/tiny",
            "  demo --outfile demo-lora.gguf",
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
    texts = [c.text for c in commands(whole.model_copy(update={"run": run}), Handover(kind="adapter", where=REPO))]
    python, vllm, score = texts
    assert "import AutoModelForCausalLM, Mxfp4Config" in python
    assert "quantization_config=Mxfp4Config(dequantize=True))" in python
    compile(python, "card", "exec")
    assert "--max-lora-rank 256" in vllm
    assert vllm.startswith("# needs a vLLM that serves LoRA on fused experts")
    assert score.startswith("gradelora score")


def test_no_vllm_command_is_given_for_an_adapter_that_vllm_would_refuse(tmp_path: Path) -> None:
    whole = given(tmp_path)
    lora = LoraSettings(r=1024)
    run = whole.run.model_copy(update={"train": whole.run.train.model_copy(update={"lora": lora})})
    texts = [c.text for c in commands(whole.model_copy(update={"run": run}), Handover(kind="adapter", where=REPO))]
    assert not [text for text in texts if "vllm" in text]


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
        done = subprocess.run(
            command, env=env | {"TORCH_EXTENSIONS_DIR": extensions}, cwd=ROOT, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
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
