"""Folders of other systems and of the hub: what opens, what is refused, what never runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import threading
from functools import partial
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from helpers import raises_code
from safetensors.torch import load_file, save_file
from small_models import make_model
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import ftlab
from ftlab._core.errors import FtlabError
from ftlab.models import adapters, chat_template, folders
from ftlab.models.adapters import difference

TEXTS = ["Ann has 3 apples and 4 pears. How many in all?"]
ASKED = [{"role": "user", "content": "How many?"}]
SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copied(llama, tmp_path):
    return shutil.copytree(llama, tmp_path / "model")


@pytest.fixture(scope="module")
def adapter(llama, tmp_path_factory):
    """A LoRA folder as peft alone writes it."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(
        r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    get_peft_model(ftlab.model(llama).load(), config).save_pretrained(
        path := tmp_path_factory.mktemp("a") / "adapter"
    )
    return path


def renamed(path: Path, **changes) -> Path:
    """Change an adapter's configuration, and return its folder."""
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return path


def leftovers(path: Path) -> Path:
    """Add what LLaMA-Factory and axolotl leave, with pickles that would show if opened."""

    class Opened:
        def __reduce__(self):
            return Path.touch, (path / "was_opened",)

    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (path / name).write_bytes(pickle.dumps(Opened()))
    for name in (
        "trainer_state.json",
        "all_results.json",
        "train_results.json",
        "trainer_log.jsonl",
        "axolotl_config.yml",
    ):
        (path / name).write_text("{}")
    (path / "training_loss.png").write_bytes(b"")
    return path


def same(a, b) -> bool:
    return difference(a.load(), b.load(), b.tokenizer(), TEXTS)["max_abs"] == 0


@pytest.mark.slow
def test_output_folders_of_other_systems_open(llama, adapter, tmp_path):
    """Whole models and adapters with leftovers, checkpoints and a config.json of the base."""
    full = leftovers(shutil.copytree(llama, tmp_path / "full"))
    shutil.copytree(llama, full / "checkpoint-10")
    assert same(ftlab.model(full), ftlab.model(llama)) and ftlab.model(full).path == full
    lora = leftovers(shutil.copytree(adapter, tmp_path / "lora"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json"):
        shutil.copy(llama / name, lora)
    shutil.copytree(adapter, lora / "checkpoint-10")
    shutil.copytree(llama, lora / "merged")
    opened = ftlab.model(lora)
    assert (
        opened.path == lora and opened.parent.path == llama and same(opened, ftlab.model(adapter))
    )
    assert not list(tmp_path.rglob("was_opened"))


def test_an_adapter_of_any_name_is_found_in_its_subfolder(llama, tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(ftlab.model(llama).load(), config, adapter_name="safety")
    model.save_pretrained(tmp_path / "out")
    assert ftlab.model(tmp_path / "out").path == tmp_path / "out/safety"
    shutil.copytree(
        tmp_path / "out/safety", tmp_path / "out/ref"
    )  # as a DPO trainer leaves its reference
    assert ftlab.model(tmp_path / "out").path == tmp_path / "out/safety"
    for step in (90, 100):
        shutil.copytree(tmp_path / "out/safety", tmp_path / f"out/checkpoint-{step}")
    with raises_code("several_models"):
        ftlab.model(tmp_path / "out")
    assert ftlab.model(tmp_path / "out/checkpoint-90").parent.path == llama


@pytest.mark.slow
def test_the_base_of_an_adapter_is_found_by_its_name_or_passed(
    llama, adapter, tmp_path, monkeypatch
):
    """Relative to here or to the adapter; otherwise it can be passed, also in one string."""
    moved = shutil.copytree(adapter, tmp_path / "work/adapter")
    shutil.copytree(llama, tmp_path / "work/base")
    monkeypatch.chdir(tmp_path)
    for name in ("work/base", "base", "../base"):
        assert (
            ftlab.model(renamed(moved, base_model_name_or_path=name)).parent.path.resolve()
            == tmp_path / "work/base"
        )
    for gone in ("/content/drive/llama", "meta-llama/Llama-2-7b-hf", "", None):
        opened = ftlab.model(renamed(moved, base_model_name_or_path=gone))
        with raises_code("adapter_base_not_found"):
            opened.load()
        given = ftlab.model(moved, base=llama)
        assert (
            given.parent.path == llama
            and same(given, ftlab.model(adapter))
            and given.hash == ftlab.model(adapter).hash
        )
        assert ftlab.model(f"{moved}+{llama}").hash == given.hash
    with raises_code("base_without_adapter"):
        ftlab.model(llama, base=llama)


def test_pickled_adapters_and_mixed_folders_are_refused(llama, adapter, tmp_path):
    pickled = shutil.copytree(adapter, tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with raises_code("weights_not_found"):
        ftlab.model(pickled)
    mixed = shutil.copytree(adapter, tmp_path / "mixed")
    shutil.copy(llama / "model.safetensors", mixed)
    with raises_code("adapter_and_model_mixed"):
        ftlab.model(mixed)
    (mixed / "model.safetensors").rename(mixed / "other.safetensors")
    (mixed / "adapter_model.safetensors").unlink()
    with raises_code("adapter_weights_missing"):
        ftlab.model(mixed)


@pytest.fixture
def sharded(llama, tmp_path):
    ftlab.model(llama).load().save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    for file in llama.glob("*token*"):
        shutil.copy(file, tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
    return tmp_path / "sharded"


def test_sharded_weights_open_whole_or_not_at_all(llama, sharded):
    tokenizer = ftlab.model(llama).tokenizer()
    assert (
        difference(ftlab.model(sharded).load(), ftlab.model(llama).load(), tokenizer, TEXTS)[
            "max_abs"
        ]
        == 0
    )
    second = sorted(sharded.glob("model-*.safetensors"))[1]
    whole = second.read_bytes()
    for torn in (whole[:-100], b"version https://git-lfs.github.com/spec/v1\n"):
        second.write_bytes(torn)
        with raises_code("weights_unreadable") as info:
            ftlab.model(sharded).load()
        assert second.name in str(info.value)
    second.unlink()
    with raises_code("weight_shards_missing"):
        ftlab.model(sharded)
    (sharded / folders.INDEX).write_text("{")
    with raises_code("config_unreadable"):
        ftlab.model(sharded)


def test_a_configuration_of_another_size_is_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    with raises_code("weights_unreadable"):
        ftlab.model(copied).load()


def test_a_folders_own_code_never_runs(copied):
    config = json.loads((copied / "config.json").read_text())
    mine = {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"},
    }
    (copied / "config.json").write_text(json.dumps({**config, **mine}))
    (copied / "code.py").write_text(f"open({str(copied / 'was_run')!r}, 'w')")
    with raises_code("config_unreadable"):
        ftlab.model(copied).load()
    assert not (copied / "was_run").exists()


def test_merged_models_with_tied_weights_open(tmp_path):
    tied = make_model(tmp_path / "tied", "qwen2", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    model = ftlab.model(tied).load()
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.fixture
def cache(llama, adapter, tmp_path, monkeypatch):
    """The hub's cache with a model, a revision of it, and an adapter on that revision."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name, source, refs in (("tiny", llama, ("main", "v1")), ("lora", adapter, ("main",))):
        root = tmp_path / f"models--org--{name}"
        shutil.copytree(source, root / "snapshots" / SHA)
        (root / "refs").mkdir()
        for ref in refs:
            (root / "refs" / ref).write_text(SHA)
    return tmp_path


def test_a_hub_model_is_pinned_and_its_commit_recorded(cache, llama):
    for ref in ("org/tiny", "org/tiny@v1", f"org/tiny@{SHA}"):
        opened = ftlab.model(ref)
        assert opened.source == {"hub": "org/tiny", "commit": SHA, "hash": ftlab.model(llama).hash}
        assert (opened.name, opened.revision) == ("tiny", SHA)
    with raises_code("hub_unavailable"):
        ftlab.model("org/tiny@v2")


@pytest.mark.slow
def test_an_adapter_on_the_hub_finds_its_base_there(cache, adapter):
    file = cache / "models--org--lora/snapshots" / SHA
    opened = ftlab.model("org/lora")
    renamed(file, base_model_name_or_path="org/tiny", revision="v1")
    opened = ftlab.model("org/lora")
    assert opened.source["base"]["commit"] == SHA and same(opened, ftlab.model(adapter))
    renamed(file, revision="v2")
    with raises_code("adapter_base_not_found"):
        ftlab.model("org/lora").load()
    assert same(ftlab.model("org/lora+org/tiny@v1"), ftlab.model(adapter))


@pytest.fixture
def hub(llama, tmp_path, monkeypatch):
    """A hub on loopback with the model org/tiny; `status` answers all, `half` cuts files short."""
    from huggingface_hub import constants

    files, state = (
        {p.name: p.read_bytes() for p in llama.iterdir() if p.is_file()},
        {"status": None, "half": ()},
    )

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status, body=b"", **headers):
            self.send_response(status)
            for k, v in {"Content-Length": str(len(body)), "X-Repo-Commit": SHA, **headers}.items():
                self.send_header(k.replace("_", "-"), v)
            self.end_headers()
            return body if self.command == "GET" else b""

        def do_GET(self):
            path = urlsplit(self.path).path
            if state["status"]:
                body = self.answer(state["status"], Retry_After="0")
            elif "/revision/" in path or path == "/api/models/org/tiny":
                siblings = [{"rfilename": n} for n in files]
                told = json.dumps({"id": "org/tiny", "sha": SHA, "siblings": siblings, "tags": []})
                body = self.answer(200, told.encode(), Content_Type="application/json")
            elif "/tree/" in path:
                told = [
                    {"type": "file", "path": n, "size": len(b), "oid": sha1(b).hexdigest()}
                    for n, b in files.items()
                ]
                body = self.answer(200, json.dumps(told).encode(), Content_Type="application/json")
            else:
                name = path.rpartition("/")[2]
                whole, begins = files[name], self.headers.get("Range")
                start = int(begins[6:].split("-")[0]) if begins else 0
                tag = {"ETag": f'"{sha256(whole).hexdigest()}"'}
                if begins:
                    tag["Content_Range"] = f"bytes {start}-{len(whole) - 1}/{len(whole)}"
                body = self.answer(206 if begins else 200, whole[start:], **tag)
                if name in state["half"] and body:
                    body = body[: len(body) // 2]
                    self.close_connection = True
            self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "time.sleep", lambda seconds: None
    )  # the hub's client waits between its tries
    yield state
    server.shutdown()
    server.server_close()


def test_a_hub_offline_or_half_a_download_gives_no_model(hub, llama, monkeypatch):
    """A part is opened neither online nor offline; the next call resumes the download."""
    from huggingface_hub import constants

    hub["half"] = ("model.safetensors",)
    with raises_code("hub_unavailable"):
        ftlab.model("org/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with raises_code("hub_unavailable"):
        ftlab.model("org/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub["half"] = ()
    assert ftlab.model("org/tiny").hash == ftlab.model(llama).hash
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert ftlab.model("org/tiny").revision == SHA


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_refuses_gives_no_model(hub, status):
    hub["status"] = status
    with raises_code("hub_unavailable"):
        ftlab.model("org/tiny")


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.7.mlp.up_proj.weight",
        "model.layers.0.self_attn.q_proj.lora_A.weight",
        "esc\x1b]0;title\x07",
    ],
)
def test_weights_without_a_place_are_refused(copied, name, capsys):
    """Biases, further layers, an unmerged adapter: without them it is another model."""
    weights = load_file(copied / folders.WHOLE)
    save_file({**weights, name: torch.ones(4, 4)}, copied / folders.WHOLE, {"format": "pt"})
    with raises_code("weights_not_used") as info:
        ftlab.model(copied).load()
    assert "\x1b" not in str(info.value) + capsys.readouterr().err


def test_fewer_layers_than_the_weights_hold_are_refused(copied):
    changed(copied / "config.json", num_hidden_layers=1)
    with raises_code("weights_not_used"):
        ftlab.model(copied).load()


def test_what_changes_no_answer_may_lie_beside_the_weights(copied, llama):
    weights = load_file(copied / folders.WHOLE)
    weights["v_head.summary.weight"] = torch.ones(1, 4)
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(weights, copied / folders.WHOLE, {"format": "pt"})
    (copied / "model.fp16.safetensors").write_bytes((llama / folders.WHOLE).read_bytes())
    assert same(ftlab.model(copied), ftlab.model(llama))


def test_two_sets_of_weights_are_refused(sharded, llama, adapter):
    shards = sorted(sharded.glob("model-*.safetensors"))
    further = sharded / shards[-1].name.replace("model-0", "model-1")
    shutil.copy(shards[-1], further)
    with raises_code("two_sets_of_weights"):
        ftlab.model(sharded)
    further.unlink()
    shutil.copy(llama / folders.WHOLE, sharded)
    with raises_code("two_sets_of_weights"):
        ftlab.model(sharded)
    (sharded / folders.INDEX).unlink()
    with raises_code("two_sets_of_weights"):
        ftlab.model(sharded)
    for file in shards:
        file.unlink()
    shutil.copy(adapter / "adapter_model.safetensors", sharded)
    with raises_code("adapter_and_model_mixed"):
        ftlab.model(sharded)


def changed(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


DEEP = '{"a":' * 100_000 + "1" + "}" * 100_000


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.json", DEEP),
        ("config.json", '{"architectures": 5}'),
        ("config.json", '{"vocab_size": "x"}'),
        ("config.json", '{"ftlab_learning_rate": "x"}'),
        ("config.json", '{"ftlab_learning_rate": {"sft": "x"}}'),
        ("config.json", '{"quantization_config": 1}'),
        ("generation_config.json", '{"eos_token_id": "x"}'),
        ("generation_config.json", "[1]"),
        ("tokenizer_config.json", "[1]"),
        (folders.INDEX, '{"weight_map": {"a": ["x"]}}'),
        (folders.INDEX, '{"weight_map": [1]}'),
    ],
)
def test_malformed_values_are_refused_in_a_sentence(copied, file, text):
    (copied / file).write_text(text)
    with raises_code("config_unreadable"):
        ftlab.model(copied)


@pytest.mark.parametrize("base", [5, ["a"], "\0", "api:m@http://127.0.0.1:9/v1", "no/such"])
def test_a_malformed_base_is_refused_in_a_sentence(adapter, base, tmp_path):
    path = renamed(shutil.copytree(adapter, tmp_path / "a"), base_model_name_or_path=base)
    code = "adapter_base_not_found" if isinstance(base, str) else "config_unreadable"
    with raises_code(code):
        _ = ftlab.model(path).hash


def test_adapters_on_one_another_are_refused(adapter, tmp_path):
    for one, other in ("ab", "ba"):
        renamed(shutil.copytree(adapter, tmp_path / one), base_model_name_or_path=other)
    with raises_code("adapter_on_itself"):
        _ = ftlab.model(tmp_path / "a").hash


@pytest.mark.parametrize(
    "values",
    [
        {"megatron_config": {"a": 1}},
        {"megatron_core": "megatron.evil"},
        {"auto_mapping": {"base_model_class": "Evil", "parent_library": "evil"}},
    ],
)
def test_an_adapter_that_names_code_is_refused(adapter, values, tmp_path):
    path = renamed(shutil.copytree(adapter, tmp_path / "a"), **values)
    with raises_code("names_code"):
        ftlab.model(path)
    with raises_code("names_code"):
        ftlab.model(adapter, base=path)


def test_attention_fetched_from_the_hub_is_refused(copied):
    changed(copied / "config.json", text_config={"_attn_implementation": "somebody/kernels"})
    with raises_code("names_code"):
        ftlab.model(copied)
    changed(copied / "config.json", text_config={"_attn_implementation": "sdpa"})
    ftlab.model(copied)


@pytest.mark.parametrize(
    "name",
    ["num_hidden_layers", "n_layer", "encoder_layers", "nlayers", "num_experts", "zero_expert_num"],
)
def test_a_number_of_layers_or_experts_has_a_bound(tmp_path, name):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"text_config": {name: 10**9}}))
    with raises_code("too_many_layers"):
        folders.check_values(file)


@pytest.mark.parametrize("name", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_no_default_configuration_of_transformers_is_refused(tmp_path, name):
    """Widths such as shared_expert_intermediate_size have no bound."""
    try:
        text = CONFIG_MAPPING[name]().to_json_string(use_diff=False)
    except Exception:
        pytest.skip("it has no default of its own")
    (tmp_path / "config.json").write_text(text)
    folders.check_values(tmp_path / "config.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and devices have names on Unix only")
@pytest.mark.parametrize("name", ["extra.safetensors", "config.json", "tokenizer.json"])
def test_pipes_and_devices_are_refused(copied, name):
    (copied / name).unlink(missing_ok=True)
    os.mkfifo(copied / name)
    with raises_code("not_a_file"):
        ftlab.model(copied)
    (copied / name).unlink()
    (copied / name).symlink_to("/dev/zero")
    with raises_code("not_a_file"):
        ftlab.model(copied)


def test_a_template_or_pattern_that_runs_on_is_ended(copied, adapter, tmp_path, monkeypatch):
    briefly = partial(folders.limited, seconds=0.3)
    monkeypatch.setattr(chat_template, "limited", briefly)
    monkeypatch.setattr(adapters, "limited", briefly)
    loops = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    (copied / "chat_template.jinja").write_text(loops)
    with raises_code("template_refuses"):
        chat_template.render(ftlab.model(copied).tokenizer(), ASKED)
    path = renamed(shutil.copytree(adapter, tmp_path / "a"), target_modules=r"([\w.]+)+!")
    with raises_code("adapter_does_not_fit"):
        ftlab.model(path).load()


@pytest.mark.parametrize(
    "file, values",
    [
        ("config.json", {"dtype": "float99"}),
        ("config.json", {"torch_dtype": "flaot32", "dtype": None}),
        ("config.json", {"num_hidden_layers": "2"}),
        ("config.json", {"num_attention_heads": 0}),
        ("config.json", {"vocab_size": 0}),
        ("config.json", {"hidden_act": "nope"}),
        ("config.json", {"model_type": "llava"}),
        ("generation_config.json", {"max_new_tokens": -5}),
        ("special_tokens_map.json", []),
    ],
)
def test_a_wrong_value_is_blamed_on_its_file(file, values, tmp_path):
    """And not on the tokenizer or the weights, whichever is opened first."""
    folder = make_model(tmp_path / "model", "llama")
    path = folder / file
    if values:
        values = json.loads(path.read_text()) | values
    path.write_text(json.dumps(values))
    met = []
    for opened in ("tokenizer", "load"):
        try:
            getattr(ftlab.model(folder), opened)()
        except FtlabError as error:
            met.append(error)
    assert met and all(e.code == "config_unreadable" and str(path) in str(e) for e in met)
