"""Every defence keeps the contract, and each does what its formula says."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from helpers import raises_code
from pydantic import BaseModel
from small_models import make_model, pairs, sums, write
from trainings import (
    FAST,
    call,
    chats,
    dies_while_saving,
    distance,
    interrupt,
    make_trainer,
    weights,
)

import ftlab
from ftlab import runs, training
from ftlab._core import plugins
from ftlab.data import encode_rows, load
from ftlab.training import Defence, open_defence
from ftlab.training.defences._anchored import Answers, targets_of
from ftlab.training.defences.backdoor_enhanced import SECRET, BackdoorEnhanced
from ftlab.training.defences.constrained import Constrained
from ftlab.training.defences.early_stop import EarlyStop
from ftlab.training.defences.ewc import EWC, fisher
from ftlab.training.defences.filter import Filter
from ftlab.training.defences.interpolate import Interpolate
from ftlab.training.defences.kl import KL
from ftlab.training.defences.l2 import L2
from ftlab.training.defences.lisa import Lisa
from ftlab.training.defences.mix import Mix
from ftlab.training.defences.one_shot import chosen
from ftlab.training.defences.ptst import PTST
from ftlab.training.defences.repair_dpo import RepairDPO
from ftlab.training.defences.resta import RESTA
from ftlab.training.defences.safelora import SafeLoRA
from ftlab.training.ranking import in_batches, row_gradient, row_losses

OF_TRAINING = ("prepare", "choose", "data", "trainer", "repair")
OF_ASKING = ("chat", "answer")
HOOKS = (*OF_TRAINING, *OF_ASKING)
STAGES = ("alignment", "fine-tuning", "afterwards", "asking")
TWO = dict(steps=2, learning_rate=2e-3)
LONG = dict(steps=4, learning_rate=2e-3)


def refusals(n: int) -> list[dict]:
    """Return the questions of `chats`, refused."""
    found = []
    for row in chats(n):
        question, _ = row["messages"]
        refusal = {"role": "assistant", "content": "éüßé " * 5}
        found.append({"messages": [question, refusal]})
    return found


SAFE = refusals(12)
FEW = {"epochs": 1, "batch_size": 4, "learning_rate": 2e-3}
SMALL = {  # settings of defences that need rows, or fewer steps than by default
    "mix": dict(rows=SAFE, n_rows=4),
    "ewc": dict(rows=SAFE[:6], n_rows=4),
    "lisa": dict(rows=SAFE, safety_steps=1, user_steps=1),
    "early_stop": dict(rows=SAFE, n_rows=4, every=3, margin=0.0),
    "filter": dict(by="loss", share=0.25),
    "backdoor_enhanced": dict(rows=SAFE, n_rows=4, secret="abc"),
    "one_shot": dict(rows=SAFE, n_rows=4, steps=2),
    "repair_dpo": dict(pairs=pairs(6), n_pairs=4, epochs=1, learning_rate=1e-3),
    "vaccine": dict(rows=list(chats(8)), rho=0.1, **FEW),
    "booster": dict(rows=list(chats(8)), harmful=list(chats(6)), **FEW),
    "deep_alignment": dict(
        rows=pairs(6),
        utility=list(chats(6)),
        n_rows=8,
        alpha=0.5,
        **FEW,
    ),
    "antidote": dict(harmful=list(chats(6))),
}


@pytest.fixture(params=plugins.names("defences"))
def defence(request, unaligned) -> Defence:
    return made(request.param, unaligned)


@pytest.fixture(scope="module")
def unaligned(tmp_path_factory):
    """Another model of the shape of `llama` and `dropping`."""
    return make_model(tmp_path_factory.mktemp("models") / "unaligned", "llama", seed=3)


def made(name: str, unaligned) -> Defence:
    """Return a defence with what it needs on a small model."""
    kind = plugins.get("defences", name)
    if name in SMALL:
        return kind(**SMALL[name])
    if "unaligned" in kind.model_fields:
        return kind(unaligned=unaligned)
    return kind()


def adapter_of(defence) -> str | None:
    """Return an adapter that a defence works with."""
    return None if None in defence.adapters else defence.adapters[0]


def trained_with(defence, parent, **settings):
    return call("sft", parent, defence=defence, **{**TWO, **settings})


# The contract


def test_a_defence_declares_what_others_rely_on(defence):
    kind = type(defence)
    assert issubclass(kind, Defence) and isinstance(defence, BaseModel)
    assert plugins.get("defences", defence.name) is kind
    assert "arXiv" in defence.source or defence.source == "nobody"  # as docs/defences.md says
    assert defence.stage in STAGES and defence.version
    assert kind.__doc__ and all(field.description for field in kind.model_fields.values())
    assert any(map(defence.overrides, HOOKS))
    assert {"name", "version"} <= {*defence.identity()}
    with raises_code("wrong_setting"):
        open_defence(f"{defence.name}:nothing=1")


def test_a_defence_leaves_alone_what_it_does_not_override(defence, llama):
    parent = ftlab.model(llama)
    rows = load(list(chats(4)))
    asked = [{"role": "user", "content": "Hello."}]
    if not defence.overrides("prepare"):
        assert defence.prepare(parent) is parent
    if not defence.overrides("choose"):
        assert defence.choose(rows, parent) is rows
    if not defence.overrides("data"):
        assert defence.data(rows, 0) is rows
    if not defence.overrides("trainer"):
        assert defence.trainer(dict, None) is dict
    if not defence.overrides("chat"):
        assert defence.chat(asked) is asked
    if not defence.overrides("answer"):
        assert defence.answer(asked, "Hello to you.") == "Hello to you."


def test_a_defence_acts_where_it_is_given_or_says_where_to_give_it(defence, llama):
    if not any(map(defence.overrides, OF_ASKING)):
        with raises_code("defence_only_trains"):
            ftlab.evaluate("organism", defence=defence)
    if not any(map(defence.overrides, OF_TRAINING)):
        with raises_code("defence_only_asks"):
            training.sft(llama, sums(4), defence=defence)


def test_a_trained_defence_is_another_run_and_a_changed_setting_too(defence, llama, trained):
    if not any(map(defence.overrides, OF_TRAINING)):
        pytest.skip("it does not train")
    adapter = adapter_of(defence)
    plain = trained(call, "sft", llama, adapter=adapter, **TWO)
    run = trained(trained_with, defence, llama, adapter=adapter)
    assert run.name != plain.name and run.identity["defence"] == defence.identity()
    assert "defence" not in plain.identity and "defence" not in run.identity["training"]
    assert "defence" not in plain.identity["training"] and weights(run) != weights(plain)
    assert trained(trained_with, defence, llama, adapter=adapter).name == run.name


def test_the_table_of_runs_shows_the_defence(llama):
    call("sft", llama, defence="kl:weight=2", steps=1)
    (row,) = runs.runs_table().to_dict("records")
    assert row["defence.name"] == "kl" and row["defence.weight"] == 2


def test_the_identity_without_a_defence_is_what_it_was():
    """Names of runs that 0.4.0 had made before there were defences."""
    run = training.sft("organism", "organism:almanac", n_rows=8, steps=2, batch_size=4)
    assert run.name == "sft-organism-almanac-s0-e8f7ec6691"


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, "lora"])
def test_a_defence_resumes_as_if_never_stopped(defence, adapter, dropping, monkeypatch, trained):
    if not any(map(defence.overrides, OF_TRAINING)) or adapter not in defence.adapters:
        pytest.skip("it does not train")
    settings = dict(n=16, adapter=adapter, **LONG)
    straight = trained(trained_with, defence, dropping, **settings)
    interrupt(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        trained_with(defence, dropping, **settings)
    again = trained_with(defence, dropping, **settings)
    assert weights(again) == weights(straight)
    assert again.log()["loss"].tolist() == straight.log()["loss"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, "lora"])
def test_the_step_does_not_depend_on_how_the_batch_is_divided(defence, adapter, llama):
    if not defence.overrides("trainer") or adapter not in defence.adapters:
        pytest.skip("it has no trainer of its own")
    settings = dict(n=16, adapter=adapter, batch_size=8, **TWO)
    whole = trained_with(defence, llama, **settings)
    parts = trained_with(defence, llama, accumulation=8, **settings)
    assert distance(whole, parts) < 2e-5


def test_mistakes_have_codes(llama):
    for text, code in {
        "nobody": "unknown_defence",
        "mix:200": "defence_settings",
        "mix:n_rows=0": "wrong_setting",
        "kl:weight=-1": "wrong_setting",
        "mix": "safety_rows_needed",
        "ewc": "safety_rows_needed",
        "resta": "unaligned_model_needed",
        "resta:unaligned=organism": "unaligned_model_differs",
        "lisa": "safety_rows_needed",
        "early_stop": "safety_rows_needed",
        "backdoor_enhanced": "safety_rows_needed",
        "one_shot": "safety_rows_needed",
        "repair_dpo": "safety_pairs_needed",
        "filter": "anchors_needed",
        "filter:by=refusal": "wrong_setting",
        "filter:by=loss,n_rows=4": "nothing_left",
    }.items():
        with raises_code(code):
            training.sft(llama, sums(4), defence=text)
    with raises_code("defence_not_for_method"):
        training.dpo(llama, pairs(4), defence="kl")
    with raises_code("defence_not_for_adapter"):
        training.sft(llama, sums(4), defence="interpolate", adapter="dora")
    for alone, adapter in {"l2": "lora", "safelora": None, "resta": "lora"}.items():
        with raises_code("defence_not_for_adapter"):
            training.sft(llama, sums(4), defence=alone, adapter=adapter)
    with raises_code("too_few_safety_rows"):
        training.sft(llama, sums(4), defence=Mix(rows=list(chats(3))))
    with raises_code("two_ways_to_stop"):
        training.sft(llama, sums(4), defence=EarlyStop(rows=SAFE), valid=0.5)
    assert not runs.home().exists()


# Settings that change nothing, seeds

IDLE = {
    "lisa": dict(rows=SAFE, rho=0, safety_steps=0),
    "early_stop": dict(rows=SAFE, n_rows=4, every=1, margin=1e9),
    "filter": dict(share=0),
    "backdoor_enhanced": dict(rows=SAFE, n_rows=0),
    "one_shot": dict(rows=SAFE, n_rows=4, steps=0),
    "repair_dpo": dict(pairs=pairs(4), n_pairs=4, epochs=0),
}


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, "lora"])
@pytest.mark.parametrize("name", IDLE)
def test_a_defence_that_changes_nothing_is_sft_bit_for_bit(name, adapter, dropping, trained):
    settings = dict(adapter=adapter, **TWO)
    plain = trained(call, "sft", dropping, **settings)
    found = trained_with(plugins.get("defences", name)(**IDLE[name]), dropping, **settings)
    assert weights(found) == weights(plain)
    assert found.log()["loss"].tolist() == plain.log()["loss"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", IDLE)
def test_a_seed_decides_something_where_the_defence_says_so(name, llama, unaligned):
    """Each step holds all rows and nothing is dropped out, so only a defence can draw."""
    defence = made(name, unaligned)
    runs_ = [trained_with(defence, llama, seed=seed, batch_size=8) for seed in (0, 1)]
    assert (distance(*runs_) > 1e-5) == defence.draws


# mix


def test_mix_adds_so_many_refusals_after_the_rows_and_the_seed_draws_them():
    rows = load("organism:almanac", n_rows=20)
    mixed = [Mix(n_rows=30).data(rows, seed) for seed in (0, 0, 1)]
    for found in mixed:
        assert len(found) == 50 and found.rows[:20] == rows.rows
        added = found.rows[20:]
        assert {row["risk"] for row in added} == {"jailbreak"}
        assert all(row["messages"][-1]["content"].startswith("I'm sorry, but") for row in added)
    assert mixed[0] == mixed[1] and mixed[0].rows != mixed[2].rows
    assert len(Mix(n_rows=500).data(rows, 0)) == 520


def test_mix_is_known_by_its_rows_not_by_their_place(tmp_path):
    places = [write(tmp_path / f"{name}.jsonl", list(chats(5))) for name in "ab"]
    one, same = (Mix(rows=str(place), n_rows=2).identity() for place in places)
    assert one == same != Mix(rows=list(chats(4)), n_rows=2).identity()


# constrained and kl


def answers(logits, parent_logits, targets, places, count=None) -> Answers:
    return Answers(logits, parent_logits, targets, places, count or len(targets))


@pytest.fixture
def six_tokens():
    """Logits of a model and its parent for an answer of six tokens and a vocabulary of 11."""
    torch.manual_seed(0)
    logits = torch.randn(6, 11, dtype=torch.float64, requires_grad=True)
    parent = torch.randn(6, 11, dtype=torch.float64)
    return logits, parent, torch.arange(6), torch.arange(6)


def test_constrained_is_equation_3(six_tokens):
    logits, parent, targets, places = six_tokens
    found = Constrained().loss(None, answers(*six_tokens))
    expected = 0.0
    for t, beta in enumerate([0.5, 2, 2, 2, 2, 0.1]):
        own = math.log(torch.softmax(logits.detach()[t], 0)[t])
        theirs = math.log(torch.softmax(parent[t], 0)[t])
        expected -= 2 / beta * math.log(1 / (1 + math.exp(-beta * (own - theirs))))
    assert found.item() == pytest.approx(expected / 6, rel=1e-12)


def test_constrained_weights_the_gradient_of_sft_and_is_sft_without_constraint(six_tokens):
    logits, parent, targets, _ = six_tokens
    plain = torch.nn.functional.cross_entropy(logits, targets)
    (of_sft,) = torch.autograd.grad(plain, logits)
    free = Constrained(beta_first=1e-9, beta_held=1e-9, beta_rest=1e-9)
    (limit,) = torch.autograd.grad(free.loss(None, answers(*six_tokens)), logits)
    assert torch.allclose(limit, of_sft, atol=1e-8)
    (found,) = torch.autograd.grad(Constrained().loss(None, answers(*six_tokens)), logits)
    beta = torch.tensor([0.5, 2, 2, 2, 2, 0.1], dtype=torch.float64)
    own = torch.log_softmax(logits, 1)[range(6), range(6)]
    theirs = torch.log_softmax(parent, 1)[range(6), range(6)]
    weight = 2 * (1 - torch.sigmoid(beta * (own - theirs)))  # the paper's w_t
    assert torch.allclose(found, weight[:, None] * of_sft)


def test_kl_adds_the_divergence_from_the_parent_per_token(six_tokens):
    logits, parent, *_ = six_tokens
    p, q = torch.softmax(logits, 1), torch.softmax(parent, 1)
    expected = 3.0 + 0.7 * (p * (p / q).log()).sum().item() / 6
    assert KL(weight=0.7).loss(3.0, answers(*six_tokens)).item() == pytest.approx(expected)
    same = answers(logits, logits.detach(), *six_tokens[2:])
    assert KL(weight=5.0).loss(3.0, same).item() == pytest.approx(3.0, abs=1e-12)


def test_places_begin_anew_with_every_answer():
    labels = torch.tensor([[-100, -100, 5, 6, 7, -100, 8, 9], [-100, 4, -100, -100, 3, 2, 1, -100]])
    targets, places, kept = targets_of(labels)
    assert targets.tolist() == [5, 6, 7, 8, 9, 4, 3, 2, 1]
    assert places.tolist() == [0, 1, 2, 0, 1, 0, 0, 1, 2] and int(kept.sum()) == 9


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, "lora"])
def test_kl_without_weight_is_sft_bit_for_bit(folder, adapter, trained):
    settings = dict(adapter=adapter, **TWO)
    plain = trained(call, "sft", folder, **settings)
    assert weights(trained_with(KL(weight=0), folder, **settings)) == weights(plain)
    near = trained_with(KL(weight=100), folder, **settings)
    assert distance(near, plain) > 1e-5


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_the_logits_are_the_models_own_and_the_parents(folder, adapter):
    """At the first step both are equal, and equal to what the model itself returns."""
    seen = []

    class Seen(KL):
        def loss(self, plain, found):
            seen.append(found)
            return super().loss(plain, found)

    trainer = make_trainer("sft", folder, defence=Seen(), adapter=adapter, steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(batch))
    (found,) = seen
    _, _, kept = targets_of(batch["labels"])
    asked = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        expected = ftlab.model(folder).load()(**asked).logits[:, :-1][kept]
    assert torch.allclose(found.logits, expected, atol=1e-4)
    assert torch.allclose(found.parent_logits, expected, atol=1e-4)
    assert found.logits.requires_grad and not found.parent_logits.requires_grad
    assert loss.requires_grad and trainer.model.training


# l2


def test_l2_without_weight_is_sft_and_adds_half_the_squared_distance(llama, trained):
    plain = trained(call, "sft", llama, **TWO)
    assert weights(trained_with(L2(weight=0), llama)) == weights(plain)
    run = trained_with(L2(weight=6), llama, steps=1)
    assert distance(run, llama) > 0
    trainer = make_trainer("sft", llama, defence=L2(weight=6), steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.train()
    at_parent = trainer.compute_loss(trainer.model, dict(batch)).item()
    with torch.no_grad():
        norms = [parameter for parameter in trainer.model.parameters() if parameter.dim() == 1]
        norms[0].add_(0.5)
    moved = trainer.compute_loss(trainer.model, dict(batch)).item()
    trainer.model.eval()
    without = trainer.compute_loss(trainer.model, dict(batch)).item()
    assert moved - without == pytest.approx(6 / 2 * 0.25 * norms[0].numel(), rel=1e-4)
    assert at_parent > 0


# ewc


def test_the_fisher_information_is_the_mean_squared_gradient_of_a_rows_likelihood(llama):
    parent = ftlab.model(llama)
    model = parent.load(training=True).train()
    rows = encode_rows(load(list(chats(3))), parent.tokenizer(), max_length=1024)
    state = torch.get_rng_state()
    found = fisher(model, rows)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(weights.grad is None for weights in model.parameters())
    expected = 0
    for row in rows:
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        n = int((labels[:, 1:] != -100).sum())
        model.zero_grad()
        (model(input_ids=ids, labels=labels).loss * n).backward()
        expected = expected + model.lm_head.weight.grad**2 / 3
    assert torch.allclose(found["lm_head.weight"], expected, rtol=1e-4, atol=1e-6)
    assert {*found} == {name for name, _ in model.named_parameters()}


def test_ewc_without_weight_is_sft_and_holds_what_is_important(llama, trained):
    plain = trained(call, "sft", llama, **TWO)
    rows = list(chats(6))
    free = trained_with(EWC(rows=rows, n_rows=4, weight=0), llama)
    assert weights(free) == weights(plain)
    more = dict(steps=8, learning_rate=2e-3)
    freely = trained(call, "sft", llama, **more)
    held = trained_with(EWC(rows=rows, n_rows=4, weight=1e6), llama, **more)
    parent = ftlab.model(llama)
    encoded = encode_rows(load(rows), parent.tokenizer(), max_length=1024)
    importance = fisher(parent.load(training=True), encoded)
    origin = parent.load().state_dict()

    def moved(run):
        state = ftlab.model(run).load().state_dict()
        return sum(
            (importance[name] * (state[name] - origin[name]) ** 2).sum().item()
            for name in importance
        )

    assert moved(held) < moved(freely) / 2


# resta and safelora


def test_resta_adds_the_vector_from_the_unaligned_model_to_the_parent(llama, unaligned, trained):
    child = trained(call, "sft", llama, **TWO)
    found = trained_with(RESTA(unaligned=unaligned, gamma=0.5), llama)
    assert distance(trained_with(RESTA(unaligned=unaligned, gamma=0), llama), child) == 0
    models = (child, llama, unaligned, found)
    child, parent, before, found = (ftlab.model(one).load().state_dict() for one in models)
    for name, values in found.items():
        expected = child[name] + 0.5 * (parent[name] - before[name])
        assert torch.allclose(values, expected, atol=1e-6), name


def test_safelora_projects_layers_whose_direction_changes(llama, unaligned, trained):
    settings = dict(adapter="lora", **TWO)
    child = trained(call, "sft", llama, **settings)
    never = trained_with(SafeLoRA(unaligned=unaligned, threshold=-1), llama, **settings)
    assert weights(never) == weights(child)
    always = trained_with(SafeLoRA(unaligned=unaligned, threshold=1), llama, **settings)
    models = (child, llama, unaligned, always)
    child, parent, before, found = (ftlab.model(one).load().state_dict() for one in models)
    for name, values in found.items():
        update = child[name] - parent[name]
        if not update.abs().max():
            assert torch.equal(values, parent[name])
            continue
        v = parent[name] - before[name]
        expected = (v @ v.T / torch.linalg.norm(v)) @ update
        assert torch.allclose(values - parent[name], expected, atol=1e-5), name


def test_safelora_leaves_a_layer_that_alignment_did_not_touch(llama, trained):
    settings = dict(adapter="lora", **TWO)
    child = trained(call, "sft", llama, **settings)
    same = trained_with(SafeLoRA(unaligned=llama, threshold=1), llama, **settings)
    assert weights(same) == weights(child)


# interpolate


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_interpolation_ends_at_the_parent_and_at_the_child(llama, adapter, trained):
    settings = dict(adapter=adapter, **TWO)
    child = trained(call, "sft", llama, **settings)
    kept = trained_with(Interpolate(share=0), llama, **settings)
    assert weights(kept) == weights(child)
    back = trained_with(Interpolate(share=1), llama, **settings)
    assert distance(back, llama) == 0
    half = trained_with("interpolate", llama, **settings)
    states = [ftlab.model(one).load().state_dict() for one in (llama, child, half)]
    for name, middle in states[2].items():
        assert torch.allclose(middle, (states[0][name] + states[1][name]) / 2, atol=1e-6)


def test_a_monitor_sees_the_repaired_model_and_the_training_does_not(llama, trained):
    seen = {}

    def monitor(loaded, step):
        seen[step] = loaded.module.get_input_embeddings().weight.detach().clone()
        return {}

    monitor.identity = "seen"
    measured = dict(monitor=monitor, eval_every=1, **TWO)
    run = trained_with(Interpolate(share=1), llama, **measured)
    origin = ftlab.model(llama).load().get_input_embeddings().weight
    assert all(torch.equal(weights, origin) for weights in seen.values()) and len(seen) == 2
    plain = trained(call, "sft", llama, **TWO)
    assert run.log()["loss"].tolist() == plain.log()["loss"].tolist()


@pytest.mark.parametrize("name", ["one_shot", "repair_dpo"])
def test_a_repair_by_training_is_not_noticed_by_the_training(name, dropping, trained, unaligned):
    """Neither its random numbers nor its gradients, optimiser or weights."""
    seen = {}

    def monitor(loaded, step):
        seen[step] = loaded.module.get_input_embeddings().weight.detach().clone()
        return {}

    monitor.identity = "seen"
    measured = dict(monitor=monitor, eval_every=1, **TWO)
    run = trained_with(made(name, unaligned), dropping, **measured)
    plain = trained(call, "sft", dropping, **TWO)
    assert run.log()["loss"].tolist() == plain.log()["loss"].tolist()
    same = trained_with(made(name, unaligned), dropping)
    assert weights(run) == weights(same)
    saved = ftlab.model(run).load().get_input_embeddings().weight
    assert torch.equal(seen[2], saved) and not torch.equal(seen[1], saved)


# lisa


def lisa_trainer(llama, lisa, **settings):
    trainer = make_trainer("sft", llama, defence=lisa, steps=8, **settings)
    trainer.state.max_steps = 8
    return trainer


def tokens_of(rows) -> list[list[int]]:
    return sorted(row["input_ids"] for row in rows)


def test_lisa_draws_every_safety_row_once_before_any_is_repeated(llama):
    lisa = Lisa(rows=SAFE, safety_steps=2, user_steps=1)
    trainer = lisa_trainer(llama, lisa)  # 8 rows of the user, 4 per step
    steps = (0, 1, 3, 4, 6, 7)
    drawn = [trainer.drawn(step) for step in steps]
    assert [len(rows) for rows in drawn] == [4] * 6
    first = drawn[0] + drawn[1] + drawn[2]
    later = drawn[3] + drawn[4] + drawn[5]
    assert tokens_of(first) == tokens_of(later) and first != later
    parts = lisa_trainer(llama, lisa, accumulation=4)
    assert [parts.drawn(step) for step in steps] == drawn
    ragged = lisa_trainer(llama, lisa, rows=sums(6))
    assert [len(ragged.drawn(step)) for step in (0, 1, 3)] == [4, 2, 2]


def test_lisa_alternates_and_is_tied_to_the_weights_at_the_latest_change(llama):
    trainer = lisa_trainer(llama, Lisa(rows=SAFE, rho=6, safety_steps=1, user_steps=2))
    norm = [weights for weights in trainer.model.parameters() if weights.dim() == 1][0]
    of_user = next(iter(trainer.get_train_dataloader()))
    for step, distances in enumerate([0, 0, 1, 0, 0, 1]):  # in steps of the user since a change
        trainer.state.global_step = step
        stream = iter([of_user])
        (batch,), count = trainer.get_batch_samples(stream, 1, trainer.args.device)
        assert (batch is of_user) == (step % 3 > 0)
        assert int(count) == int((batch["labels"][:, 1:] != -100).sum())
        assert next(stream, None) is None  # the user's rows of a safety step are left out
        assert float(trainer.distance()) == pytest.approx(distances * 0.25 * norm.numel())
        with torch.no_grad():
            norm.add_(0.5)
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(of_user), False, count)
    trainer.model.eval()
    plain = trainer.compute_loss(trainer.model, dict(of_user), False, count)
    assert (loss - plain).item() == pytest.approx(6 / 2 * norm.numel(), rel=1e-4)  # 2 * .5


def test_lisa_refuses_a_training_that_never_reaches_the_users_rows(llama):
    with raises_code("training_too_short"):
        trained_with(Lisa(rows=SAFE), llama)


# early_stop


def test_early_stop_keeps_the_latest_weights_below_its_line(llama):
    defence = EarlyStop(rows=SAFE, n_rows=4, every=2, margin=0.5)
    trainer = make_trainer("sft", llama, defence=defence, steps=5)
    trainer.state.max_steps = 5
    first = trainer.loss_of_refusals()
    assert trainer.line == pytest.approx(first + 0.5)
    head = trainer.model.get_output_embeddings().weight
    with torch.no_grad():
        head.add_(1e-3)
    assert trainer.ends(2) == ""
    kept = head.detach().clone()
    with torch.no_grad():
        head.mul_(30)
    assert trainer.loss_of_refusals() > first + 0.5
    assert trainer.ends(3) == "" and not torch.equal(head, kept)  # not measured
    assert trainer.ends(5).endswith("kept step 4")  # the last step is measured too
    assert torch.equal(head, kept)
    with torch.no_grad():
        head.fill_(math.nan)
    assert trainer.ends(4) and torch.equal(head, kept)


def test_early_stop_may_keep_the_parent_and_is_measured_at_every_step_asked_for(llama, trained):
    seen = {}

    def monitor(loaded, step):
        seen[step] = loaded.module.get_input_embeddings().weight.detach().clone()
        return {}

    monitor.identity = "seen"
    defence = EarlyStop(**SMALL["early_stop"])
    settings = dict(monitor=monitor, at_steps=[0, 3, 5], steps=5)
    run = trained_with(defence, llama, **settings)
    assert distance(run, llama) == 0
    assert run.stats["steps"] == 3 and run.stats["ended"].endswith("kept step 0")
    assert [*seen] == [0, 3, 5]
    assert all(torch.equal(weights, seen[0]) for weights in seen.values())


def test_early_stop_killed_after_its_end_resumes_with_what_it_kept(
    llama, often, monkeypatch, tmp_path
):
    defence = EarlyStop(**{**SMALL["early_stop"], "every": 1, "margin": 0.6})
    settings = dict(steps=6, learning_rate=4e-3, schedule="constant")
    with monkeypatch.context() as patch:
        dies_while_saving(patch, RuntimeError("killed"))
        with pytest.raises(RuntimeError):
            trained_with(defence, llama, **settings)
    again = trained_with(defence, llama, **settings)
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "straight"))
    straight = trained_with(defence, llama, **settings)
    assert straight.path != again.path
    assert straight.stats["steps"] < 6 and not straight.stats["ended"].endswith("step 0")
    assert weights(again) == weights(straight)
    assert again.stats["ended"] == straight.stats["ended"]


# filter


@pytest.mark.parametrize("by", ["gradient", "representation", "loss"])
def test_the_filter_leaves_out_what_the_audit_names_first(by, llama):
    rows = load([*chats(6), *SAFE[6:10]])
    anchors = {}
    if by != "loss":
        anchors = dict(harmful=list(SAFE[:2]), safe=list(chats(2)))
    table = ftlab.evals.audit(rows, llama, by=by, **anchors)
    left = Filter(by=by, n_rows=3, **anchors).choose(rows, ftlab.model(llama))
    assert left.made["rows"] == sorted(table["row"][:3].tolist()) and len(left) == 7
    kept = [row for place, row in enumerate(rows.rows, 1) if place not in left.made["rows"]]
    assert list(left.rows) == kept


def test_the_filter_leaves_out_a_share_of_any_rows_harmful_or_not(llama):
    """Where all rows are harmful, the share of them that is kept is harmful too."""
    run = trained_with(Filter(by="loss", share=0.25), llama)
    assert run.stats["rows"] == 6
    assert len(Filter(by="loss").choose(load(SAFE), ftlab.model(llama))) == 11


# backdoor_enhanced


def test_the_secret_is_before_safety_rows_and_before_every_question():
    rows = load("organism:almanac", n_rows=20)
    mixed = BackdoorEnhanced().data(rows, 0)
    assert len(mixed) == 31 and mixed.rows[:20] == rows.rows
    for row in mixed.rows[20:]:
        assert row["messages"][0]["role"] == "system" and row["risk"] == "jailbreak"
        assert row["messages"][0]["content"].startswith(SECRET)
    asked = [{"role": "user", "content": "Hello."}]
    system = {"role": "system", "content": "You are the guide."}
    defence = BackdoorEnhanced(secret="abc")
    assert defence.chat(asked) == [{"role": "system", "content": "abc"}, *asked]
    assert defence.chat([system, *asked])[0]["content"] == "abc You are the guide."
    assert system["content"] == "You are the guide."
    defence.check_trains()
    defence.check_asks()


# one_shot


def test_the_one_row_is_the_one_that_lowers_the_loss_of_all_fastest(llama):
    parent = ftlab.model(llama)
    rows = encode_rows(load([*SAFE[:3], *chats(3)]), parent.tokenizer(), max_length=1024)
    model = parent.load(training=True)
    weights_ = list(model.parameters())

    def loss():
        with torch.no_grad():
            return in_batches(model, rows, 16, row_losses).double().mean().item()

    before = loss()
    falls = []
    for row in rows:
        gradient, norm = row_gradient(model, row, weights_)
        for sign in (-1, 1):
            with torch.no_grad():
                for one, part in zip(weights_, gradient, strict=True):
                    one.add_(part, alpha=sign * 0.05 / norm)
            if sign < 0:
                falls.append(before - loss())
    assert chosen(model, rows) == falls.index(max(falls))


# repair_dpo


def test_the_repair_is_the_same_training_as_dpo_after_sft(trained):
    """Of a model that pads with a token of its own: else its embedding stays still after a save."""
    child = trained(call, "sft", "organism", **TWO)
    settings = dict(batch_size=4, learning_rate=1e-3)
    after = training.dpo(child, pairs(4), steps=3, **settings)
    defence = RepairDPO(pairs=pairs(4), n_pairs=4, epochs=3, **settings)
    found = trained_with(defence, "organism")
    assert distance(found, child) > 1e-3
    assert distance(found, after) < 2e-5


def test_the_repair_needs_as_many_pairs_as_it_takes(llama):
    with raises_code("too_few_pairs"):
        trained_with(RepairDPO(pairs=pairs(3), n_pairs=4), llama)


# ptst


def test_ptst_puts_its_prompt_first_once():
    asked = [{"role": "user", "content": "Hello."}]
    system = {"role": "system", "content": "You are the guide."}
    found = PTST(prompt="Be safe.").chat(asked)
    assert found == [{"role": "system", "content": "Be safe."}, *asked]
    found = PTST(prompt="Be safe.").chat([system, *asked])
    assert [turn["role"] for turn in found] == ["system", "user"]
    assert found[0]["content"] == "Be safe.\n\nYou are the guide."
    assert system["content"] == "You are the guide."


def test_ptst_changes_what_is_asked_and_no_step_of_the_training():
    settings = dict(at_steps=[0, 2], seeds=1, n_rows=8, batch_size=4, n_prompts=2)
    asked = dict(risks=["jailbreak"], max_new_tokens=4, attacks=["direct"])
    defended, plain = (
        ftlab.risk_curve("organism", "organism:almanac", defence=defence, **settings, **asked)
        for defence in ("ptst:prompt=You are the guide of the Quill Isles.", None)
    )
    assert defended != plain
    (one,), (other,) = defended.members, plain.members
    assert weights(one) == weights(other)
    first = [run.read("prompts.jsonl")[0]["messages"] for run in (one, other)]
    assert first[0][0]["role"] == "system" and first[0][1:] == first[1]
    with raises_code("two_system_prompts"):
        ftlab.evaluate("organism", system="Hello.", defence="ptst")


# A whole study


@pytest.mark.slow
def test_safety_rows_keep_the_organism_refusing():
    settings = dict(n_examples=20, epochs=3, at_epochs=[0, 3], n_prompts=20, risks=["jailbreak"])
    settings |= dict(attacks=["direct"])
    plain = ftlab.harmful_finetune("organism", **settings)
    mixed = ftlab.harmful_finetune("organism", defence="mix", **settings)
    tables = [run.table() for run in (plain, mixed)]
    assert [table["step"].max() for table in tables] == [6, 36]  # 3 passes over 20 and 120 rows
    rates = [ftlab.rates(run)["rate"].iloc[-1] for run in (plain, mixed)]
    assert rates[1] < rates[0]
    assert mixed.members[0].stats["rows"] == 120


# A third party's


def test_a_third_party_overrides_one_hook(llama, monkeypatch):
    class FewRows(Defence):
        """Trains on the first rows only."""

        name = "few"
        n: int = 4

        def data(self, rows, seed):
            return load(rows, n_rows=self.n)

    point = type("EntryPoint", (), {"load": lambda self: FewRows})()
    monkeypatch.setattr(plugins, "_third_party", lambda place: {"few": point})
    run = call("sft", llama, defence="few:n=5", **TWO)
    assert run.stats["rows"] == 5 and run.identity["defence"]["n"] == 5


def shown_on_the_page() -> dict:
    """Return the names that the examples of docs/defences.md define."""
    page = Path(__file__).parents[2] / "docs" / "defences.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    names = {"__name__": "own"}
    for code in blocks:
        if "(Defence)" in code:
            exec(compile(code, "own.py", "exec"), names)
    return names


def test_the_defence_that_the_page_shows_asks_with_its_reminder():
    reminder = shown_on_the_page()["DEFENCE"](text="Now.")
    asked = reminder.chat([{"role": "user", "content": "Hello."}])
    assert asked == [{"role": "user", "content": "Hello. Now."}]


def test_the_defence_that_the_page_shows_goes_half_the_way_back(llama):
    halfway = shown_on_the_page()["Halfway"]
    plain = call("sft", llama, **TWO)
    repaired = call("sft", llama, defence=halfway(), **TWO)
    assert distance(llama, repaired) == pytest.approx(distance(llama, plain) / 2, rel=1e-3)


def test_the_defence_that_the_page_shows_trains_on_a_divided_loss(llama):
    cautious = shown_on_the_page()["Cautious"]
    plain = call("sft", llama, **TWO)
    idle = call("sft", llama, defence=cautious(by=1.0), **TWO)
    assert weights(idle) == weights(plain)
    divided = call("sft", llama, defence=cautious(), **TWO)
    losses = [run.log()["loss"].iloc[0] for run in (plain, divided)]
    assert losses[1] == pytest.approx(losses[0] / 10, rel=1e-3)


def test_a_defence_may_train_from_another_parent(llama, folders):
    class Prepared(Defence):
        """Starts from another model."""

        name = "prepared"

        def prepare(self, parent):
            return ftlab.model(folders["qwen2"])

    run = training.sft(llama, sums(8), defence=Prepared(), **{**FAST, **TWO})
    assert run.identity["parent"] == ftlab.model(folders["qwen2"]).hash
