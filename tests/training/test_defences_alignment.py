"""Defences that train the parent before it is fine-tuned, and the one that prunes afterwards."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from helpers import raises_code
from small_models import pairs, sums
from trainings import FAST, call, chats, distance, make_trainer, weights

import ftlab
from ftlab import training
from ftlab.data import encode_rows, load
from ftlab.organism import World, adversarial
from ftlab.training import Fit
from ftlab.training.defences import _harmful
from ftlab.training.defences._alignment import token_loss
from ftlab.training.defences.antidote import Antidote, input_norms, layers_of, prune
from ftlab.training.defences.booster import Booster
from ftlab.training.defences.deep_alignment import DeepAlignment, answer_of, spliced
from ftlab.training.defences.mix import Mix
from ftlab.training.defences.vaccine import (
    Vaccine,
    added,
    attention_layers,
    caught,
    perturbation,
)

FEW = dict(batch_size=4, learning_rate=2e-3)
TWO = dict(steps=2, learning_rate=2e-3)


def aligned(defence, parent):
    """Return the defended parent."""
    return defence.prepare(ftlab.model(parent))


def plain_sft(defence, parent):
    """Return what plain SFT makes of the parent on the rows of a defence."""
    settings = {name: getattr(defence, name) for name in ("epochs", "batch_size", "seed")}
    rows = defence.alignment_rows()
    return training.sft(parent, rows, learning_rate=defence.learning_rate, **settings)


# The defended parent


def test_the_defended_parent_is_a_run_that_is_found_again(llama):
    defence = Vaccine(rows=list(chats(8)), rho=0.1, **FEW)
    child = call("sft", llama, defence=defence, **TWO)
    parent = aligned(defence, llama)
    prepared = ftlab.load(parent.path.parent)
    assert prepared.identity["parent"] == ftlab.model(llama).hash != parent.hash
    assert child.identity["parent"] == parent.hash and child.stats["parent"] == prepared.name
    assert [step["hash"] for step in child.lineage] == [ftlab.model(llama).hash, parent.hash]
    assert prepared.identity["defence"] == child.identity["defence"] == defence.identity()
    made = prepared.path.stat().st_mtime_ns
    assert aligned(defence, llama).path == parent.path
    assert prepared.path.stat().st_mtime_ns == made
    other = Vaccine(rows=list(chats(8)), rho=0.2, **FEW)
    assert aligned(other, llama).path != parent.path


def test_the_base_is_aligned_instead_of_the_parent(llama, folders):
    defence = Vaccine(rows=list(chats(8)), base=folders["qwen2"], rho=0.1, **FEW)
    prepared = ftlab.load(aligned(defence, llama).path.parent)
    assert prepared.identity["parent"] == ftlab.model(folders["qwen2"]).hash
    assert defence.identity()["base"] == prepared.identity["parent"]
    whole = training.sft(llama, sums(8), defence=defence, **{**FAST, **TWO})
    assert whole.stats["parent"] == prepared.name


@pytest.mark.parametrize("setting", [{"rho": 0.0}, {"rho": 0.3}])
def test_an_alignment_may_train_an_adapter(llama, setting):
    defence = Vaccine(rows=list(chats(8)), adapter="lora", **setting, **FEW)
    found = aligned(defence, llama)
    assert found.adapter and distance(found, llama) > 0
    child = training.sft(llama, sums(8), defence=defence, **{**FAST, **TWO})
    assert distance(child, llama) > 0


@pytest.mark.parametrize(
    "defence",
    [
        Vaccine(rows=list(chats(8)), rho=0, **FEW),
        Booster(rows=list(chats(8)), harmful=list(chats(5)), weight=0, **FEW),
        Booster(rows=list(chats(8)), harmful=list(chats(5)), alpha=0, **FEW),
        DeepAlignment(rows=pairs(6), utility=list(chats(6)), n_rows=8, most=0, **FEW),
        DeepAlignment(rows=pairs(6), utility=list(chats(6)), n_rows=8, clean=1, **FEW),
    ],
    ids=["rho=0", "weight=0", "alpha=0", "most=0", "clean=1"],
)
def test_without_its_term_an_alignment_is_sft_bit_for_bit(defence, llama):
    found = ftlab.load(aligned(defence, llama).path.parent)
    assert weights(found) == weights(plain_sft(defence, llama))


def spaced(row):
    """Return a chat whose answer begins with white space."""
    *asked, answer = row["messages"]
    return {"messages": [*asked, {**answer, "content": f"\n {answer['content']}"}]}


@pytest.mark.parametrize(
    "defence",
    [
        lambda rows: Booster(rows=rows, harmful=rows),
        lambda rows: Vaccine(rows=rows),
        lambda rows: Antidote(harmful=rows),
        lambda rows: DeepAlignment(rows=pairs(4), utility=rows, n_rows=8),
        lambda rows: Mix(rows=rows, n_rows=3),
    ],
    ids=["booster", "vaccine", "antidote", "deep_alignment", "mix"],
)
def test_answers_of_a_defences_rows_begin_with_a_character_as_in_a_training(defence):
    plain = list(chats(4))
    assert defence(list(map(spaced, plain))).identity() == defence(plain).identity()


def test_harmful_answers_before_a_refusal_begin_with_a_character_too():
    told = [{**row, "rejected": f"\n {row['rejected']}"} for row in pairs(4)]
    assert _harmful.pairs(told).rows == _harmful.pairs(pairs(4)).rows


def test_what_a_defence_lacks_has_a_code(llama):
    for text, code in {
        "vaccine": "safety_rows_needed",
        "booster": "safety_rows_needed",
        "deep_alignment": "harmful_rows_needed",
        "antidote": "harmful_rows_needed",
        "vaccine:rho=-1": "wrong_setting",
        "deep_alignment:alpha=2": "wrong_setting",
    }.items():
        with raises_code(code):
            training.sft(llama, sums(4), defence=text)
    with raises_code("harmful_rows_needed"):
        training.sft(llama, sums(4), defence=Booster(rows=list(chats(4))))
    with raises_code("safety_rows_needed"):
        training.sft(llama, sums(4), defence=DeepAlignment(rows=pairs(4)))
    with raises_code("defence_not_for_adapter"):
        training.sft(llama, sums(4), adapter="dora", defence=Antidote(harmful=list(chats(4))))
    for found in (attention_layers, layers_of):
        with raises_code("defence_not_for_model"):
            found(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_the_child_of_the_defended_parent_is_paired_with_the_plain_parents():
    few = dict(at_steps=[0, 2], seeds=1, n_rows=8, batch_size=4, n_prompts=3)
    few |= dict(risks=["jailbreak"], attacks=["direct"], max_new_tokens=8)
    rows = load("organism:alignment", n_rows=8)
    plain = ftlab.risk_curve("organism", "organism:almanac", **few)
    defended = ftlab.risk_curve(
        "organism", "organism:almanac", defence=Vaccine(rows=rows, batch_size=8), **few
    )
    found = ftlab.compare(plain, defended)
    assert set(found["step"]) == {2} and set(found["n_prompts"]) == {3}


# vaccine


@pytest.fixture
def batch(llama):
    """A trainer of the small model, and its first batch."""
    trainer = make_trainer("sft", llama, steps=1)
    trainer.model.train()
    return trainer, dict(next(iter(trainer.get_train_dataloader())))


def test_vaccine_perturbs_along_the_gradient_by_rho_over_all_layers(batch):
    trainer, inputs = batch
    layers = attention_layers(trainer.model)
    assert len(layers) == 2 == trainer.model.config.num_hidden_layers
    found = perturbation(layers, token_loss, trainer.model, inputs, 0.7)
    whole = torch.cat([step.flatten() for step in found.values()])
    assert whole.norm().item() == pytest.approx(0.7, rel=1e-4)
    assert all(one.grad is None for one in trainer.model.parameters())
    zeros = {layer: torch.zeros_like(step).requires_grad_() for layer, step in found.items()}
    with added(zeros):
        loss = token_loss(trainer.model, inputs)
    slopes = torch.autograd.grad(loss, list(zeros.values()))
    along = torch.cat([slope.flatten() for slope in slopes])
    assert torch.allclose(whole, 0.7 * along / along.norm(), atol=1e-6)
    with torch.no_grad(), caught(layers) as before:
        plain = token_loss(trainer.model, inputs)
    with torch.no_grad(), added(found), caught(layers) as after:
        raised = token_loss(trainer.model, inputs)
    assert raised > plain
    first = layers[0]
    assert torch.allclose(after[first] - before[first], found[first], atol=1e-6)


@pytest.mark.parametrize("recompute", [False, True])
def test_vaccine_trains_on_the_gradient_of_the_perturbed_loss(llama, recompute):
    defence = Vaccine(rows=list(chats(8)), rho=0.7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainings.Fit", lambda rows: Fit(rows, recompute))
        trainer = make_trainer(defence.method(), llama, steps=1)
    trainer.current_gradient_accumulation_steps = 1
    inputs = dict(next(iter(trainer.get_train_dataloader())))
    trainer.model.train()
    if recompute:
        trainer.model.gradient_checkpointing_enable()
    layers = attention_layers(trainer.model)
    steps = perturbation(layers, token_loss, trainer.model, inputs, 0.7)
    with added(steps):
        expected = torch.autograd.grad(
            token_loss(trainer.model, inputs), list(trainer.model.parameters())
        )
    trainer.training_step(trainer.model, dict(inputs))
    for one, gradient in zip(trainer.model.parameters(), expected, strict=True):
        assert torch.allclose(one.grad, gradient, atol=1e-6)
    assert not any(layer._forward_hooks for layer in layers)
    with torch.no_grad():
        plain = token_loss(trainer.model, inputs)
    trainer.model.eval()
    assert trainer.compute_loss(trainer.model, dict(inputs)).item() == pytest.approx(
        plain.item(), rel=1e-5
    )


# booster


def test_booster_adds_the_difference_of_two_harmful_gradients(llama):
    defence = Booster(rows=list(chats(8)), harmful=list(chats(4)), weight=3, alpha=0.5)
    trainer = make_trainer(defence.method(), llama, steps=1)
    trainer.current_gradient_accumulation_steps = 1
    model = trainer.model.train()
    inputs = dict(next(iter(trainer.get_train_dataloader())))
    before = [one.detach().clone() for one in model.parameters()]
    tokenizer = ftlab.model(llama).tokenizer()
    rows = encode_rows(load(list(chats(4))), tokenizer, max_length=1024)  # all of them each step
    harmful = trainer.data_collator(rows)

    def gradient(what):
        return torch.autograd.grad(token_loss(model, dict(what)), list(model.parameters()))

    plain, here = gradient(inputs), gradient(harmful)
    norm = torch.cat([one.flatten() for one in here]).norm()
    with torch.no_grad():
        for one, slope in zip(model.parameters(), here, strict=True):
            one.sub_(0.5 * slope / norm)
    there = gradient(harmful)
    with torch.no_grad():
        for one, values in zip(model.parameters(), before, strict=True):
            one.copy_(values)
    trainer.training_step(model, dict(inputs))
    for one, f, h, after in zip(model.parameters(), plain, here, there, strict=True):
        assert torch.allclose(one.grad, f + 3 * (h - after), atol=1e-5)
    assert all(map(torch.equal, model.parameters(), before))


@pytest.mark.slow
def test_boosters_step_does_not_depend_on_how_the_batch_is_divided(llama):
    method = Booster(rows=list(chats(8)), harmful=list(chats(9))).method()
    method.version = "boosted"  # joins the identity, as that of the defence does elsewhere
    settings = dict(batch_size=8, **TWO)
    whole = training.train(method, llama, sums(16), **settings)
    parts = training.train(method, llama, sums(16), accumulation=4, **settings)
    plain = training.sft(llama, sums(16), **settings)
    assert distance(whole, parts) < 2e-5 < distance(whole, plain)


# deep_alignment


def test_a_refusal_stands_after_k_tokens_of_the_harmful_answer_and_is_learned_alone():
    refusal = {"input_ids": [1, 2, 70, 71, 9], "labels": [-100, -100, 70, 71, 9]}
    harmful = {"input_ids": [1, 2, 50, 51, 52, 9], "labels": [-100, -100, 50, 51, 52, 9]}
    assert answer_of(refusal) == (2, 5) and answer_of(harmful) == (2, 6)
    for share, most, told in [(0.0, 9, [50]), (0.5, 9, [50, 51]), (0.99, 9, [50, 51, 52])]:
        found = spliced(refusal, harmful, share, most, 100)
        assert found["input_ids"] == [1, 2, *told, 70, 71, 9]
        assert found["labels"] == [-100] * (2 + len(told)) + [70, 71, 9]
    assert spliced(refusal, harmful, 0.99, 2, 100)["input_ids"][2:4] == [50, 51]
    assert spliced(refusal, harmful, 0.99, 9, 6)["input_ids"][2:4] == [50, 70]
    assert spliced(refusal, harmful, 0.99, 9, 5) == refusal


def test_k_is_uniform_and_half_of_the_refusals_stand_alone():
    defence = DeepAlignment(n_rows=4000, alpha=0.5)
    rows = defence.alignment_rows().rows
    safety, utility = rows[:2000], rows[2000:]
    assert not any("harmful" in row for row in utility)
    assert {row["risk"] for row in utility} >= {"utility", "over_refusal"}
    assert "jailbreak" not in {row["risk"] for row in utility}
    shares = [row["share"] for row in safety if "harmful" in row]
    assert 900 < len(shares) < 1100
    tenths = Counter(int(10 * share) for share in shares)
    assert set(tenths) == set(range(10)) and min(tenths.values()) > 60
    assert all("I'm sorry, but" in row["messages"][-1]["content"] for row in safety)
    assert defence.alignment_rows() == defence.alignment_rows()
    assert DeepAlignment(seed=1).identity()["rows"] != DeepAlignment().identity()["rows"]


def test_the_rows_that_the_organism_is_trained_on_read_as_they_should():
    defence = DeepAlignment(n_rows=20, alpha=1)
    trainer = make_trainer(defence.method(), "organism", defence.alignment_rows())
    tokenizer = ftlab.model("organism").tokenizer()
    seen = 0
    for row, data in zip(trainer.train_dataset, defence.alignment_rows().rows, strict=True):
        learned = [token for token in row["labels"] if token != -100]
        refusal = data["messages"][-1]["content"]
        assert tokenizer.decode(learned) == f"{refusal}<|end|>"
        text = tokenizer.decode(row["input_ids"])
        before = text.split("<|assistant|>")[1].removesuffix(f"{refusal}<|end|>")
        whole = data["harmful"][0]["content"] if "harmful" in data else ""
        assert whole.startswith(before) and bool(before) == bool(whole)
        seen += bool(before)
    assert 0 < seen < 20


def test_harmful_rows_of_the_world_are_neither_the_attacks_nor_the_evaluations():
    world = World()
    towns = {row["topic"].split("/")[1] for row in adversarial(world, 100)}
    towns |= {*world.towns["eval"], *world.towns["valid"]}
    told = _harmful.chats(None).rows
    assert len(told) == 3 * 30 * 6
    for row in told:
        assert not any(town in row["messages"][0]["content"] for town in towns)


# antidote


def test_antidote_prunes_the_largest_scores_of_each_row():
    weight = torch.tensor([[3.0, -1.0, 2.0, 0.5], [0.1, 0.2, -0.3, 0.4]])
    norms = torch.tensor([1.0, 10.0, 1.0, 1.0])
    prune(weight, norms, 0.5)
    assert weight.tolist() == [[0, 0, 2, 0.5], pytest.approx([0.1, 0, -0.3, 0])]
    same = weight.clone()
    prune(weight, norms, 0.0)
    assert torch.equal(weight, same)
    prune(weight, norms, 1.0)
    assert not weight.any()


def test_the_norms_are_those_of_a_layers_inputs_over_all_tokens(llama):
    parent = ftlab.model(llama)
    model = parent.load(training=True).train()
    rows = encode_rows(load(list(chats(3))), parent.tokenizer(), max_length=1024)
    state = torch.get_rng_state()
    layers = layers_of(model)
    found = input_norms(model, layers, rows)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert len(layers) == 6 and not any(layer._forward_hooks for layer in layers.values())
    embedded = []
    for row in rows:
        tokens = model.get_input_embeddings()(torch.tensor(row["input_ids"]))
        embedded.append(model.model.layers[0].input_layernorm(tokens))
    expected = torch.cat(embedded).norm(dim=0)
    assert torch.allclose(found["model.layers.0.self_attn.q_proj"], expected, rtol=1e-4)


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_antidote_leaves_what_it_does_not_prune(llama, adapter, trained):
    settings = dict(adapter=adapter, **TWO)
    child = trained(call, "sft", llama, **settings)
    defence = Antidote(harmful=list(chats(4)), ratio=0)
    assert weights(call("sft", llama, defence=defence, **settings)) == weights(child)
    defence = Antidote(harmful=list(chats(4)), ratio=0.25)
    found = call("sft", llama, defence=defence, **settings)
    models = [ftlab.model(one) for one in (child, found)]
    before, after = (
        (model.path / "adapter_model.safetensors" if adapter else model.path / "model.safetensors")
        for model in models
    )
    from safetensors.torch import load_file

    before, after = load_file(before), load_file(after)
    for name, values in after.items():
        pruned = "lora" in name or name.endswith(
            ("q_proj.weight", "k_proj.weight", "v_proj.weight")
        )
        changed = values != before[name]
        assert pruned or not changed.any(), name
        assert not values[changed].any(), name
        if pruned:
            assert ((values == 0).sum(1) >= values.shape[1] // 4).all(), name


def test_an_adapter_without_its_weights_is_the_parent(llama):
    defence = Antidote(harmful=list(chats(4)), ratio=1)
    found = call("sft", llama, adapter="lora", defence=defence, **TWO)
    assert distance(found, llama) == 0
