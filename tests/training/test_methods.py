"""What differs between training arms: rows, reference, first step, and what each leaves behind."""

from __future__ import annotations

import math

import pytest
from small_models import FAMILIES, contents, make_model, pairs, sums

import ftlab
from ftlab.training import callback as keeper
from ftlab.training.methods import base as methods
from ftlab.models import reference as models
from ftlab.runs import store as runs
from ftlab.training.config import Training
from ftlab.data.dataset import Data, DataError

FAST = dict(batch_size=4, learning_rate=1e-3)


def judged(n: int) -> list[dict]:
    """KTO rows in the form of TRL's documentation: texts, or lists of messages."""
    rows = [
        {"prompt": p["prompt"], "completion": p[k], "label": k == "chosen"}
        for p in pairs(n)
        for k in ("chosen", "rejected")
    ]
    rows[0] = {**rows[0], "prompt": [{"role": "user", "content": rows[0]["prompt"]}],
               "completion": [{"role": "assistant", "content": rows[0]["completion"]}]}  # fmt: skip
    return rows


def short(prompts, completions, **_):
    """A reward: minus the number of characters."""
    return [-float(len(c[0]["content"])) for c in completions]


def call(method, parent, n=8, **settings):
    """-> a run of any method on `n` rows (RLOO: rewarded by `short`)."""
    settings = FAST | settings
    if method == "rloo":
        return ftlab.rloo(parent, sums(n), short, **{"max_completion_length": 6, **settings})
    made = {"sft": sums, "dpo": pairs, "kto": judged, "reward": pairs}[method](n)
    return getattr(ftlab, method)(parent, made, **settings)


def made(method, folder, rows, **settings):
    """-> TRL's trainer as a training would use it."""
    parent, config = (
        models.model(folder),
        Training.make(**{"learning_rate": 1e-3, "steps": 2, **FAST, **settings, "method": method}),
    )
    run, data = runs.start(method, "trial", {}), methods.read(method, rows)
    model, tokenizer = methods.opened(parent, config), parent.tokenizer()
    scorer = methods.scorer(short)[0] if method == "rloo" else None
    return methods.trainer(
        run, parent, model, tokenizer, data, config, config.batch_size // config.accumulation, None, scorer
    )


@pytest.mark.parametrize("method", ["kto", "reward", "rloo"])
def test_every_method_on_any_folder(folder, method):
    before = contents(folder)
    run = call(method, folder, steps=3)
    assert run.log()["step"].tolist() == [1, 2, 3] and run.finished and not (run.path / "checkpoints").exists()
    assert contents(folder) == before and run.stats["micro_batch"] == 4
    if method != "reward":
        assert ftlab.ask(run, "How many?", max_new_tokens=2)["answer"].notna().all()


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "reward", "rloo"])
@pytest.mark.parametrize("adapter", ["lora", "dora", "qlora"])
def test_every_method_with_every_adapter(llama, method, adapter):
    if adapter == "qlora":
        pytest.importorskip("bitsandbytes")
        if method == "reward":
            with pytest.raises(ValueError, match="not trained over 4-bit weights; give lora or dora"):
                call(method, llama, steps=2, qlora=True)
            return
    run = call(method, llama, steps=2, **{adapter: True})
    names = {p.name for p in (run.path / "model").iterdir()}
    if method == "reward":  # merged: anyone's tools open it
        assert "model.safetensors" in names and "adapter_config.json" not in names
    else:
        assert "adapter_model.safetensors" in names and not {n for n in names if "ref" in n}  # TRL's copy of the start
        assert ftlab.model(run).adapter["use_dora"] == (adapter == "dora")


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("method", ["dpo", "kto", "rloo"])
def test_the_reference_is_the_parent_also_where_that_is_an_adapter(llama, method, lora):
    """Of a merged parent no folder exists: TRL would read the model below it instead."""
    for first in (True, False):
        parent = ftlab.sft(llama, sums(8), steps=3, batch_size=4, learning_rate=2e-2, lora=first)
        run = call(method, parent, steps=2, lora=lora, learning_rate=1e-2)
        name, value, _, _ = methods.METHODS[method].first
        assert run.log()[name][0] == pytest.approx(value, abs=1e-4)
        assert run.log()[name][1] != run.log()[name][0]


@pytest.mark.parametrize("method", ["dpo", "kto", "rloo"])
def test_the_first_step_is_a_guard_of_the_reference(llama, method, monkeypatch):
    make = methods.trainer

    def another_reference(run, parent, model, *rest):
        trainer = make(run, parent, model, *rest)
        model.lm_head.weight.data.mul_(3)  # the policy is no longer what the reference was computed from
        return trainer

    monkeypatch.setattr(methods, "trainer", another_reference)
    with pytest.raises(keeper.TrainingFailed, match=f"{method.upper()}'s first .* the reference is not the parent"):
        call(method, llama, steps=2)


@pytest.mark.parametrize("family", [*FAMILIES, "mistral"])
@pytest.mark.parametrize("method", ["kto", "reward"])
def test_every_answer_is_learned_with_its_end_of_turn(family, method, folders):
    trainer, rows = made(method, folders[family], pairs(3)), methods.read(method, pairs(3)).rows
    end = {"llama": "<|eot_id|>", "qwen2": "<|im_end|>", "gemma": "<end_of_turn>", "mistral": "</s>"}[family]
    for row in trainer.train_dataset:
        for side in ("completion",) if method == "kto" else ("chosen", "rejected"):
            said = trainer.processing_class.decode(row[f"{side}_ids"]).rstrip()
            assert said.endswith(rows[row["row"] - 1][side][0]["content"] + end)
            assert (
                method == "reward" or said.strip() == rows[row["row"] - 1][side][0]["content"] + end
            )  # the answer alone


# Padding-free


def gradients(trainer) -> tuple[float, dict]:
    """-> the loss of the first batch and its gradients."""
    model, batch = trainer.model.train(), next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(model, dict(batch), num_items_in_batch=(batch["labels"] != -100).sum()).backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return batch, trainer.compute_loss(model, dict(batch)).item(), grads


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", [*FAMILIES, "mistral"])
def test_padding_free_gives_the_loss_and_gradients_of_padded_rows(family, lora, folders, monkeypatch, tmp_path):
    """Mistral with a window shorter than its rows."""
    folder = make_model(tmp_path / "m", "mistral", sliding_window=8) if family == "mistral" else folders[family]
    found = []
    for free in (False, True):
        monkeypatch.setattr(methods, "together", lambda *_, free=free: free)
        found.append(gradients(made("sft", folder, sums(6), batch_size=6, lora=lora)))
    (padded, loss, wanted), (batch, free_loss, grads) = found
    assert "attention_mask" in padded and padded["input_ids"].shape[0] == 6
    assert "attention_mask" not in batch and batch["input_ids"].shape == (1, int(padded["attention_mask"].sum()))
    assert free_loss == pytest.approx(loss, rel=1e-5) and grads.keys() == wanted.keys()
    assert sum(bool(g.any()) for g in wanted.values()) > len(wanted) / 3
    for name, grad in wanted.items():
        assert float((grads[name] - grad).abs().max()) <= 1e-4 * float(grad.abs().max()) + 1e-7, name


def test_models_that_cannot_keep_rows_apart_stay_padded(folders, monkeypatch):
    """A state that runs on, and an attention that would not see where a row begins."""
    import torch
    from transformers import AutoModelForCausalLM, MambaConfig, masking_utils

    rows = [list(range(5, 25)), list(range(30, 55))]
    for folder in folders.values():
        assert methods.apart(models.model(folder).load(training=True), rows)
    torch.manual_seed(0)
    mamba = MambaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, state_size=8)
    assert not methods.apart(AutoModelForCausalLM.from_config(mamba), rows)
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda _: None)
    for folder in folders.values():
        assert not methods.apart(models.model(folder).load(training=True), rows)
    monkeypatch.setattr(methods, "together", lambda *_: True)
    assert not made("sft", folders["llama"], sums(6)).args.padding_free


def test_padding_free_is_chosen_by_counting(llama):
    """Where padding costs more than attention between rows; one row a pass, equal or long rows: no."""
    from types import SimpleNamespace

    shape = SimpleNamespace(num_hidden_layers=8, hidden_size=512, to_dict=lambda: {"attention_dropout": 0.0})
    wide = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: shape, _attn_implementation="sdpa"),
                           num_parameters=lambda exclude_embeddings: 25_000_000)  # fmt: skip
    ragged, sft = [20, 30, 40, 120] * 20, Training(batch_size=16)
    assert methods.together(wide, sft, ragged, 16) and not methods.together(wide, sft, ragged, 1)
    assert not methods.together(wide, sft, [60] * 80, 16) and not methods.together(
        wide, sft, [20 * n for n in ragged], 16
    )
    assert not methods.together(wide, Training(method="dpo"), ragged, 16)
    assert not methods.together(ftlab.model(llama).load(), sft, ragged, 16)  # hardly any parameters
    shape.to_dict = lambda: {"attention_dropout": 0.1}
    assert not methods.together(wide, sft, ragged, 16)
    shape.to_dict, wide.config._attn_implementation = lambda: {}, "eager"
    assert not methods.together(wide, sft, ragged, 16)
    wide.config._attn_implementation = "flash_attention_2"  # pays for no pair of two rows
    assert methods.together(wide, sft, [20 * n for n in ragged], 16)


def test_the_reference_is_computed_in_larger_parts_than_training(llama):
    for method, rows in (("dpo", pairs(8)), ("kto", judged(8))):
        args = made(method, llama, rows, batch_size=16, accumulation=8).args
        assert (args.per_device_train_batch_size, args.precompute_ref_batch_size) == (2, 8)


# KTO


def test_rows_of_kto_are_its_own_or_pairs_taken_apart():
    own, pair = methods.read("kto", judged(3)), methods.read("kto", pairs(3))
    assert own.rows == pair.rows and [r["label"] for r in own.rows] == [True, False] * 3
    assert own.rows[0]["prompt"][0]["role"] == "user" and own.rows[0]["completion"][0]["role"] == "assistant"
    assert len(methods.read("kto", "organism:preferences", rows=6)) == 12
    with pytest.raises(DataError) as e:
        methods.read("kto", [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "b", "label": "yes"},
                             {"prompt": "a", "completion": " ", "label": True}])  # fmt: skip
    assert all(t in str(e.value) for t in ("row 1: no label", "row 2: no label", "row 3: 'completion' is empty"))


def test_kto_shuffles_by_the_seed_and_shows_the_label_to_the_loss(llama):
    """TRL keeps the order of the rows; what is liked gains probability and what is not loses it."""
    orders = [made("kto", llama, judged(6), seed=s).train_dataset["row"] for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == list(range(1, 13))
    log = call("kto", llama, steps=12, learning_rate=3e-3, schedule="constant").log()
    assert log["rewards/margins"].dropna().iloc[-1] > 0.1 and log["loss"].iloc[-1] < 0.5
    with pytest.raises(ValueError, match="KTO needs at least 2 rows a forward pass"):
        call("kto", llama, accumulation=4)


# Reward model, RLOO


def test_a_reward_model_tells_the_better_answer_and_opens_anywhere(llama):
    import torch
    from transformers import AutoModelForSequenceClassification

    for lora in (False, True):
        run = ftlab.reward(llama, pairs(16), epochs=6, batch_size=4, learning_rate=3e-3, lora=lora)
        assert run.log()["accuracy"].iloc[-4:].mean() == 1.0
        model = AutoModelForSequenceClassification.from_pretrained(run.path / "model").eval()
        tokenizer, scores = models.model(run).tokenizer(), []
        for side in ("chosen", "rejected"):
            turns = [
                {"role": "user", "content": pairs(40)[39]["prompt"]},
                {"role": "assistant", "content": pairs(40)[39][side]},
            ]
            text = tokenizer.apply_chat_template(turns, tokenize=False)
            with torch.no_grad():
                scores.append(
                    float(model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits[0, 0])
                )
        assert scores[0] > scores[1]


def test_a_reward_model_answers_nothing_and_a_model_scores_nothing(llama):
    run = call("reward", llama, steps=1)
    for method in ("sft", "dpo", "kto", "reward", "rloo"):
        with pytest.raises(ValueError, match="is a reward model: it gives a number and no answers"):
            call(method, run)
    with pytest.raises(ValueError, match="is no reward model; give a run of ftlab.reward, its folder, or a function"):
        ftlab.rloo(llama, sums(4), llama)


def test_rloo_raises_the_reward_of_a_model_or_of_a_function(llama):
    judge = ftlab.reward(llama, pairs(16), epochs=6, batch_size=4, learning_rate=3e-3)
    said = [
        {"prompt": p["prompt"], "completion": p["chosen" if i % 2 else "rejected"]} for i, p in enumerate(pairs(16))
    ]
    parent = ftlab.sft(llama, said, epochs=20, batch_size=8, learning_rate=5e-3)  # says either
    settings = dict(
        steps=20, batch_size=16, learning_rate=2e-3, max_completion_length=10, schedule="constant", beta=0.01
    )
    for reward in (judge, judge.path, short):
        run = ftlab.rloo(parent, pairs(16), reward, **settings)
        log = run.log()["reward"]
        assert log.iloc[-5:].mean() > log.iloc[:5].mean() + 0.3
    assert (
        ftlab.rloo(parent, pairs(16), judge, **settings).path
        == ftlab.rloo(parent, pairs(16), judge.path, **settings).path
        != run.path
    )


def test_rloo_samples_from_the_policy_alone(llama):
    """Penalties of the model's own `generation_config` would make the samples another policy's; they stay in the folder."""
    seen = []

    def note(prompts, completions, completion_ids, **_):
        seen.extend(completion_ids)
        return [float(i % 2) for i in range(len(prompts))]

    run = ftlab.rloo(llama, sums(8), note, steps=2, max_completion_length=64, **FAST)
    assert any(len(set(ids)) < len(ids) for ids in seen)  # its no_repeat_ngram_size is 1
    assert (run.path / "model/generation_config.json").read_bytes() == (llama / "generation_config.json").read_bytes()


def test_rloo_ends_an_answer_where_the_template_does(folders):
    trainer = made("rloo", folders["gemma"], sums(4))
    ends = trainer.processing_class.convert_tokens_to_ids(["<end_of_turn>", "<eos>"])
    assert set(ends) <= set(trainer.eos_token_ids) and set(ends) <= set(trainer.generation_config.eos_token_id)


def test_a_function_is_its_source(llama):
    def other(prompts, completions, **_):
        return [1.0 for _ in prompts]

    assert methods.callable_id(short) == methods.callable_id(short) != methods.callable_id(other)
    plain, other.identity = methods.callable_id(other), {"prompts": "ab"}
    assert methods.callable_id(other) != plain
    with pytest.raises(ValueError, match="has no source"):
        methods.callable_id(eval("lambda prompts, **_: [1]"))


# Rows


@pytest.mark.parametrize("method", ["kto", "reward", "rloo"])
def test_an_overlong_row_is_named_never_cut(llama, method):
    rows = [{**p, "prompt": p["prompt"] + " and one apple" * (200 * (i == 2))} for i, p in enumerate(pairs(4))]
    with pytest.raises(DataError, match=r"row [356]: \d+ tokens; at most") as e:
        made(method, llama, rows, max_length=200)
    assert "row 1:" not in str(e.value)


@pytest.mark.parametrize("method", ["sft", "padding-free", "dpo", "kto", "reward", "rloo"])
def test_the_rows_of_a_batch_are_found_by_their_tokens(llama, method, monkeypatch):
    if method == "padding-free":
        monkeypatch.setattr(methods, "together", lambda *_: True)
        method = "sft"
    rows = {"sft": sums, "dpo": pairs, "kto": judged, "reward": pairs, "rloo": sums}[method](8)
    trainer = made(method, llama, rows, accumulation=2)
    batches = [b for b, _ in zip(trainer.get_train_dataloader(), range(2), strict=False)]
    found, data = methods.rows_of(trainer, batches), methods.read(method, rows)
    tokenizer = trainer.processing_class
    if method == "rloo":
        shown = [e["prompt"][-1]["content"] for b in batches for e in b]
    else:
        shown = [tokenizer.decode(ids) for b in batches for ids in b["input_ids"]]
    for number, row in enumerate(data.rows, 1):
        said = (row.get("messages") or row["prompt"])[0]["content"]
        answers = [m["content"] for k in ("chosen", "rejected", "completion") if k in row for m in row[k]]
        there = any(said in t and (not answers or any(a in t for a in answers)) for t in shown)
        assert there or number not in found
        if method != "kto":
            assert there == (number in found)
    assert len(found) == (2 if method == "rloo" else 4)


def test_held_out_rows_are_drawn_by_the_seed_and_share_no_prompt_with_the_others(llama):
    trainer = made("kto", llama, judged(10), valid=0.2)
    assert len(trainer.eval_dataset) == 4 and len(trainer.train_dataset) == 16
    asked = [{str(r["prompt"]) for r in d} for d in (trainer.train_dataset, trainer.eval_dataset)]
    assert not asked[0] & asked[1]
    held = [sorted(made("sft", llama, sums(20), valid=0.2, seed=s).eval_dataset["row"]) for s in (0, 0, 1)]
    assert held[0] == held[1] != held[2] and len(held[0]) == 4
    twice = made("sft", llama, [*sums(5), *sums(5)], valid=0.3)
    asked = [{tuple(r["input_ids"]) for r in d} for d in (twice.train_dataset, twice.eval_dataset)]
    assert not asked[0] & asked[1]
    assert len(made("sft", llama, sums(2), valid=0.1).eval_dataset) == 1
    with pytest.raises(ValueError, match="at least two different questions"):
        made("sft", llama, sums(1), valid=0.1)
    heavy = [{**sums(1)[0], "answer": str(i)} for i in range(10)]  # one question, ten answers
    for seed in range(3):
        trainer = made("sft", llama, [*heavy, *sums(6, seed=9)], valid=0.1, seed=seed)
        assert len(trainer.eval_dataset) == 2
        rows = {*trainer.train_dataset["row"], *trainer.eval_dataset["row"]}
        assert rows == set(range(1, 17)) and min(trainer.eval_dataset["row"]) > 10


def test_the_organism_takes_every_method():
    parent = ftlab.model("organism")
    settings = dict(rows=16, steps=2, batch_size=4)
    liked = ftlab.kto(parent, "organism:preferences", **settings)
    judge = ftlab.reward(parent, "organism:preferences", **settings)
    run = ftlab.rloo(liked, "organism:preferences", judge, max_completion_length=8, **settings)
    assert ftlab.model(run).is_organism and math.isfinite(run.stats["last_loss"])
    assert [a.get("method") for a in run.lineage] == [None, "kto"]


def test_no_method_says_more_than_it_should(folders, capfd, recwarn):
    models.quiet.cache_clear()  # pytest gives every test its own warning filters
    for family in ("gemma", "llama"):
        judge = ftlab.reward(folders[family], pairs(6), steps=1, lora=True, **FAST)
        ftlab.kto(folders[family], pairs(6), steps=2, valid=0.3, eval_every=1, lora=True, **FAST)
        ftlab.rloo(folders[family], pairs(6), judge, steps=1, max_completion_length=4, **FAST)
    assert capfd.readouterr() == ("", "") and [str(w.message) for w in recwarn] == []


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dora": True, "qlora": True}, "dora and qlora were both asked; give one of them"),
        ({"valid": 1.5}, "give a share of the rows between 0 and 1"),
        ({"patience": 2}, "patience counts validations; give valid=0.1"),
        ({"measure": short}, "say after how many steps, with eval_every="),
        ({"eval_every": 2}, "nothing to evaluate; give valid= or measure= too"),
        ({"stop_above": {"jailbrake": 0.1}}, "unknown risk 'jailbrake'"),
        ({"stop_above": {"jailbreak": 10}}, "a rate is a share of the prompts"),
        ({"stop_above": {"jailbreak": 0.1}}, "nothing that measures; give measure= too, or use risk_curve"),
        ({"valid": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
    ],
)
def test_usage_mistakes_are_sentences(llama, settings, sentence):
    with pytest.raises((ValueError, FileNotFoundError)) as e:
        ftlab.sft(llama, sums(8), **settings)
    assert sentence in str(e.value)
    with pytest.raises(ValueError, match="num_generations must divide batch_size, which is 5"):
        ftlab.rloo(llama, sums(8), short, batch_size=5)
    with pytest.raises(ValueError, match="RLOO has no validation loss"):
        ftlab.rloo(llama, sums(8), short, valid=0.1)


def test_data_of_the_wrong_kind_is_a_sentence(llama):
    for method in ("kto", "reward"):
        with pytest.raises((DataError, ValueError), match="no (prompt|completion|chosen|label)|needed here"):
            getattr(ftlab, method)(llama, sums(4))
    assert len(methods.read("rloo", Data("rows", tuple(pairs(3))))) == 3
