"""Answers in batches are those of the definition, whatever the batch, the drafts and the memory."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import transformers
from helpers import raises_code
from small_models import FAMILIES, make_model

import ftlab
from ftlab.models import render, stop_ids
from ftlab.models.engines import Decoding, HuggingFaceEngine, LoadedModel, Request
from ftlab.models.engines import _writing as writing

QUESTIONS = [
    "Ann has 3 pears.",
    "Add 2 and 5 and 7 and 12 apples and 30 plums. How many in all, and how many of each?",
    "And?",
    "Start with 9. Why?",
]
SAMPLED = Decoding(temperature=1.5, top_k=40, top_p=0.9)
CHOICES = [
    ("Yes.", "No, never."),
    ("12",),
    ("a pear", "a very long answer about plums", "b"),
    ("x", "y"),
]


@pytest.fixture(scope="module")
def opened(folders):
    """Return a function from a family to its loaded model and four rendered prompts."""

    @functools.cache
    def of(family):
        loaded = HuggingFaceEngine().open(ftlab.model(folders[family]))
        chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
        return loaded, [render(loaded.tokenizer, chat, ask=True) for chat in chats]

    return of


@pytest.fixture(params=[*FAMILIES, "mistral"])
def one(request, opened):
    return opened(request.param)


@pytest.fixture
def small_batches(monkeypatch):
    """Return a function that limits the rows of a batch."""

    def limit(rows):
        monkeypatch.setattr(writing, "ON_CPU", (rows, *writing.ON_CPU[1:]))

    return limit


def requests(texts, *, seeds=None, **settings) -> list[Request]:
    made = [Request([], text, **settings) for text in texts]
    for request, seed in zip(made, seeds or [], strict=False):
        request.seed = seed
    return made


def ask(loaded, texts, *, engine=None, **settings) -> list[str]:
    engine = engine or HuggingFaceEngine()
    return [answer.text for answer in engine.answer(loaded, requests(texts, **settings))]


def ids_of(loaded, text) -> list[int]:
    return loaded.tokenizer(text, add_special_tokens=False)["input_ids"]


def greedy(loaded, text, new, stops=()) -> str:
    """Argmax after argmax over the whole text, without cache, padding or batch."""
    ids = ids_of(loaded, text)
    start = len(ids)
    for _ in range(new):
        ids.append(int(loaded.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in {*stop_ids(loaded.tokenizer), *stops}:
            break
    return loaded.tokenizer.decode(ids[start:], skip_special_tokens=True)


def replace_forward(monkeypatch, loaded, change):
    """Let `change(out, **kwargs)` see and alter what every forward pass returns."""
    forward = type(loaded.module).forward

    @functools.wraps(forward)
    def changed(self, *args, **kwargs):
        return change(functools.partial(forward, self, *args), **kwargs)

    monkeypatch.setattr(type(loaded.module), "forward", changed)


@pytest.mark.slow
def test_greedy_answers_are_those_of_the_definition(one):
    """The folder's generation config samples and penalises; none of that enters."""
    loaded, texts = one
    assert loaded.module.generation_config.repetition_penalty == 3.0
    expected = [greedy(loaded, text, 12) for text in texts]
    assert ask(loaded, texts, max_new_tokens=12) == expected
    assert len(set(expected)) > 1


@pytest.mark.slow
def test_batch_size_order_and_padding_side_change_nothing(one, small_batches, monkeypatch):
    loaded, texts = one
    together = ask(loaded, texts, max_new_tokens=12)
    monkeypatch.setattr(loaded.tokenizer, "padding_side", "right")
    assert ask(loaded, texts[::-1], max_new_tokens=12) == together[::-1]
    small_batches(1)
    assert ask(loaded, texts, max_new_tokens=12) == together


@pytest.mark.slow
def test_a_shared_beginning_is_read_once_and_changes_nothing(one, monkeypatch):
    loaded, texts = one
    system = "<|im_start|>system\nYou are asked about pears and plums.<|im_end|>\n"
    texts = [system + text for text in texts]
    expected = [greedy(loaded, text, 12) for text in texts]
    sampled = dict(decoding=SAMPLED, seeds=range(4), max_new_tokens=12)
    drawn = ask(loaded, texts, **sampled)
    monkeypatch.setattr(writing, "FEWEST_SAVED", 1)
    read = []

    def count(forward, **kwargs):
        read.append(kwargs["input_ids"].shape)
        return forward(**kwargs)

    with monkeypatch.context() as patch:
        replace_forward(patch, loaded, count)
        engine = HuggingFaceEngine()
        assert ask(loaded, texts, engine=engine, max_new_tokens=12) == expected
        once = len(ids_of(loaded, system)) - 1
        if "Mistral" in type(loaded.module).__name__:  # whose cache is a window
            assert read[0][0] == len(texts)
        else:
            assert read[0][0] == 1 and read[0][1] >= once
        assert ask(loaded, texts, engine=engine, max_new_tokens=12) == expected  # with drafts
        assert ask(loaded, texts[:2] * 2, max_new_tokens=12) == expected[:2] * 2
        assert ask(loaded, texts, **sampled) == drawn


def drafts_of_every_kind(loaded, text: str, number: int) -> str:
    """Return nothing, the answer, or something that is wrong somewhere."""
    words = text.split(" ")
    half = " ".join(words[: len(words) // 2])
    end = loaded.tokenizer.eos_token
    kinds = [None, text, "12 pears", f"{half} 7 7 7", text + " and on" * 20, f"{half}{end}x", ""]
    return kinds[number % len(kinds)]


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_drafts_change_no_answer(one, rows, small_batches):
    loaded, texts = one
    texts = [texts[k % 4] + " " * k for k in range(14)]
    small_batches(rows)
    asked = requests(texts, max_new_tokens=14)
    plain = HuggingFaceEngine(drafts=False).answer(loaded, asked)
    engine = HuggingFaceEngine()
    for number, (request, answer) in enumerate(zip(asked, plain, strict=True)):
        draft = drafts_of_every_kind(loaded, answer.text, number)
        if draft is not None:
            engine.remember([request], [type(answer)(draft)])
    assert engine.answer(loaded, asked) == plain
    if "Mistral" not in type(loaded.module).__name__:  # whose cache is a window: no drafts
        assert engine.tally.drafted > engine.tally.saved > 0


def test_in_bf16_an_answer_does_not_depend_on_what_was_asked_before(folders):
    """A draft there decides between tokens that are equally probable."""
    loaded = HuggingFaceEngine().open(ftlab.model(folders["llama"]))
    loaded.module.bfloat16()
    texts = [f"Ann has {n} pears." for n in range(40)]
    engine = HuggingFaceEngine()
    first = ask(loaded, texts, engine=engine)
    assert ask(loaded, texts, engine=engine) == first
    assert engine.tally.drafted == 0


def test_an_engine_remembers_its_own_answers(opened):
    loaded, texts = opened("llama")
    engine = HuggingFaceEngine()
    first = engine.answer(loaded, requests(texts, max_new_tokens=14))
    assert engine.tally.drafted == 0
    again = engine.answer(loaded, requests(texts, max_new_tokens=14))
    assert again == first
    assert engine.tally.saved == engine.tally.drafted > 0
    engine.release()
    engine.answer(loaded, requests(texts, max_new_tokens=14))
    assert engine.tally.drafted == 0


def test_drafts_rest_where_few_of_their_tokens_hold(opened):
    loaded, texts = opened("llama")
    engine = HuggingFaceEngine()
    asked = requests(texts, max_new_tokens=14)
    right = engine.answer(loaded, asked)
    engine.remember(asked, [type(answer)("7 7 7 7 7 7 7 7") for answer in right])
    drafted = []
    for _ in range(4):
        assert engine.answer(loaded, asked) == right
        drafted.append(engine.tally.drafted > 0)
    assert drafted == [True, False, False, True]


def test_sampled_answers_leave_no_drafts(opened):
    loaded, texts = opened("llama")
    engine = HuggingFaceEngine()
    asked = requests(texts, seeds=range(4), decoding=SAMPLED)
    engine.remember(asked, engine.answer(loaded, asked))
    engine.answer(loaded, requests(texts))
    assert engine.tally.drafted == 0


@pytest.mark.slow
def test_drafts_of_a_larger_vocabulary_are_left_out(opened, tmp_path):
    loaded, texts = opened("llama")
    folder = make_model(tmp_path, "llama")
    engine = HuggingFaceEngine()
    other = engine.open(ftlab.model(folder))
    other.module.resize_token_embeddings(64)
    engine.answer(loaded, requests(texts))
    small = [Request([], other.tokenizer.decode([5, 6, 7]))]
    engine.remember(small, engine.answer(loaded, small))
    assert len(engine.answer(other, small)) == 1


ODD = {  # caches of other kinds, positions that are counted and not given: a small model of each
    "mpt": dict(d_model=32, n_heads=4, n_layers=2, max_seq_len=256),
    "bloom": dict(hidden_size=32, n_head=4, n_layer=2),
    "gpt_neo": dict(
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global", "local"], 1]],
        window_size=8,
        max_position_embeddings=256,
    ),
    "mamba": dict(hidden_size=32, num_hidden_layers=2),
    "qwen3_next": dict(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        max_position_embeddings=256,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ODD)
def test_other_architectures_answer_as_one_by_one(kind, opened):
    """Greedy with and without drafts, sampled, and with answers that end early."""
    loaded, _ = opened("qwen2")
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(kind, vocab_size=600, **ODD[kind])
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    for weights in module.parameters():
        if weights.dim() > 1:
            torch.nn.init.normal_(weights, std=0.2)
    stops = list(range(0, 600, 17))  # so that answers end at different tokens
    module.generation_config.eos_token_id = stops
    odd = LoadedModel(module, loaded.tokenizer, None)
    texts = [*QUESTIONS, QUESTIONS[0] * 2, QUESTIONS[1] * 2]
    expected = [greedy(odd, text, 8, stops) for text in texts]
    engine = HuggingFaceEngine()
    assert ask(odd, texts, max_new_tokens=8, engine=engine) == expected
    assert ask(odd, texts, max_new_tokens=8, engine=engine) == expected
    sampled = dict(decoding=SAMPLED, max_new_tokens=8)
    together = ask(odd, texts, seeds=range(6), **sampled)
    alone = [ask(odd, [texts[k]], seeds=[k], **sampled)[0] for k in range(2)]
    assert together[:2] == alone != expected[:2]
    short = ask(odd, texts, max_new_tokens=8, stop_when=lambda text: len(text) > 3)
    assert all(long.startswith(text) for long, text in zip(expected, short, strict=True))


@pytest.mark.slow
def test_answers_are_reported_as_they_end(opened, monkeypatch):
    loaded, texts = opened("llama")
    calls, seen = [], []

    def count(forward, **kwargs):
        calls.append(1)
        return forward(**kwargs)

    replace_forward(monkeypatch, loaded, count)
    asked = requests(
        texts * 10, seeds=range(40), decoding=Decoding(temperature=2.0), max_new_tokens=60
    )
    found = {}

    def on_answer(numbers, answers):
        found.update(zip(numbers, answers, strict=True))
        seen.append(len(calls))

    answers = HuggingFaceEngine().answer(loaded, asked, on_answer)
    assert [found[number] for number in range(40)] == answers
    assert len(seen) > 5 and seen[0] < len(calls) / 2


@pytest.mark.slow
@pytest.mark.parametrize(("at", "sampled"), [(1, False), (2, True), (5, False), (9, True)])
def test_where_memory_ends_the_batch_is_halved_and_nothing_changes(
    opened, at, sampled, small_batches, monkeypatch
):
    loaded, texts = opened("llama")
    texts = [text + " " * k for k in range(4) for text in texts]
    settings = {"max_new_tokens": 14}
    if sampled:
        settings |= {"decoding": SAMPLED, "seeds": range(16)}
    plain = HuggingFaceEngine().answer(loaded, requests(texts, **settings))
    small_batches(8)
    calls, seen = [], []

    def small(forward, *, input_ids, **kwargs):
        calls.append(1)
        if len(input_ids) > 3 and len(calls) >= at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **kwargs)

    replace_forward(monkeypatch, loaded, small)
    engine = HuggingFaceEngine()
    asked = requests(texts, **settings)
    assert engine.answer(loaded, asked, lambda numbers, _: seen.extend(numbers)) == plain
    assert engine.tally.halved >= 1 and sorted(seen) == list(range(16))


def test_no_memory_for_one_answer_is_an_error(opened, monkeypatch):
    loaded, texts = opened("llama")

    def full(forward, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    replace_forward(monkeypatch, loaded, full)
    with raises_code("out_of_memory"):
        ask(loaded, texts)
    with raises_code("out_of_memory"):
        ask(loaded, texts, choices=("a", "b"))


@pytest.mark.parametrize("settings", [{}, {"decoding": SAMPLED, "seeds": range(4)}])
def test_logits_that_are_not_finite_are_an_error_of_their_row_only(opened, settings, monkeypatch):
    loaded, texts = opened("llama")
    engine = HuggingFaceEngine()
    asked = requests(texts, max_new_tokens=6, **settings)
    plain = engine.answer(loaded, asked)
    longest = max(range(4), key=lambda i: len(ids_of(loaded, texts[i])))

    def poison(forward, **kwargs):
        out = forward(**kwargs)
        if len(out.logits) == 4:  # sorted by length: the last row is the longest prompt
            out.logits[3, -1, 7] = float("nan")
        return out

    replace_forward(monkeypatch, loaded, poison)
    for fresh in (HuggingFaceEngine(), HuggingFaceEngine(drafts=False)):
        found = fresh.answer(loaded, asked)
        assert found[longest].finish == "error" and found[longest].error
        assert found[longest].text == ""
        others = [number for number in range(4) if number != longest]
        assert [found[number] for number in others] == [plain[number] for number in others]


@pytest.mark.slow
def test_stop_when_ends_an_answer_at_the_first_token_that_decides(opened):
    loaded, texts = opened("llama")
    whole = ask(loaded, texts, max_new_tokens=30)
    asked = requests(texts, max_new_tokens=30)
    for request in asked[:3]:
        request.stop_when = lambda text: len(text) > 6
    for engine in (HuggingFaceEngine(), HuggingFaceEngine(drafts=False)):
        found = engine.answer(loaded, asked)
        assert [answer.finish for answer in found[:3]] == ["screened"] * 3
        assert found[3].text == whole[3]
        for long, answer in zip(whole, found, strict=True):
            assert long.startswith(answer.text)
        assert engine.answer(loaded, asked) == found


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_stops_at_the_end_of_turn(family, opened, monkeypatch):
    """The template's own end of turn counts, also where the tokenizer's EOS is another token."""
    loaded, texts = opened(family)
    end = {"llama": "<|eot_id|>", "qwen2": "<|im_end|>", "gemma": "<end_of_turn>"}[family]
    word = loaded.tokenizer.tokenize("so")[0]
    wanted = iter(loaded.tokenizer.convert_tokens_to_ids([word, end, word, word]))

    def scripted(forward, **kwargs):
        out = forward(**kwargs)
        out.logits[:, -1] = -1e9
        out.logits[:, -1, next(wanted)] = 1e9
        return out

    replace_forward(monkeypatch, loaded, scripted)
    [answer] = HuggingFaceEngine().answer(loaded, requests(texts[:1]))
    assert (answer.finish, answer.tokens) == ("stop", 2)
    assert answer.text == loaded.tokenizer.convert_tokens_to_string([word])


def test_a_cut_answer_says_so(opened):
    loaded, texts = opened("llama")
    found = HuggingFaceEngine().answer(loaded, requests(texts, max_new_tokens=2))
    assert {answer.finish for answer in found} == {"length"}
    assert {answer.tokens for answer in found} == {2}


def test_the_model_is_left_as_it_was(opened):
    loaded, texts = opened("llama")
    config = loaded.module.generation_config

    def fail(numbers, answers):
        raise RuntimeError

    loaded.module.train()
    ask(loaded, texts[:1])
    with pytest.raises(RuntimeError):
        HuggingFaceEngine().answer(loaded, requests(texts[:1]), fail)
    assert loaded.module.training and loaded.module.generation_config is config
    loaded.module.eval()


@pytest.mark.slow
def test_dropout_is_off(tmp_path):
    folder = make_model(tmp_path, "llama", attention_dropout=0.9)
    loaded = HuggingFaceEngine().open(ftlab.model(folder))
    off = ask(loaded, QUESTIONS)
    loaded.module.train()
    assert ask(loaded, QUESTIONS) == off


@pytest.mark.slow
def test_an_adapter_answers_as_merged(folders):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    loaded = HuggingFaceEngine().open(ftlab.model(folders["llama"]))
    alone = ask(loaded, QUESTIONS)
    config = LoraConfig(
        r=4,
        lora_alpha=64,
        target_modules="all-linear",
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    adapted = get_peft_model(loaded.module, config)
    answers = ask(LoadedModel(adapted, loaded.tokenizer, None), QUESTIONS)
    assert answers != alone
    merged = LoadedModel(adapted.merge_and_unload(), loaded.tokenizer, None)
    assert ask(merged, QUESTIONS) == answers


def test_a_prompt_that_does_not_fit_is_an_error(opened):
    loaded, texts = opened("llama")
    with raises_code("prompt_too_long"):
        ask(loaded, texts, max_new_tokens=1020)
    with raises_code("prompt_too_long"):
        ask(loaded, [texts[0] * 80], choices=("a",))


@pytest.mark.slow
def test_a_sampled_answer_depends_on_its_own_seed_alone(one):
    loaded, texts = one
    texts = [text for text in texts for _ in range(2)]
    seeds = [3, 4, 3, 5, 6, 7, 8, 2**40]
    settings = dict(max_new_tokens=10, decoding=SAMPLED)
    together = ask(loaded, texts, seeds=seeds, **settings)
    assert ask(loaded, texts[::-1], seeds=seeds[::-1], **settings) == together[::-1]
    pairs = zip(texts, seeds, strict=True)
    alone = [ask(loaded, [text], seeds=[seed], **settings)[0] for text, seed in pairs]
    assert alone == together and len(set(together)) == 8
    assert ask(loaded, texts, seeds=[seed + 100 for seed in seeds], **settings) != together


@pytest.mark.slow
@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(temperature=1.0),
        Decoding(temperature=0.7, top_k=5),
        Decoding(temperature=1.3, top_p=0.5),
    ],
)
def test_samples_follow_the_models_distribution(opened, decoding):
    """Chi-square of the first token against softmax, computed here from the whole text."""
    from scipy.stats import chisquare

    loaded, texts = opened("llama")
    count = 1500
    with torch.no_grad():
        logits = loaded.module(input_ids=torch.tensor([ids_of(loaded, texts[0])])).logits[0, -1]
    p = (logits.double() / decoding.temperature).softmax(-1)
    order = p.argsort(descending=True)
    if decoding.top_k:
        order = order[: decoding.top_k]
    if decoding.top_p < 1:
        order = order[: int((p[order].cumsum(0) < decoding.top_p).sum()) + 1]
    expected: dict[str, float] = {}
    for token in order.tolist():
        text = loaded.tokenizer.decode([token], skip_special_tokens=True)
        expected[text] = expected.get(text, 0) + count * float(p[token] / p[order].sum())
    drawn = ask(loaded, texts[:1] * count, seeds=range(count), max_new_tokens=1, decoding=decoding)
    assert set(drawn) <= set(expected)
    big = [text for text in expected if expected[text] >= 5]
    observed = [drawn.count(text) for text in big]
    wanted = [expected[text] for text in big]
    if len(big) < len(expected):
        observed.append(count - sum(observed))
        wanted.append(count - sum(wanted))
    assert len(big) > 3 and chisquare(observed, wanted).pvalue > 1e-3


@pytest.mark.slow
def test_without_a_temperature_or_with_one_token_to_choose_it_is_greedy(opened):
    loaded, texts = opened("llama")
    plain = ask(loaded, texts)
    assert ask(loaded, texts, decoding=Decoding(top_k=5)) == plain
    one = Decoding(temperature=1.0, top_k=1)
    assert ask(loaded, texts, decoding=one, seeds=[1] * 4) == plain


def score(loaded, texts, choices) -> list[list[float]]:
    asked = requests(texts)
    for request, several in zip(asked, choices, strict=True):
        request.choices = several
    return [answer.likelihoods for answer in HuggingFaceEngine().answer(loaded, asked)]


@pytest.mark.slow
def test_likelihoods_are_those_of_the_definition(one):
    """Log-softmax added over the choice's tokens, one text at a time."""
    loaded, texts = one
    expected = []
    for text, several in zip(texts, CHOICES, strict=True):
        sums = []
        for choice in several:
            encoded = loaded.tokenizer(
                text + choice, add_special_tokens=False, return_offsets_mapping=True
            )
            ids = encoded["input_ids"]
            own = sum(end > len(text) for _, end in encoded["offset_mapping"])
            with torch.no_grad():
                logits = loaded.module(input_ids=torch.tensor([ids])).logits[0]
            logs = logits.log_softmax(-1)
            places = range(len(ids) - own, len(ids))
            sums.append(sum(logs[k - 1, ids[k]].item() for k in places))
        expected.append(sums)
    found = score(loaded, texts, CHOICES)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    asked = requests(texts)
    for request, several in zip(asked, CHOICES, strict=True):
        request.choices = several
    answers = HuggingFaceEngine().answer(loaded, asked)
    for answer, several, sums in zip(answers, CHOICES, expected, strict=True):
        assert answer.text == several[sums.index(max(sums))]


def test_likelihoods_halve_where_memory_ends(opened, monkeypatch):
    loaded, texts = opened("llama")
    plain = score(loaded, texts, CHOICES)

    def small(forward, *, input_ids, **kwargs):
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, **kwargs)

    replace_forward(monkeypatch, loaded, small)
    for mine, theirs in zip(score(loaded, texts, CHOICES), plain, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_likelihoods_of_single_tokens_add_up_to_at_most_one(opened):
    loaded, texts = opened("llama")
    letters = tuple(c for c in map(chr, range(33, 127)) if len(ids_of(loaded, c)) == 1)
    [found] = score(loaded, texts[:1], [letters])
    assert 0 < sum(map(math.exp, found)) <= 1 + 1e-5 and len(letters) > 50


def test_a_choice_without_tokens_is_an_error(opened):
    loaded, texts = opened("llama")
    with raises_code("empty_choice"):
        score(loaded, texts[:1], [("",)])
