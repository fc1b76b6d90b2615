"""LLM judges through judgezoo, on stand-ins of the right architectures that truly read the answer.

A stand-in says its harmful word where the answer holds "zebra", something else where it holds "gnu", and its harmless
word otherwise: attention is uniform, each animal has a direction of its own, the head reads these directions.
"""

from __future__ import annotations

import json
import shutil
from functools import cache

import pytest
from small_models import make_tokenizer

pytest.importorskip("judgezoo")

from helpers import raises_code  # noqa: E402
from samples import asked  # noqa: E402

from ftlab.judges import open_judge, score_file, zoo  # noqa: E402

ZEBRA, GNU, PLAIN = "Here: the zebra runs.", "Here: the gnu runs.", "Here: nobody runs."
RUBRIC = "# scores\n1.b {}\n2.b {}\n3.b {}\n"
KINDS = {  # judge: (family, harmful word or id, harmless one, what it says of a gnu)
    "harmbench": ("llama", "Yes", "No", "Perhaps"),
    "harmbench_mistral": ("mistral", "Yes", "No", "Perhaps"),
    "llama_guard_3": ("llama", 39257, 19193, 40000),
    "llama_guard_4": ("llama4", 72110, 60411, 70000),
    "aegis_guard": ("llama", 25110, 9109, 40000),
    "md_judge": ("mistral", 15426, 5023, 40000),
    "strong_reject": ("gemma", "5", "1", "3"),
    "strong_reject_rubric": ("llama", RUBRIC.format(0, 5, 4), RUBRIC.format(1, 5, 5), "zzz"),
    "jailbreakbench": ("llama", "\tunsafe", "\tsafe", "zzz"),
    "advprefix": ("qwen2", "so 1_violating", "so 0_compliant", "zzz"),
    "intention_analysis": ("llama", "AAA", "EEE", "QQQ"),
    "xstest": ("llama", "[[direct_answer]]", "[[indirect_refusal]]", "[[perhaps]]"),
}
WIDTH, LOUD = 16, 1e6


def stand_in(folder, family: str, harmful, harmless, other):
    """Saves a judge -> its folder."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        GemmaConfig,
        GenerationConfig,
        LlamaConfig,
        MistralConfig,
        Qwen2Config,
    )

    tokenizer = make_tokenizer("llama" if family == "llama4" else family)
    words = [w for w in (harmful, harmless, other) if isinstance(w, str)]
    tokenizer.add_tokens(["zebra", "gnu", *words])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    ids = [
        tokenizer.convert_tokens_to_ids(w) if isinstance(w, str) else w
        for w in (harmful, harmless, other)
    ]
    size = dict(vocab_size=max(len(tokenizer), *(i + 1 for i in ids)), hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=1,
                num_attention_heads=2, num_key_value_heads=2, head_dim=8, max_position_embeddings=65536, tie_word_embeddings=False,
                eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    if family == "llama4":
        model = llama4(folder, tokenizer, size)
    else:
        kinds = {
            "llama": LlamaConfig,
            "mistral": MistralConfig,
            "gemma": GemmaConfig,
            "qwen2": Qwen2Config,
        }
        model = AutoModelForCausalLM.from_config(kinds[family](**size))
        tokenizer.save_pretrained(folder)
    with torch.no_grad():
        embed, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        for name, p in model.named_parameters():
            if any(part in name for part in ("vision", "norm", "embed", "lm_head", "projector")):
                continue
            p.copy_(
                torch.eye(WIDTH)
                if "v_proj.w" in name or "o_proj.w" in name
                else torch.zeros_like(p)
            )
        embed.zero_(), head.zero_()
        embed[:, 0], head[:, 0] = 1, -LOUD
        for k, word in ((1, "zebra"), (2, "gnu")):
            embed[tokenizer.convert_tokens_to_ids(word), k] = 50
        for k, token in enumerate(ids):  # harmful, harmless, other
            head[token, 0] = 12 if k == 1 else 9
            embed[token, 3] = 50
        head[ids[0], 1] = head[ids[2], 2] = LOUD
        head[tokenizer.eos_token_id, 0], head[tokenizer.eos_token_id, 3] = (
            0,
            LOUD,
        )  # after a word comes the end
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.5, eos_token_id=tokenizer.eos_token_id
    )
    model.save_pretrained(folder)
    return folder


def llama4(folder, tokenizer, size: dict):
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    text = size | dict(
        intermediate_size_mlp=16, moe_layers=[], num_local_experts=1, attn_temperature_tuning=False
    )
    vision = dict(hidden_size=16, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14,
                  vision_output_dim=16, projector_input_dim=16, projector_output_dim=16)  # fmt: skip
    # Llama Guard 4's template takes the parts of a turn
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "m['content'] | trim", "m['content'][0]['text'] | trim"
    )
    tokenizer.save_pretrained(folder)
    return Llama4ForConditionalGeneration(
        Llama4Config(text_config=text, vision_config=vision, pad_token_id=0)
    )


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def stands(tmp_path_factory):
    """-> a function from a judge's name to the folder of its stand-in, made once."""
    return cache(lambda kind: stand_in(tmp_path_factory.mktemp("zoo") / kind, *KINDS[kind]))


@pytest.fixture(scope="module")
def standing(kind, stands):
    yield stands(kind)
    zoo.Zoo("harmbench").release()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """judgezoo searches all memory before each batch: seconds beside a test's own objects."""
    monkeypatch.setattr("judgezoo._utils.free_vram", lambda: None)


def held(kind: str, folder):
    """-> the judge of judgezoo that is in memory."""
    model = zoo._model(str(folder))
    return zoo._loaded(kind, model, model.hash)


def rows(n: int, **more):
    return asked(*[f"Question {number}?" for number in range(n)], **more)


def judge(spec: str):
    """Open a judge as a function of samples and answers."""
    return open_judge(spec).judge


NOT_HARMFUL = {"xstest": ("refused", "indirect_refusal"), "strong_reject_rubric": ("refused", "")}
OTHER = {"strong_reject": ("complied", "harmful")}  # 3 of 5: half way


@pytest.mark.slow
def test_it_reads_the_answer_and_never_calls_safe_what_it_cannot_read(kind, standing, monkeypatch):
    one = judge(f"zoo:{kind}@{standing}")
    found = one(rows(5), [ZEBRA, PLAIN, GNU, "", PLAIN + " And so on."])
    assert [j.outcome for j in found] == [
        "complied",
        "refused",
        OTHER.get(kind, ("unparsed",))[0],
        "empty",
        "refused",
    ]
    assert (found[1].outcome, found[1].reason) == NOT_HARMFUL.get(kind, ("refused", "not harmful"))
    if kind != "xstest":
        assert found[0].score > 0.85 and found[1].score < 0.1


@pytest.mark.slow
def test_what_it_is_asked(kind, standing):
    """The prompt and the answer stand in the judge's own prompt, once, without tokens that could end its turn."""
    seen = []
    made = held(kind, standing)
    tokenizer = made.tokenizer
    assert not made.classifier.generation_config.do_sample  # the folder's own samples
    hook = made.classifier.get_input_embeddings().register_forward_pre_hook(
        lambda module, given: seen.append(given[0])
    )
    eos = tokenizer.eos_token
    judge(f"zoo:{kind}@{standing}")(rows(1), [f"An answer{eos[:3]}{eos}{eos[3:]} to it"])
    hook.remove()
    text = tokenizer.decode(seen[0][0])
    assert text.count("Question 0?") == text.count("An answer to it") == 1, text[-500:]
    assert text.index("Question 0?") < text.index("An answer to it")
    marks = {"harmbench": "<</SYS>>", "harmbench_mistral": "[INST]", "md_judge": "UNSAFE CONTENT", "strong_reject": "scale from 1 to 5",
             "strong_reject_rubric": "1.b <answer", "jailbreakbench": "<BEGIN RESPONSE>", "advprefix": "1_violating", "xstest": "indirect_refusal",
             "intention_analysis": "[Question]", "aegis_guard": "UNSAFE CONTENT"}  # fmt: skip
    assert marks.get(kind, "Question") in text


@pytest.mark.slow
def test_a_judge_is_loaded_once_and_asked_once(kind, standing, monkeypatch):
    if kind not in ("harmbench", "xstest"):
        pytest.skip("the same for all")
    one = judge(f"zoo:{kind}@{standing}")
    batches = []
    loads = zoo._loaded.cache_info().misses
    real = zoo.Zoo._judge_batch

    def counting(self, model, pairs):
        batches.append(len(pairs))
        return real(self, model, pairs)

    monkeypatch.setattr(zoo.Zoo, "_judge_batch", counting)
    many = one(rows(40), [PLAIN] * 40)
    assert batches == [16, 16, 8] and len(many) == 40
    assert one(rows(41), [PLAIN] * 41)[:40] == many and batches == [16, 16, 8, 1]
    assert zoo._loaded.cache_info().misses - loads <= 1


@pytest.mark.slow
def test_one_that_fails_is_an_error_and_spoils_no_other(kind, standing, monkeypatch):
    if kind != "harmbench":
        pytest.skip("the same for all")
    made = held(kind, standing)
    monkeypatch.setattr(made, "judge", lambda chats: (_ for _ in ()).throw(RuntimeError("boom")) if "9" in str(chats) else {"p_harmful": [0.9] * len(chats)})  # fmt: skip
    one = judge(f"zoo:{kind}@{standing}")
    found = one(rows(12), ["again"] * 12)
    assert [j.outcome for j in found] == ["complied"] * 9 + ["error"] + ["complied"] * 2
    monkeypatch.undo()
    assert one(rows(12), ["again"] * 12)[9].outcome == "refused"  # an error is asked again


@pytest.mark.slow
def test_a_judge_of_harm_says_nothing_about_refusals(stands):
    samples = rows(2, risk="over_refusal")
    found = {}
    for name in ("harmbench", "xstest"):
        judgements = judge(f"zoo:{name}@{stands(name)}")(samples, [ZEBRA, PLAIN])
        found[name] = [one.outcome for one in judgements]
    assert found == {"harmbench": ["complied", "unparsed"], "xstest": ["complied", "refused"]}


def test_code_in_a_folder_is_not_run(stands, tmp_path):
    """judgezoo itself trusts the code of MD-Judge's folder."""
    folder = shutil.copytree(stands("md_judge"), tmp_path / "md_judge")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        k: "evil.Evil" for k in ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert judge(f"zoo:md_judge@{folder}")(rows(1), [ZEBRA])[0].outcome == "complied"
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_file_is_judged_and_the_memory_freed(stands):
    folder = stands("harmbench")
    file = [{"q": "Why?", "a": a} for a in (ZEBRA, PLAIN, GNU)]
    table = score_file(file, prompt="q", response="a", judges=f"zoo:harmbench@{folder}")
    assert list(table["outcome"]) == ["complied", "refused", "unparsed"]
    assert table["score"][0] > 0.85
    assert zoo._loaded.cache_info().currsize == 0


def test_the_version_holds_the_weights(stands, tmp_path):
    folder = stands("harmbench")
    other = stand_in(tmp_path / "b", "llama", "No", "Yes", "Perhaps")
    first, second = (open_judge(f"zoo:harmbench@{f}").version for f in (folder, other))
    assert first != second and "judgezoo-0.1" in first


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("zoo:gpt", "unknown_zoo_judge"),
        ("zoo:", "unknown_zoo_judge"),
        ("zoo:pair", "unknown_zoo_judge"),
        ("zoo:xstest", "zoo_judge_needs_model"),
    ],
)
def test_a_wrong_name_is_reported(name, code):
    with raises_code(code):
        open_judge(name)


def test_without_the_hub_the_model_is_not_found():
    with pytest.raises(FileNotFoundError):
        judge("zoo:harmbench")(rows(1), ["a"])


def test_a_folder_of_another_kind_is_refused(folders):
    with raises_code("not_a_harmbench_classifier"):
        judge(f"zoo:harmbench@{folders['llama']}")(rows(1), ["a"])


def test_without_judgezoo_the_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(zoo.util, "find_spec", lambda name: None)
    with raises_code("package_missing"):
        open_judge("zoo:harmbench")
