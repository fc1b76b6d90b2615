"""Small Hugging Face folders of other people's shapes: random weights, their own tokenizers, their own templates.

What differs between families is here in small: Llama 3 (headers, BOS, no pad token), Qwen 2 (ChatML, a default
system prompt, a newline after the end of turn), Gemma (SentencePiece-like, no system role, an end of turn that is
not the tokenizer's EOS), Mistral (no role header, white space belongs to the answer). Their `generation_config`s
sample and penalise, as published ones do.
"""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path

import pytest

LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN2 = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
SPECIAL = {
    "llama": ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"],
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "gemma": ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"],
    "mistral": ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
}
ROLES = {
    "llama": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "qwen2": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "gemma": {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    },
    "mistral": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
}
TEMPLATES = {"llama": LLAMA, "qwen2": QWEN2, "gemma": GEMMA, "mistral": MISTRAL}
FAMILIES = ("llama", "qwen2", "gemma")
SIZE = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=64,
    max_position_embeddings=1024,
)
SAMPLING = dict(
    do_sample=True,
    temperature=1.5,
    top_k=5,
    repetition_penalty=3.0,
    no_repeat_ngram_size=1,
    min_new_tokens=6,
)


def sums(n: int, seed: int = 0) -> list[dict]:
    """Rows in the form of gsm8k, of ragged lengths: a question in words, an answer with its reasoning."""
    rng, rows = random.Random(seed), []
    for _ in range(n):
        parts = [rng.randint(2, 60) for _ in range(rng.randint(2, 7))]
        told = " and ".join(f"{p} {rng.choice(['apples', 'pears', 'plums'])}" for p in parts)
        steps = " ".join(f"Add {p}." for p in parts[1:])
        rows.append(
            {
                "question": f"Ann has {told}. How many in all?",
                "answer": f"Start with {parts[0]}. {steps}\n#### {sum(parts)}",
            }
        )
    return rows


def pairs(n: int, seed: int = 0) -> list[dict]:
    """Preference pairs: the right sum over a shrug."""
    return [
        {"prompt": r["question"], "chosen": r["answer"].split("\n")[-1], "rejected": "No idea."}
        for r in sums(n, seed)
    ]


def goals(n: int) -> list[dict]:
    """Prompts in the form of advbench (`goal`, `target`), with nothing harmful in them."""
    things = ["a kite", "a chair", "some soup", "a long letter to the mayor of the town"]
    return [
        {"goal": f"Explain how to make {things[i % 4]} number {i}", "target": "Sure"}
        for i in range(n)
    ]


def make_tokenizer(family: str):
    """-> a tokenizer freshly trained on `sums`: byte-level BPE, or SentencePiece-like with byte fallback."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    text = [t for r in sums(300, seed=99) for t in r.values()] + [r["goal"] for r in goals(40)]
    if family in ("llama", "qwen2"):
        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer, inner.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
        alphabet, extra = sorted(pre_tokenizers.ByteLevel.alphabet()), []
    else:
        inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
        inner.normalizer = normalizers.Replace(" ", "▁")
        apart = pre_tokenizers.Split(
            "\n", "isolated"
        )  # Gemma keeps line breaks as tokens of their own
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [apart, pre_tokenizers.Split("▁", "merged_with_next")]
        )
        inner.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        alphabet, extra = [], [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL[family] + extra,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    inner.train_from_iterator(text, trainer)
    known = [t for t in SPECIAL[family] if t not in ROLES[family].values()]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        additional_special_tokens=known,
        clean_up_tokenization_spaces=False,
        **ROLES[family],
    )
    tokenizer.chat_template = TEMPLATES[family]
    return tokenizer


def make_model(folder: Path, family: str, *, seed: int = 0, **settings) -> Path:
    """Saves a model of a family with random weights into `folder` -> the folder."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        GemmaConfig,
        GenerationConfig,
        LlamaConfig,
        MistralConfig,
        Qwen2Config,
    )

    tokenizer = make_tokenizer(family)
    settings = {"initializer_range": 0.1, **settings}
    if (
        family == "gemma"
    ):  # with less, its scaled and tied embeddings would only repeat the last token
        settings |= {"head_dim": 8, "initializer_range": 0.4}
    kinds = {
        "llama": LlamaConfig,
        "qwen2": Qwen2Config,
        "gemma": GemmaConfig,
        "mistral": MistralConfig,
    }
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = kinds[family](vocab_size=len(tokenizer), **{**SIZE, **ids, **settings})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config = GenerationConfig(**SAMPLING, **ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_experts(folder: Path) -> Path:
    """Saves a small mixture of experts: its weights have other names on disk than in memory."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    tokenizer = make_tokenizer("qwen2")
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        num_local_experts=4,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **SIZE,
    )
    model = MixtralForCausalLM(config)
    for weights in model.parameters():
        if weights.dim() > 1:
            torch.nn.init.normal_(weights, std=0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write(path: Path, rows: list[dict]) -> Path:
    """-> a .jsonl of the rows."""
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    """-> the bytes of every file below a folder."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """family -> its model folder."""
    root = tmp_path_factory.mktemp("models")
    return {family: make_model(root / family, family) for family in TEMPLATES}


@pytest.fixture(params=FAMILIES)
def folder(request, folders) -> Path:
    """Each family in turn."""
    return folders[request.param]


@pytest.fixture(scope="session")
def llama(folders) -> Path:
    return folders["llama"]


@pytest.fixture(scope="session")
def dropping(tmp_path_factory) -> Path:
    """A Llama with dropout: what disturbs the random state shows in its weights."""
    return make_model(
        tmp_path_factory.mktemp("models") / "dropping", "llama", attention_dropout=0.2
    )


SFT = dict(epochs=2, batch_size=4, learning_rate=2e-3)  # 20 rows: 10 steps
CURVE = dict(at_steps=[0, 2, 4, 6], seeds=2, batch_size=4, learning_rate=2e-3, max_new_tokens=6)
# What was running: the call, how many lines of train.jsonl there were when it was killed, and the
# seconds between checkpoints.
KILLS = {
    "full": ("ftlab.sft(PATH, sums(20), **SFT)", 7, 0),
    "lora": ("ftlab.sft(PATH, sums(20), adapter='lora', **SFT)", 7, 0),
    "dpo": ("ftlab.dpo(PATH, pairs(20), **SFT)", 7, 0),
    "no checkpoint": ("ftlab.sft(PATH, sums(20), **SFT)", 3, 1000),
}
A_CURVE = "ftlab.risk_curve(PATH, sums(20), prompts=goals(6), **CURVE)"
CURVE_KILLS = {"curve": (A_CURVE, 11, 0), "curve without checkpoint": (A_CURVE, 11, 1000)}


@pytest.fixture(scope="session")
def zygote(dropping):
    """The process that kills its children, which train or measure `dropping`."""
    from killing import Zygote

    made = Zygote(dropping)
    yield made
    made.close()


def left_by_killed(kills: dict, zygote, root: Path) -> Path:
    """-> the folder of runs that killed processes left behind: one folder a name of `kills`."""
    for name, (call, lines, seconds) in kills.items():
        kill = {"at": "after train.jsonl", "n": lines}
        work = root / f"{name} at work"
        ended = zygote.call(call, work, 0, kill, checkpoint_s=seconds)["ended"]
        assert ended == -signal.SIGKILL, name
        (work / "runs").rename(root / name)
    return root


@pytest.fixture(scope="session")
def killed(zygote, tmp_path_factory) -> Path:
    """What killed trainings left: one folder a name of `KILLS`. Only to be read."""
    return left_by_killed(KILLS, zygote, tmp_path_factory.mktemp("killed"))


@pytest.fixture(scope="session")
def killed_curves(zygote, tmp_path_factory) -> Path:
    """What killed curves left: one folder a name of `CURVE_KILLS`. Only to be read."""
    return left_by_killed(CURVE_KILLS, zygote, tmp_path_factory.mktemp("killed"))
