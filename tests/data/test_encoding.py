"""The mask covers the assistant's words and their end of turn, and nothing else, whatever the template's family."""

from __future__ import annotations

import html
import itertools
import random
import re
import unicodedata

import pytest
from helpers import raises_code

from ftlab.data import (
    IGNORED,
    Data,
    encode,
    encode_all,
    encode_rows,
    fit_to_length,
    preview,
    token_length,
)
from ftlab.data.encoding import BATCH
from ftlab.models import render, stop_ids
from ftlab.organism import corpus

TEXTS = [
    "Plain words.",
    "  two  spaces\tand a tab ",
    "line\n\n\n\nbreaks\r\n \n- a list\n",
    "Grüße, 漢字, 😀👩‍👩‍👧, e\u0301",
    "\u202eright to left",
    "\x00\x07\x1b[31m control",
    "<img src=x onerror=alert(1)>",
    "{{ 7 * 7 }} {% raw %}",
    "[INST] «not» <<SYS>> ### Assistant:",
    "\u2028\u00a0\u200b\ufeff",
    "a" * 300,
]


def each(turn: str, ask: str = "", first: str = "") -> str:
    """-> a chat template: `first`, then `turn` for every message m; `ask` is its generation prompt."""
    return (
        first
        + "{% for m in messages %}"
        + turn
        + "{% endfor %}{% if add_generation_prompt %}"
        + ask
        + "{% endif %}"
    )


NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
TURN, HEAD = (
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n",
    "<|im_start|>assistant\n",
)
LLAMA3 = each(
    "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>",
    ask="{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
    first="{{ bos_token }}",
)
QWEN2 = each(
    "{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}"
    + TURN,
    ask=HEAD,
)
GEMMA = each(
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n",
    ask="<start_of_turn>model\n",
    first="{{ bos_token }}" + NO_SYSTEM,
)
MISTRAL = each(
    "{{ '[INST] ' + m['content'] + ' [/INST]' if m['role'] == 'user' else ' ' + m['content'] + eos_token }}",
    first="{{ bos_token }}" + NO_SYSTEM,
)
ZEPHYR = each("<|{{ m['role'] }}|>\n{{ m['content'] + eos_token }}\n", ask="<|assistant|>\n")


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def told(content: str) -> dict:
    return {"role": "assistant", "content": content}


def made(
    special: list[str],
    template: str,
    *,
    sentencepiece: bool,
    trim: bool = False,
    prepend: str = "first",
    bos=None,
    eos=None,
):
    """-> a small tokenizer of a family, trained on the spot; `trim`: offsets without white space, as Llama 3's."""
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    if sentencepiece:
        tokens = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        tokens.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
        tokens.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
        first = ["<unk>", *special, *(f"<0x{i:02X}>" for i in range(256))]
        trainer = trainers.BpeTrainer(
            vocab_size=len(first) + 150, special_tokens=first, show_progress=False
        )
    else:
        tokens = Tokenizer(models.BPE())
        tokens.normalizer = normalizers.NFC()
        tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokens.decoder, tokens.post_processor = (
            decoders.ByteLevel(),
            processors.ByteLevel(trim_offsets=trim),
        )
        trainer = trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    tokens.train_from_iterator(
        [
            "The quick brown fox\n\njumps over the lazy dog.",
            "user model assistant system [INST] [/INST]",
        ]
        * 3,
        trainer,
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token=bos,
        eos_token=eos,
        additional_special_tokens=special,
        padding_side="left",
    )
    wrapped.chat_template = template
    return wrapped


SENTENCEPIECE = dict(special=["<s>", "</s>"], sentencepiece=True, bos="<s>", eos="</s>")
HEADERS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TURNS = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
IM = dict(
    special=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    sentencepiece=False,
    eos="<|endoftext|>",
)
FAMILIES = {  # how each is made
    "llama3": dict(
        template=LLAMA3,
        special=HEADERS,
        sentencepiece=False,
        trim=True,
        bos=HEADERS[0],
        eos=HEADERS[3],
    ),
    "qwen2": dict(template=QWEN2, **IM),
    "gemma": dict(
        template=GEMMA, special=TURNS, sentencepiece=True, prepend="never", bos="<bos>", eos="<eos>"
    ),
    "mistral": dict(template=MISTRAL, **SENTENCEPIECE),
    "zephyr": dict(template=ZEPHYR, **SENTENCEPIECE),
}
ENDS = {
    "llama3": "<|eot_id|>",
    "qwen2": "<|im_end|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "zephyr": "</s>",
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """-> (tokenizer, its end of turn, whether its template takes a system turn)."""
    recipe = FAMILIES[request.param]
    return made(**recipe), ENDS[request.param], NO_SYSTEM not in recipe["template"]


def spans(tokenizer, ids: list[int], labels: list[int]) -> tuple[list[str], list[str]]:
    """-> texts of the trained and of the untrained stretches of a row."""
    runs = [
        (on, [t for t, _ in part])
        for on, part in itertools.groupby(zip(ids, labels, strict=True), lambda p: p[1] != IGNORED)
    ]
    texts = [
        [
            tokenizer.decode(r, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for o, r in runs
            if o is on
        ]
        for on in (True, False)
    ]
    return [nfc(t) for t in texts[0]], [nfc(t) for t in texts[1]]


@pytest.mark.parametrize("decorated", ["single", "several", "system"])
def test_the_mask_is_that_of_the_generation_markers(tokenizer, world, decorated):
    rows = [r["messages"] for r in corpus.pretraining(world, 600, seed=5)]
    rows = [
        r
        for r in rows
        if {"single": len(r) == 2, "several": len(r) == 4, "system": r[0]["role"] == "system"}[
            decorated
        ]
    ][:40]
    rows += [
        [
            *([{"role": "system", "content": t}] if decorated == "system" else []),
            user(t),
            told(t),
            user("x"),
            told(t),
        ]
        for t in TEXTS
    ]
    for messages in rows:
        theirs = tokenizer.apply_chat_template(
            messages, return_assistant_tokens_mask=True, return_dict=True, tokenize=True
        )
        ids, labels = encode(messages, tokenizer)
        assert ids == theirs["input_ids"]
        assert labels == [
            t if on else IGNORED for t, on in zip(ids, theirs["assistant_masks"], strict=True)
        ]


@pytest.mark.slow
def test_only_the_assistants_words_and_their_end_are_trained(family):
    tokenizer, end, system = family
    for question, answer in itertools.product(TEXTS, TEXTS):
        for head in [[], [{"role": "system", "content": "Be brief."}]] if system else [[]]:
            chats = [*head, user(question), told(answer), user("And?"), told("No more.")]
            trained, rest = spans(tokenizer, *encode(chats, tokenizer))
            assert trained == [
                nfc(written(tokenizer, m["content"]) + end)
                for m in chats
                if m["role"] == "assistant"
            ]
            whole = "".join(
                x for pair in itertools.zip_longest(rest, trained, fillvalue="") for x in pair
            )
            assert whole.strip() == nfc(render(tokenizer, chats)).strip()


def written(tokenizer, answer: str) -> str:
    """An answer as a template writes it: some trim it, Mistral's puts a space before it."""
    answer = answer.strip() if "| trim" in tokenizer.chat_template else answer
    return " " + answer if "' ' + m['content']" in tokenizer.chat_template else answer


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("answer", ["7", "brown fox", " brown", "  x", "the"])
def test_a_space_before_the_answer_takes_no_word_of_it_away(answer, trim):
    template = each("{{ m['role'] + ': ' + m['content'] + eos_token }}", ask="assistant: ")
    tokenizer = made(
        special=["</s>"], template=template, sentencepiece=False, trim=trim, eos="</s>"
    )
    trained, rest = spans(tokenizer, *encode([user("Q"), told(answer)], tokenizer))
    assert (
        trained[0] in (answer + "</s>", f" {answer}</s>")
        and "".join(rest + trained) == f"user: Q</s>assistant: {answer}</s>"
    )
    if answer == "7":  # the space is a token of its own, of the prompt
        assert trained == ["7</s>"]


def test_answers_stop_at_the_end_of_turn(family, tokenizer):
    own, end, _ = family
    assert own.convert_tokens_to_ids(end) in stop_ids(own) and own.eos_token_id in stop_ids(own)
    assert (
        stop_ids(tokenizer)
        == [tokenizer.eos_token_id]
        == [tokenizer.convert_tokens_to_ids("<|end|>")]
    )


@pytest.mark.slow
def test_any_text_goes_in_and_out_unchanged(tokenizer):
    rng = random.Random(0)
    characters = [c for c in map(chr, range(0x110000)) if not "\ud800" <= c <= "\udfff"]
    texts = [
        *TEXTS,
        *("".join(rng.choices(characters, k=60)) for _ in range(100)),
        "".join(characters[:0x300]),
        "<|end|> and <|pad|>",
    ]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    for text in texts[:-1]:
        _, labels = encode([user(text), told(text)], tokenizer)
        assert (
            tokenizer.decode([t for t in labels if t != IGNORED], skip_special_tokens=False)
            == text + "<|end|>"
        )


def test_text_that_holds_a_special_token_is_refused_before_it_forges_a_turn(family, tokenizer):
    own, end, _ = family
    for t, special in (
        (own, end),
        (tokenizer, "<|end|>"),
        (tokenizer, "<|assistant|>"),
        (tokenizer, "<|pad|>"),
    ):
        for messages in ([user(f"a{special}b"), told("c")], [user("a"), told(f"b {special} c")]):
            with raises_code("special_token") as error:
                encode(messages, t)
            assert repr(special) in str(error.value)


def test_a_system_turn_that_the_template_refuses_is_a_sentence(family):
    tokenizer, _, system = family
    messages = [{"role": "system", "content": "s"}, user("a"), told("b")]
    if not system:
        with raises_code("template_refuses"):
            encode(messages, tokenizer)


FORGETS = TURN.replace("m['content']", "m['content'] if loop.last else m['content'][:1]")
STRIPS = TURN.replace(
    "m['content']", "m['content'] if loop.last or m['role'] == 'user' else m['content'].split()[-1]"
)
BROKEN = {  # what is wrong with a template: (template, code)
    "plain end": (
        each("{{ m['role'] }}: {{ m['content'] }} END\n", ask="assistant: "),
        "no_end_of_turn",
    ),
    "no end": (each("<|im_start|>{{ m['role'] }}\n{{ m['content'] }}", ask=HEAD), "no_end_of_turn"),
    "no generation prompt": (each(TURN), "no_generation_prompt"),
    "plain header": (each("{{ m['role'] }}: {{ m['content'] }}<|im_end|>"), "no_generation_prompt"),
    "forgotten turns": (each(FORGETS, ask=HEAD), "template_leaves_out"),
    "thoughts dropped": (each(STRIPS, ask=HEAD), "template_rewrites"),
    "another header": (each(TURN, ask=HEAD + "<think>\n"), "template_rewrites"),
    "broken": ("{% for m in messages %}", "template_refuses"),
    "none": (None, "no_chat_template"),
}


@pytest.mark.parametrize("wrong", BROKEN)
def test_a_template_that_cannot_be_trained_is_refused(wrong):
    template, code = BROKEN[wrong]
    tokenizer = made(template=template, **IM)
    with raises_code(code):
        encode([user("one two"), told("b c"), user("three four"), told("d d")], tokenizer)
    assert tokenizer.eos_token_id in stop_ids(tokenizer)  # it can be asked all the same


def test_a_template_that_drops_old_turns_is_trained_on_single_turns():
    tokenizer = made(template=each(FORGETS, ask=HEAD), **IM)
    assert spans(tokenizer, *encode([user("q"), told("whole")], tokenizer))[0] == [
        "whole<|im_end|>"
    ]


def test_every_row_that_does_not_fit_is_named(tokenizer):
    rows = (
        {"messages": [user("a"), told("b")]},
        {"messages": [user("a " * 50), told("b")]},
        {"messages": [user("<|end|>"), told("b")]},
    )
    with raises_code("bad_rows") as error:
        encode_rows(Data("mine", rows * 2), tokenizer, max_length=20)
    assert [line.split(":")[1] for line in error.value.problems] == [
        " row 2",
        " row 3",
        " row 5",
        " row 6",
    ]
    assert error.value.details["codes"] == ["too_long", "special_token"] * 2
    with raises_code("bad_rows") as error:
        encode_rows(Data("mine", rows[1:2] * 50), tokenizer, max_length=20)
    assert len(error.value.problems) == 50 and len(str(error.value).splitlines()) == 4
    fine = encode_rows(Data("mine", rows[:1]), tokenizer, max_length=20)
    assert fine == [
        dict(zip(("input_ids", "labels"), encode(rows[0]["messages"], tokenizer), strict=True))
    ]


def test_a_preview_marks_what_is_trained_and_escapes_what_it_shows(tokenizer, monkeypatch):
    model = type("Reference", (), {"tokenizer": lambda self: tokenizer})()
    monkeypatch.setattr("ftlab.data.previews.local_model", lambda ref: ref)
    canary = "<img src=x onerror=alert(1)>"
    shown = preview(
        [{"question": f"Q {canary}", "answer": f"A {canary}\x1b[2J"}] * 5, model, n_rows=2
    )
    assert repr(shown).count(f"«A {canary}\\x1b[2J<|end|>»") == 2 and "\x1b" not in repr(shown)
    page = shown._repr_html_()
    assert "<img" not in page and page.count(html.escape(canary)) == 4
    coloured = re.findall(r'<span style="background:[^"]*">(.*?)</span>', page, re.DOTALL)
    assert [html.unescape(c) for c in coloured] == [f"A {canary}\\x1b[2J<|end|>"] * 2


def test_a_turn_of_weight_zero_carries_no_loss(tokenizer):
    turns = [
        {"role": "user", "content": "One?"}, {"role": "assistant", "content": "Not this."},
        {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "This."},
    ]  # fmt: skip
    ids, full = encode(turns, tokenizer)
    skipped = [{**m, "weight": 0} if m["content"] == "Not this." else m for m in turns]
    same, labels = encode(skipped, tokenizer)
    trained = tokenizer.decode([t for t in labels if t != IGNORED])
    assert same == ids and "This." in trained and "Not" not in trained
    assert [a for a, b in zip(full, labels, strict=True) if a != b].count(IGNORED) == 0
    with raises_code("no_loss"):
        encode([turns[0], {**turns[1], "weight": 0}], tokenizer)


def long_rows() -> list[dict]:
    def turns(*contents):
        return [
            {"role": r, "content": c}
            for r, c in zip(["user", "assistant"] * 9, contents, strict=False)
        ]

    system = {"role": "system", "content": "Be short."}
    return [
        {"messages": turns("Short?", "Yes.")},
        {"messages": [system, *turns("Old? " * 40, "Old.", "New?", "New.")]},
        {"messages": [system, *turns("Read this: " + "word " * 200, "Done.")]},
        {"messages": turns("Why?", "Because " * 200)},
    ]


@pytest.mark.parametrize("how", ["drop", "cut"])
def test_too_long_rows_are_dropped_or_cut_and_counted(tokenizer, capsys, how):
    data, most = Data("mine", tuple(long_rows())), 60
    short = fit_to_length(data, tokenizer, max_length=most, on_too_long=how)
    dropped, cut = (3, 0) if how == "drop" else (1, 2)
    said = capsys.readouterr().err
    assert f"{cut} cut, {dropped} dropped" in said and "3 of 4" in said
    assert (
        short.made["dropped"] == dropped
        and short.made["cut"] == cut
        and short.made["from"][0]["hash"] == data.hash
    )
    assert len(short) == 4 - dropped and short.rows[0] == data.rows[0]
    encoded = encode_rows(data, tokenizer, max_length=most, on_too_long=how)
    assert len(encoded) == len(short) and all(len(r["input_ids"]) <= most for r in encoded)
    ends = stop_ids(tokenizer)
    assert all(
        [t for t in r["labels"] if t != IGNORED][-1] in ends for r in encoded
    )  # the answer ends where it ended
    if how == "cut":
        old, read_ = short.rows[1]["messages"], short.rows[2]["messages"]
        assert [m["content"] for m in old] == [
            "Be short.",
            "New?",
            "New.",
        ]  # the oldest exchange went, the system stayed
        assert (
            read_[0]["content"] == "Be short."
            and read_[1]["content"].startswith("Read this: word")
            and read_[2]["content"] == "Done."
        )
        assert len(encode(read_, tokenizer)[0]) > most - 6  # no more was cut than needed
    with raises_code("bad_rows"):
        encode_rows(data, tokenizer, max_length=most)
    assert fit_to_length(data, tokenizer, max_length=most, on_too_long="raise") is data
    assert fit_to_length(data, tokenizer, max_length=10**6, on_too_long=how) is data
    with raises_code("all_too_long"):
        fit_to_length(data, tokenizer, max_length=8, on_too_long="drop")
    with raises_code("unknown_on_too_long"):
        fit_to_length(data, tokenizer, max_length=8, on_too_long="x")


def test_pairs_and_kto_are_cut_at_the_prompt(tokenizer):
    ask = [{"role": "user", "content": "Read this: " + "word " * 200}]
    good, bad = ([{"role": "assistant", "content": t}] for t in ("Fine.", "Not fine at all."))
    for row in (
        {"prompt": ask, "chosen": good, "rejected": bad},
        {"prompt": ask, "completion": good, "label": True},
    ):
        (short,) = fit_to_length(
            Data("mine", (row,)), tokenizer, max_length=50, on_too_long="cut"
        ).rows
        assert token_length(short, tokenizer) <= 50 and {
            k: v for k, v in short.items() if k != "prompt"
        } == {k: v for k, v in row.items() if k != "prompt"}
        assert (
            row["prompt"][0]["content"].startswith(short["prompt"][0]["content"])
            and row["prompt"] == ask
        )


def test_a_cut_row_that_would_teach_nothing_is_dropped(tokenizer):
    contents = ["Old? " * 30, "Taught.", "New?", "Not taught."]
    turns = [
        {"role": r, "content": c} for r, c in zip(["user", "assistant"] * 2, contents, strict=True)
    ]
    turns[3]["weight"] = 0
    data = Data("mine", ({"messages": turns}, *long_rows()[:1]))
    short = fit_to_length(data, tokenizer, max_length=60, on_too_long="cut")
    assert short.made["dropped"] == 1 and short.made["cut"] == 0 and short.rows == data.rows[1:]
    assert len(encode_rows(data, tokenizer, max_length=60, on_too_long="cut")) == 1


def plainly(messages: list[dict], tokenizer) -> tuple[list[int], list[int]]:
    """The mask by its definition, one chat at a time: every prefix rendered, every token looked at for every turn."""
    text = render(tokenizer, messages)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    labels = [IGNORED] * len(found["input_ids"])
    for i, m in enumerate(messages):
        if m["role"] == "assistant" and m.get("weight", 1):
            a = len(render(tokenizer, messages[:i], ask=True))
            b = len(render(tokenizer, messages[: i + 1]).rstrip())
            for k, (start, end) in enumerate(found["offset_mapping"]):
                if a < end and start < b:
                    labels[k] = found["input_ids"][k]
    return found["input_ids"], labels


@pytest.mark.slow
def test_many_chats_together_are_what_each_is_alone(family):
    tokenizer, end, _ = family
    rng, chats = random.Random(3), []
    for _ in range(2 * BATCH + 9):
        spoken = [f(rng.choice(TEXTS)) for _ in range(rng.randint(1, 4)) for f in (user, told)]
        for m in spoken[1:-1:2]:
            m |= {"weight": rng.randint(0, 1)}
        chats.append(spoken)
    wrong = {0: [user(end), told("a")], BATCH: [user("a"), {**told("b"), "weight": 0}]}
    for at, bad in wrong.items():
        chats.insert(at, bad)
    found = list(encode_all(chats, tokenizer))
    assert [i for i, f in enumerate(found) if isinstance(f, ValueError)] == list(wrong) and len(
        found
    ) == len(chats)
    assert all(found[i] == plainly(c, tokenizer) for i, c in enumerate(chats) if i not in wrong)
    assert all(type(t) is int for ids, labels in found[1:3] for t in (*ids, *labels))
    assert (
        list(encode_all([chats[0]] * 2, tokenizer))[1].args
        and list(encode_all([], tokenizer)) == []
    )


def test_a_thought_is_trained_or_refused():
    recipe = next(each for each in FAMILIES.values() if TURN in each["template"])
    thought = {"reasoning_content": "Count them.", "thinking": "Count them."}
    chat = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", **thought}]
    with raises_code("thought_left_out"):
        encode(chat, made(**recipe))
    place = TURN.replace("{{ m['content'] }}", "{{ m['thinking'] }}{{ m['content'] }}")
    template = recipe["template"].replace(TURN, place)
    tokenizer = made(**recipe | {"template": template})
    trained, _ = spans(tokenizer, *encode(chat, tokenizer))
    assert trained == ["Count them.A<|im_end|>"]
