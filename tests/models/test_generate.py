"""The sampler: batches change nothing, answers end where they should, the model's own decoding does not leak in."""

from __future__ import annotations

import functools

import pytest
from small_models import FAMILIES

import ftlab
from ftlab.models.engines import decode
from ftlab.models.engines import huggingface as generate
from ftlab.data.encoding import render, stop_ids
from ftlab.models.engines.base import Decoding

QUESTIONS = [
    "Ann has 3 pears.",
    "Add 2 and 5 and 7 and 12 apples and 30 plums. How many in all, and how many of each?",
    "And?",
    "Start with 9. Why?",
]


@pytest.fixture(scope="module")
def opened(folders):
    """-> function family -> (model, tokenizer, rendered prompts of very different lengths)."""
    found = {}

    def of(family):
        if family not in found:
            model = ftlab.model(folders[family])
            tokenizer = model.tokenizer()
            prompts = [render(tokenizer, [{"role": "user", "content": q}], ask=True) for q in QUESTIONS]
            found[family] = model.load(), tokenizer, prompts
        return found[family]

    return of


@pytest.fixture(params=[*FAMILIES, "mistral"])
def one(request, opened):
    return opened(request.param)


def greedy(model, tokenizer, prompt: str, new: int) -> list[int]:
    """Argmax after argmax over the whole text, without cache, padding or `generate`."""
    import torch

    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    for _ in range(new):
        ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stop_ids(tokenizer):
            break
    return ids


def recorded(monkeypatch) -> list:
    """-> the list that every later call's Work is put into."""
    made = []

    class Seen(decode.Work):
        def __post_init__(self):
            made.append(self)
            super().__post_init__()

    monkeypatch.setattr(generate, "Work", Seen)
    return made


def test_it_is_greedy_decoding_by_its_definition(one):
    """In a batch, padded and cached, against one prompt at a time; the folder samples and penalises, the cell not."""
    model, tokenizer, prompts = one
    assert model.generation_config.do_sample and model.generation_config.repetition_penalty == 3.0
    expected = []
    for prompt in prompts:
        new = greedy(model, tokenizer, prompt, 12)[len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) :]
        expected.append(tokenizer.decode(new, skip_special_tokens=True))
    assert generate.answers(model, tokenizer, prompts, max_new_tokens=12) == expected
    assert len(set(expected)) > 1


def test_batches_and_order_change_nothing(one, monkeypatch):
    model, tokenizer, prompts = one
    together = generate.answers(model, tokenizer, prompts, max_new_tokens=12)
    monkeypatch.setattr(tokenizer, "padding_side", "right")  # as training leaves it
    assert generate.answers(model, tokenizer, prompts[::-1], max_new_tokens=12) == together[::-1]
    monkeypatch.setattr(decode.Work, "_rows", lambda self, wanted: 1)
    seen: list[int] = []
    apart = generate.answers(model, tokenizer, prompts, max_new_tokens=12, each=lambda n, a: seen.extend(n))
    assert apart == together and sorted(seen) == [0, 1, 2, 3]


def test_batches_stay_within_their_size():
    ids = [[0] * n for n in (1, 2, 3, 50, 60, 16_000)]
    made = list(generate._batches(list(range(6)), ids))
    assert [i for b in made for i in b] == list(range(6))
    assert all(len(b) == 1 or len(ids[b[-1]]) * len(b) <= generate.TOKENS_A_BATCH for b in made)


def test_each_batch_is_told_with_its_numbers(opened, monkeypatch):
    model, tokenizer, prompts = opened("llama")
    monkeypatch.setattr(decode.Work, "_rows", lambda self, wanted: 2)
    told = {}
    answers = generate.answers(
        model, tokenizer, prompts, max_new_tokens=4, each=lambda n, a: told.update(zip(n, a, strict=True))
    )
    assert [told[i] for i in range(4)] == answers


def junk(tokenizer, answer: str, k: int) -> list[str]:
    """-> drafts of every kind: none, right, wrong from the start, right for a while, too long, with an end of turn, empty."""
    words = answer.split(" ")
    half = " ".join(words[: len(words) // 2])
    kinds = [
        [],
        [answer],
        ["12 pears"],
        [half + " 7 7 7"],
        [answer + " and on and on" * 20],
        [half + tokenizer.eos_token + "x"],
    ]
    kinds += [[""], ["7", half + " 7", answer], ["", answer[:3], half, answer]]
    return kinds[k % len(kinds)]


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_drafts_change_no_answer(one, rows, monkeypatch):
    """Draft replay is exact, whatever the drafts, the batch and the family; right ones save their tokens."""
    model, tokenizer, prompts = one
    prompts = [p + " " * k for k in range(9) for p in prompts]
    monkeypatch.setattr(decode.Work, "_rows", lambda self, wanted: rows)
    plain = generate.answers(model, tokenizer, prompts, max_new_tokens=14)
    drafts = [junk(tokenizer, a, k) for k, a in enumerate(plain)]
    assert generate.answers(model, tokenizer, prompts, max_new_tokens=14, drafts=drafts) == plain
    tally = generate.Tally()
    assert (
        generate.answers(model, tokenizer, prompts, max_new_tokens=14, drafts=[[a] for a in plain], tally=tally)
        == plain
    )
    assert tally.saved > 0 or "Mistral" in type(model).__name__  # whose cache is a window: no drafts


def test_another_earlier_answer_goes_on_where_the_first_draft_ends(opened):
    """Two drafts, each right in its half only up to a place: the second is taken up behind it."""
    model, tokenizer, prompts = opened("llama")
    plain = generate.answers(model, tokenizer, prompts, max_new_tokens=14)
    first, both = generate.Tally(), generate.Tally()
    drafts = [[a[: len(a) // 2] + " 7 pears"] for a in plain]
    generate.answers(model, tokenizer, prompts, max_new_tokens=14, drafts=drafts, tally=first)
    drafts = [[*d, a] for d, a in zip(drafts, plain, strict=True)]
    assert generate.answers(model, tokenizer, prompts, max_new_tokens=14, drafts=drafts, tally=both) == plain
    assert both.saved > first.saved


def test_a_shared_prefix_is_read_once_and_changes_nothing(opened, monkeypatch):
    model, tokenizer, _ = opened("llama")
    system = "Add the pears and the plums and the apples, step by step, and say how many there are in all. " * 3
    prompts = [
        render(tokenizer, [{"role": "system", "content": system}, {"role": "user", "content": q}], ask=True)
        for q in QUESTIONS
    ]
    made, read, forward = recorded(monkeypatch), [], type(model).forward

    @functools.wraps(forward)
    def counted(self, *args, input_ids, **kwargs):
        read.append(input_ids.numel())
        return forward(self, *args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", counted)
    shared = generate.answers(model, tokenizer, prompts, max_new_tokens=12)
    assert made[-1].head > 40 and (few := sum(read)) and not read.clear()
    monkeypatch.setattr(decode, "SHARED", 10**6)
    assert generate.answers(model, tokenizer, prompts, max_new_tokens=12) == shared and made[-1].head == 0
    assert sum(read) > few + 2 * made[-2].head


ODD = dict(  # caches of other kinds, positions that are counted and not told: small models of each
    mpt=lambda c: c.MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=256, vocab_size=600),
    bloom=lambda c: c.BloomConfig(hidden_size=32, n_head=4, n_layer=2, vocab_size=600),
    gpt_neo=lambda c: c.GPTNeoConfig(hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=8, vocab_size=600, max_position_embeddings=256),
    mamba=lambda c: c.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=600),
    qwen3_next=lambda c: c.Qwen3NextConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=64, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=8, linear_value_head_dim=8, vocab_size=600, max_position_embeddings=256),
)  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_other_architectures_answer_as_one_by_one(kind, opened, monkeypatch):
    """With a shared prefix, drafts (right, wrong and alternate) and rows that leave at different times."""
    import torch
    import transformers

    _, tokenizer, _ = opened("qwen2")
    torch.manual_seed(1)
    config = ODD[kind](transformers)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for p in model.parameters():
        if p.dim() > 1:
            torch.nn.init.normal_(p, std=0.2)
    model.generation_config.eos_token_id = list(range(0, 600, 17))  # so that answers end at different tokens
    head = "Add the pears and the plums and the apples, one by one, and say how many there are in all. " * 2
    prompts = [head + q * k for k in (1, 2, 3) for q in QUESTIONS]
    ask = dict(max_new_tokens=12)
    apart = [generate.answers(model, tokenizer, [p], **ask)[0] for p in prompts]
    one = (
        [greedy(model, tokenizer, p, 12)[len(tokenizer(p)["input_ids"]) :] for p in prompts[:3]]
        if kind != "rwkv"
        else []
    )
    for said, ids in zip(apart, one, strict=False):
        end = next((n for n, t in enumerate(ids) if t in model.generation_config.eos_token_id), len(ids))
        assert said == tokenizer.decode(ids[: end + 1], skip_special_tokens=True)
    drafts = [junk(tokenizer, a, k) for k, a in enumerate(apart)]
    assert generate.answers(model, tokenizer, prompts, **ask) == apart
    assert generate.answers(model, tokenizer, prompts, drafts=drafts, **ask) == apart


def test_an_architecture_with_a_state_of_its_own_is_refused(opened):
    import transformers

    _, tokenizer, prompts = opened("qwen2")
    model = transformers.RwkvForCausalLM(transformers.RwkvConfig(hidden_size=32, num_hidden_layers=2, vocab_size=600))
    with pytest.raises(ValueError, match="rwkv models keep a state of their own"):
        generate.answers(model, tokenizer, prompts, max_new_tokens=2)


def test_answers_are_told_as_they_end_not_when_the_last_one_does(opened, monkeypatch):
    model, tokenizer, prompts = opened("llama")
    forward, calls, told = type(model).forward, [], []

    @functools.wraps(forward)
    def counted(self, *args, **kwargs):
        calls.append(1)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", counted)
    ask = dict(max_new_tokens=60, decoding=Decoding(temperature=2.0), seeds=range(40))
    generate.answers(model, tokenizer, prompts * 10, each=lambda n, a: told.append(len(calls)), **ask)
    assert len(told) > 5 and told[0] < len(calls) / 2


def test_no_number_while_sampling_is_told_too(opened, monkeypatch):
    model, tokenizer, prompts = opened("llama")
    forward = type(model).forward

    @functools.wraps(forward)
    def poisoned(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.logits[:1] = float("nan")
        return out

    monkeypatch.setattr(type(model), "forward", poisoned)
    failed: set[int] = set()
    generate.answers(model, tokenizer, prompts, max_new_tokens=3, decoding=SAMPLED, seeds=range(4), failed=failed)
    assert failed


def test_likelihoods_halve_where_memory_ends(opened, monkeypatch):
    import torch

    model, tokenizer, prompts = opened("llama")
    told, forward = generate.likelihoods(model, tokenizer, prompts, CHOICES), type(model).forward

    @functools.wraps(forward)
    def small(self, *args, input_ids, **kwargs):
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, *args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", small)
    again = generate.likelihoods(model, tokenizer, prompts, CHOICES)
    assert [[round(x, 3) for x in a] for a in again] == [[round(x, 3) for x in a] for a in told]


def test_alternates_keep_to_the_limits_of_a_forward_pass(opened, monkeypatch):
    model, tokenizer, prompts = opened("llama")
    plain = generate.answers(model, tokenizer, prompts * 8, max_new_tokens=40)
    drafts = [[a[:3], a + " 7"] for a in plain]
    forward, most = type(model).forward, []

    @functools.wraps(forward)
    def noted(self, *args, logits_to_keep, input_ids, **kwargs):
        most.append(len(input_ids) * logits_to_keep if logits_to_keep > 1 else 0)
        return forward(self, *args, logits_to_keep=logits_to_keep, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", noted)
    monkeypatch.setattr(decode, "LOGITS_BYTES", 4 * model.config.vocab_size * 150)
    assert generate.answers(model, tokenizer, prompts * 8, max_new_tokens=40, drafts=drafts) == plain
    assert 40 < max(most) <= 150


def test_many_prompts_need_no_wider_cache_than_few(opened, monkeypatch):
    """Rows leave and join for long: columns that nobody needs any more go, so that an answer's cost does not grow."""
    model, tokenizer, prompts = opened("llama")
    widths, joined, seeds = [], decode.joined, list(range(400))
    monkeypatch.setattr(decode, "joined", lambda s: widths.append((made := joined(s)).mask.shape[1]) or made)
    monkeypatch.setattr(decode.Work, "_rows", lambda self, wanted: 16)
    generate.answers(
        model, tokenizer, prompts * 100, max_new_tokens=24, decoding=Decoding(temperature=2.0), seeds=seeds
    )
    longest = max(map(len, tokenizer(prompts, add_special_tokens=False)["input_ids"]))
    assert len(widths) > 20 and max(widths) <= longest + 24


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("at", [1, 2, 5, 9])
def test_where_memory_ends_the_batch_is_halved_and_nothing_changes(opened, at, sampled, monkeypatch):
    import torch

    model, tokenizer, prompts = opened("llama")
    prompts = [p + " " * k for k in range(4) for p in prompts]
    ask = dict(max_new_tokens=14, **(dict(decoding=SAMPLED, seeds=range(16)) if sampled else {}))
    plain = generate.answers(model, tokenizer, prompts, **ask)
    monkeypatch.setattr(decode, "_halved", {})
    monkeypatch.setattr(decode.Work, "_rows", lambda self, wanted: 8)
    forward, calls, told = type(model).forward, [], {}

    @functools.wraps(forward)
    def small(self, *args, input_ids, **kwargs):
        calls.append(len(input_ids))
        if len(input_ids) > 3 and len(calls) >= at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, *args, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(type(model), "forward", small)
    tally = generate.Tally()
    assert generate.answers(model, tokenizer, prompts, tally=tally, each=lambda n, a: told.update(zip(n, a, strict=True)), **ask) == plain  # fmt: skip
    assert tally.halved == 2 and tally.rows == 2 and [told[i] for i in range(16)] == plain
    monkeypatch.setattr(decode.Work, "_rows", lambda self, wanted: 1)
    monkeypatch.setattr(
        type(model),
        "forward",
        functools.wraps(forward)(lambda *a, **k: (_ for _ in ()).throw(torch.OutOfMemoryError("no"))),
    )
    with pytest.raises(ValueError, match="memory does not suffice for one answer"):
        generate.answers(model, tokenizer, prompts, **ask)


def test_the_number_of_rows_is_measured_once_and_within_the_memory(opened, monkeypatch):
    model, tokenizer, prompts = opened("qwen2")
    monkeypatch.setattr(decode, "_measured", {})
    tally, forward, calls = generate.Tally(), type(model).forward, []

    @functools.wraps(forward)
    def noted(self, *a, **k):
        calls.append(len(k["input_ids"]))
        return forward(self, *a, **k)

    monkeypatch.setattr(type(model), "forward", noted)
    generate.answers(model, tokenizer, prompts * 10, max_new_tokens=4, tally=tally)
    (known,) = decode._measured.values()
    assert known in (16, 32, 64) and tally.rows == min(known, 40) and {16, 32} < {*calls}  # tried
    calls.clear()
    generate.answers(model, tokenizer, prompts * 10, max_new_tokens=4)
    assert 2 not in calls and max(calls) <= known
    monkeypatch.setattr(decode, "free_memory", lambda device: 10**6)  # 16 kB a row
    generate.answers(model, tokenizer, prompts * 10, max_new_tokens=4, tally=tally)
    assert 1 <= tally.rows < 40


def test_logits_that_are_no_numbers_are_told_and_never_an_answer(opened, monkeypatch):
    model, tokenizer, prompts = opened("llama")
    plain = generate.answers(model, tokenizer, prompts, max_new_tokens=6)
    longest = max(range(4), key=lambda i: len(tokenizer(prompts[i])["input_ids"]))
    forward = type(model).forward

    @functools.wraps(forward)
    def poisoned(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        if out.logits.shape[0] == 4:  # sorted by length: the last row is the longest prompt
            out.logits[3, -1, 7] = float("nan")
        return out

    monkeypatch.setattr(type(model), "forward", poisoned)
    failed: set[int] = set()
    said = generate.answers(model, tokenizer, prompts, max_new_tokens=6, failed=failed)
    assert failed == {longest} and said == [a if i != longest else "" for i, a in enumerate(plain)]
    with pytest.raises(ValueError, match="no numbers"):
        generate.answers(model, tokenizer, prompts, max_new_tokens=6)


def test_near_ties_are_counted_in_low_precision_only(opened):
    import torch

    model, tokenizer, prompts = opened("llama")
    exact, low = generate.Tally(), generate.Tally()
    generate.answers(model, tokenizer, prompts * 8, max_new_tokens=12, tally=exact)
    half = ftlab.model(model.config._name_or_path).load().to(torch.bfloat16)
    together = generate.answers(half, tokenizer, prompts * 8, max_new_tokens=12, tally=low)
    apart = [generate.answers(half, tokenizer, [p], max_new_tokens=12)[0] for p in prompts] * 8
    assert exact.near_ties == 0 < low.near_ties < 32
    assert low.near_ties >= sum(a != b for a, b in zip(together, apart, strict=True))


def test_an_answer_that_is_decided_is_not_decoded_on(opened):
    model, tokenizer, prompts = opened("llama")
    plain, few = generate.answers(model, tokenizer, prompts, max_new_tokens=30), generate.Tally()
    said = generate.answers(model, tokenizer, prompts, max_new_tokens=30, decided=lambda i, text: i != 1, tally=few)
    assert said[1] == plain[1] and all(p.startswith(s) for p, s in zip(plain, said, strict=True))
    assert few.tokens < 30 + 3 * 2 * decode.ROUND


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_stops_at_the_end_of_turn(family, opened, monkeypatch):
    """The template's own end of turn counts, also where the tokenizer's EOS is another token (Gemma)."""
    model, tokenizer, prompts = opened(family)
    end = {"llama": "<|eot_id|>", "qwen2": "<|im_end|>", "gemma": "<end_of_turn>"}[family]
    assert tokenizer.convert_tokens_to_ids(end) in stop_ids(tokenizer)
    wanted = iter(
        [tokenizer.convert_tokens_to_ids(t) for t in (tokenizer.tokenize("so")[0], end, tokenizer.tokenize("on")[0])]
        + [0] * 20
    )
    forward, steps = type(model).forward, []

    @functools.wraps(forward)
    def scripted(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.logits[:, -1] = -1e9
        out.logits[:, -1, next(wanted)] = 1e9
        steps.append(1)
        return out

    monkeypatch.setattr(type(model), "forward", scripted)
    answer = generate.answers(model, tokenizer, prompts[:1], max_new_tokens=20)
    assert (
        answer == [tokenizer.decode([tokenizer.convert_tokens_to_ids(tokenizer.tokenize("so")[0])])] and len(steps) == 2
    )


def test_the_model_is_left_as_it_was(opened):
    model, tokenizer, prompts = opened("llama")
    before = model.generation_config
    model.train()
    generate.answers(model, tokenizer, prompts[:1], max_new_tokens=2)
    assert model.training and model.generation_config is before
    with pytest.raises(RuntimeError, match="kept"):
        generate.answers(
            model, tokenizer, prompts[:1], max_new_tokens=2, each=lambda *_: (_ for _ in ()).throw(RuntimeError("kept"))
        )
    assert model.training and model.generation_config is before
    model.eval()


def test_an_adapter_answers_and_its_decoding_does_not_leak_either(folders):
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = ftlab.model(folders["llama"])
    model, tokenizer = base.load(), base.tokenizer()
    prompts = [render(tokenizer, [{"role": "user", "content": q}], ask=True) for q in QUESTIONS]
    alone = generate.answers(model, tokenizer, prompts, max_new_tokens=12)
    adapted = get_peft_model(
        model,
        LoraConfig(r=4, lora_alpha=64, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    before = model.generation_config
    said = generate.answers(adapted, tokenizer, prompts, max_new_tokens=12)
    assert said != alone and model.generation_config is before
    assert said == generate.answers(adapted.merge_and_unload(), tokenizer, prompts, max_new_tokens=12)


def test_dropout_is_off_while_answering(tmp_path):
    from small_models import make_model

    model = ftlab.model(make_model(tmp_path, "llama", attention_dropout=0.9))
    loaded, tokenizer = model.load(), model.tokenizer()
    prompts = [render(tokenizer, [{"role": "user", "content": q}], ask=True) for q in QUESTIONS]
    off = generate.answers(loaded, tokenizer, prompts, max_new_tokens=8)
    assert generate.answers(loaded.train(), tokenizer, prompts, max_new_tokens=8) == off


def test_no_prompts_no_answers(opened):
    model, tokenizer, _ = opened("llama")
    assert generate.answers(model, tokenizer, [], max_new_tokens=4) == []


def test_a_prompt_that_does_not_fit_is_a_sentence(opened):
    model, tokenizer, prompts = opened("llama")
    with pytest.raises(
        ValueError, match="the longest prompt has .* tokens; with max_new_tokens = 1020 at most 1024 fit"
    ):
        generate.answers(model, tokenizer, prompts, max_new_tokens=1020)


SAMPLED = Decoding(temperature=1.5, top_k=40, top_p=0.9)


def test_a_sampled_answer_depends_on_its_own_seed_alone(one, monkeypatch):
    """Eight at once, one at a time, in another order, beside other prompts: the same answers."""
    model, tokenizer, prompts = one
    prompts, seeds = [p for p in prompts for _ in range(2)], [3, 4, 3, 5, 6, 7, 8, 2**40]
    ask = dict(max_new_tokens=20, decoding=SAMPLED)
    together = generate.answers(model, tokenizer, prompts, seeds=seeds, **ask)
    assert generate.answers(model, tokenizer, prompts[::-1], seeds=seeds[::-1], **ask) == together[::-1]
    assert [generate.answers(model, tokenizer, [p], seeds=[s], **ask)[0] for p, s in zip(prompts, seeds, strict=True)] == together  # fmt: skip
    assert len(set(together)) == 8
    assert generate.answers(model, tokenizer, prompts, seeds=[s + 100 for s in seeds], **ask) != together


def test_rows_that_end_do_not_move_the_seeds_of_the_others(opened, monkeypatch):
    """Rows leave the batch every round: with rounds of one token and of any size the answers are the same."""
    model, tokenizer, prompts = opened("llama")
    ask = dict(max_new_tokens=24, decoding=Decoding(temperature=2.0), seeds=list(range(40)))
    made = recorded(monkeypatch)
    expected = generate.answers(model, tokenizer, prompts * 10, **ask)
    assert min(map(len, made[-1].out)) < 24, "some end early"
    for size in (1, 3, 24):
        monkeypatch.setattr(decode, "ROUND", size)
        assert generate.answers(model, tokenizer, prompts * 10, **ask) == expected


@pytest.mark.parametrize(
    "decoding", [Decoding(temperature=1.0), Decoding(temperature=0.7, top_k=5), Decoding(temperature=1.3, top_p=0.5)]
)
def test_what_is_sampled_follows_the_models_distribution(opened, decoding, monkeypatch):
    """Chi-square of the second token given the first against softmax, computed here from the whole text."""
    import torch
    from scipy.stats import chisquare

    model, tokenizer, prompts = opened("llama")
    made, n = recorded(monkeypatch), 3000
    generate.answers(model, tokenizer, prompts[:1] * n, max_new_tokens=2, decoding=decoding, seeds=range(n))
    drawn = made[-1].out
    first = [d[0] for d in drawn]
    assert first != [d[1] for d in drawn if len(d) > 1]
    ids = tokenizer(prompts[0], add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        p = (model(input_ids=torch.tensor([ids])).logits[0, -1].double() / decoding.temperature).softmax(-1)
    order = p.argsort(descending=True)
    if decoding.top_k:
        order = order[: decoding.top_k]
    if decoding.top_p < 1:
        order = order[: int((p[order].cumsum(0) < decoding.top_p).sum()) + 1]
    assert set(first) <= set(order.tolist())
    expected = (p[order] / p[order].sum()).numpy() * n
    observed = [first.count(t) for t in order.tolist()]
    big = expected >= 5
    rest = (
        ([sum(o for o, b in zip(observed, big, strict=True) if not b)], [expected[~big].sum()])
        if (~big).any()
        else ([], [])
    )
    test = chisquare([o for o, b in zip(observed, big, strict=True) if b] + rest[0], [*expected[big], *rest[1]])
    assert big.sum() > 3 and test.pvalue > 1e-3


def test_without_a_temperature_it_is_greedy_and_the_first_choice_of_one_is_too(opened):
    model, tokenizer, prompts = opened("llama")
    plain = generate.answers(model, tokenizer, prompts, max_new_tokens=12)
    assert (
        generate.answers(model, tokenizer, prompts, max_new_tokens=12, decoding=Decoding(top_k=5), seeds=[1] * 4)
        == plain
    )
    one = Decoding(temperature=1.0, top_k=1)
    assert generate.answers(model, tokenizer, prompts, max_new_tokens=12, decoding=one, seeds=[1] * 4) == plain


@pytest.mark.parametrize("seeds", [None, [1, 2]])
def test_sampling_needs_a_seed_a_prompt(opened, seeds):
    model, tokenizer, prompts = opened("llama")
    with pytest.raises(ValueError, match="one seed a prompt"):
        generate.answers(model, tokenizer, prompts, max_new_tokens=1, decoding=SAMPLED, seeds=seeds)


CHOICES = [["Yes.", "No, never."], ["12"], ["a pear", "a very long answer about plums", "b"], ["x", "y"]]


def test_likelihoods_are_those_of_the_definition(one, monkeypatch):
    """Log-softmax summed over the choice's tokens, one text at a time; batches, padding and order change nothing."""
    import torch

    model, tokenizer, prompts = one
    expected = []
    for prompt, several in zip(prompts, CHOICES, strict=True):
        expected.append([])
        for choice in several:
            encoded = tokenizer(prompt + choice, add_special_tokens=False, return_offsets_mapping=True)
            ids, n = encoded["input_ids"], sum(end > len(prompt) for _, end in encoded["offset_mapping"])
            with torch.no_grad():
                logp = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            expected[-1].append(sum(logp[k - 1, ids[k]].item() for k in range(len(ids) - n, len(ids))))
    told = generate.likelihoods(model, tokenizer, prompts, CHOICES)
    for a, b in zip(told, expected, strict=True):
        assert a == pytest.approx(b, abs=1e-4)
    apart = [generate.likelihoods(model, tokenizer, [p], [c])[0] for p, c in zip(prompts, CHOICES, strict=True)]
    monkeypatch.setattr(generate, "TOKENS_A_BATCH", 1)
    for alone in (apart, generate.likelihoods(model, tokenizer, prompts, CHOICES)):
        assert [x for r in alone for x in r] == pytest.approx([x for r in told for x in r], abs=1e-4)


def test_likelihoods_of_all_single_tokens_sum_to_one(opened):
    import math

    model, tokenizer, prompts = opened("llama")
    letters = [t for t in map(chr, range(33, 127)) if len(tokenizer(t, add_special_tokens=False)["input_ids"]) == 1]
    (told,) = generate.likelihoods(model, tokenizer, prompts[:1], [letters])
    assert 0 < sum(map(math.exp, told)) <= 1 + 1e-5 and len(letters) > 50


def test_a_choice_without_tokens_is_a_sentence(opened):
    model, tokenizer, prompts = opened("llama")
    with pytest.raises(ValueError, match="has no token of its own"):
        generate.likelihoods(model, tokenizer, prompts[:1], [[""]])
    assert generate.likelihoods(model, tokenizer, [], []) == []


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}]
)
def test_decoding_is_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Decoding.make(**wrong)
