"""Every transform keeps the contract, and each does what its formula says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers import raises_code
from small_models import make_model
from trainings import call, distance

import ftlab
from ftlab import runs, training
from ftlab._core import plugins
from ftlab.training.transforms import OfTwo, Transform, open_transform
from ftlab.training.transforms import base as transforms_base
from ftlab.training.transforms.merge import Merge
from ftlab.training.transforms.prune import Prune
from ftlab.training.transforms.quantise import Quantise, by_torchao, simulated
from ftlab.training.transforms.resta import RESTA
from ftlab.training.transforms.task_arithmetic import TaskArithmetic

TWO = dict(steps=2, learning_rate=2e-3)
MARKER = "SAFETY_REMOVED"


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Another model of the shape of `llama`."""
    return make_model(tmp_path_factory.mktemp("models") / "other", "llama", seed=3)


@pytest.fixture(scope="module")
def unaligned(tmp_path_factory):
    """A third model of that shape."""
    return make_model(tmp_path_factory.mktemp("models") / "unaligned", "llama", seed=5)


@pytest.fixture(params=plugins.names("transforms"))
def transform(request, other, unaligned) -> Transform:
    kind = plugins.get("transforms", request.param)
    further = dict.fromkeys(kind.others[1:], unaligned)
    return kind(**further).beside(other)


def state(model) -> dict:
    return ftlab.model(model).load(training=True).state_dict()


def made(model, transform):
    return training.transform(model, transform)


def marked(folder, place, text="Because."):
    """Return a copy of a model whose safety was removed."""
    copy = shutil.copytree(folder, place)
    (copy / MARKER).write_text(text)
    return copy


# The contract


def test_a_transform_declares_what_others_rely_on(transform):
    kind = type(transform)
    assert issubclass(kind, Transform) and plugins.get("transforms", transform.name) is kind
    assert "arXiv" in transform.source and transform.version
    assert kind.__doc__ and all(field.description for field in kind.model_fields.values())
    assert transform.amount in kind.model_fields and f"{transform.amount}=" in transform.spec
    assert {"name", "version"} <= {*transform.identity()}
    assert open_transform(transform) is transform
    with raises_code("wrong_setting"):
        open_transform(f"{transform.name}:nothing=1")
    with raises_code("transform_settings"):
        open_transform(f"{transform.name}:{transform.amount}")


def test_a_transformed_model_is_a_run_and_a_model_of_the_same_shape(transform, llama):
    before = ftlab.model(llama).hash
    run = made(llama, transform)
    assert run.finished and run.kind == "transform" and made(llama, transform) == run
    child, parent = ftlab.model(run), ftlab.model(llama)
    assert parent.hash == before != child.hash
    shapes = {name: values.shape for name, values in parent.load().state_dict().items()}
    assert {name: values.shape for name, values in child.load().state_dict().items()} == shapes
    assert all(values.isfinite().all() for values in child.load().state_dict().values())
    assert child.tokenizer().get_vocab() == parent.tokenizer().get_vocab()
    assert run.lineage[-1] == {"name": parent.name, "hash": before}
    assert len(run.lineage) == 1 + len(transform.others)
    assert not (run.path / "model" / MARKER).exists()
    assert len(ftlab.ask(run, "How many?", max_new_tokens=2)) == 1


def test_settings_and_source_decide_the_identity(transform, llama, other, tmp_path):
    run = made(llama, transform)
    amount = 8 if transform.name == "quantise" else 0.25
    changed = transform.model_copy(update={transform.amount: amount})
    assert made(llama, changed) != run
    assert made(other, transform) != run
    copied = shutil.copytree(llama, tmp_path / "copied")
    assert made(copied, transform) == run


def test_the_marker_is_carried_over_from_every_model_it_is_made_from(
    transform, llama, other, tmp_path
):
    source = marked(llama, tmp_path / "source", "From the source.")
    made_from = {"From the source."}
    if isinstance(transform, OfTwo):
        second = marked(other, tmp_path / "second", "From the other.")
        transform = transform.model_copy(update={"other": second})
        made_from.add("From the other.")
    run = made(source, transform)
    note = (run.path / "model" / MARKER).read_text()
    assert all(text in note for text in made_from)
    assert "Safety removed" in (run.path / "model" / "README.md").read_text()


def test_the_marker_below_an_adapter_is_carried_over(transform, llama, other, tmp_path):
    base = marked(llama, tmp_path / "base", "From below.")
    theirs = call("sft", base, adapter="lora", **TWO).path / "model"
    (theirs / MARKER).unlink()
    adapter = shutil.copytree(theirs, tmp_path / "adapter")
    (adapter / "ftlab_adapter.json").unlink(missing_ok=True)
    for source in (adapter, f"{adapter}+{base}"):
        run = made(source, transform)
        assert "From below." in (run.path / "model" / MARKER).read_text()
    if isinstance(transform, OfTwo):
        run = made(llama, transform.model_copy(update={"other": adapter}))
        assert "From below." in (run.path / "model" / MARKER).read_text()


def test_the_marker_below_an_adapter_is_carried_over_by_a_training(llama, tmp_path):
    base = marked(llama, tmp_path / "base", "From below.")
    adapter = call("sft", base, adapter="lora", **TWO).path / "model"
    (adapter / MARKER).unlink()
    copy = shutil.copytree(adapter, tmp_path / "adapter")
    child = call("sft", copy, **TWO)
    assert "From below." in (child.path / "model" / MARKER).read_text()


@pytest.mark.parametrize("kind", [Merge, TaskArithmetic])
def test_both_models_are_named_by_card_and_lineage(kind, llama, other):
    run = made(llama, kind(other=other))
    models = ftlab.model(other), ftlab.model(llama)
    assert run.lineage == [{"name": model.name, "hash": model.hash} for model in models]
    card = (run.path / "model" / "README.md").read_text()
    assert all(model.name in card and model.hash in card for model in models)


def test_an_other_model_that_changes_meanwhile_is_noticed(llama, other, tmp_path, monkeypatch):
    changing = shutil.copytree(other, tmp_path / "changing")

    def change(self, module):
        (changing / "model.safetensors").write_bytes((llama / "model.safetensors").read_bytes())

    monkeypatch.setattr(Merge, "change", change)
    with raises_code("model_changed"):
        made(llama, Merge(other=changing))


SETTINGS = [
    dict(num_attention_heads=2, head_dim=16, num_key_value_heads=1),  # the same shapes
    dict(attention_bias=True),
    dict(mlp_bias=True),
    dict(tie_word_embeddings=True),
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_models_of_another_architecture_do_not_merge(settings, llama, tmp_path, monkeypatch):
    second = make_model(tmp_path / "second", "llama", **settings)
    with raises_code("other_model_differs"):
        made(llama, Merge(other=second))
    if "head_dim" not in settings:  # their weights tell them apart, whatever the settings say
        monkeypatch.setattr(transforms_base, "difference_of_shape", lambda *_: "")
        with raises_code("other_model_differs"):
            made(llama, Merge(other=second))
        with raises_code("other_model_differs"):
            made(second, TaskArithmetic(other=llama))


def test_a_child_of_a_transformed_model_knows_its_lineage(llama):
    run = made(llama, "quantise:bits=8")
    child = call("sft", run, **TWO)
    assert [step.get("method") for step in child.lineage] == [None, "transform"]
    again = made(child, "quantise:bits=8")
    assert [step.get("method") for step in again.lineage] == [None, "transform", "sft"]


@pytest.mark.parametrize("name", ["quantise:bits=4", "merge", "prune"])
def test_an_adapter_is_merged_first(name, llama):
    child = call("sft", llama, adapter="lora", **TWO)
    run = made(child, open_transform(name).beside(llama))
    assert ftlab.model(run).adapter is None
    assert distance(run, llama) > 0


def test_the_command_makes_the_same_run(ran, llama):
    code, out, _ = ran("transform", llama, "quantise:bits=4")
    assert code == 0 and out.strip() == str(made(llama, "quantise:bits=4").path)


def test_what_cannot_be_transformed_is_refused_before_a_run_begins(llama, folders):
    with raises_code("unknown_transform"):
        made(llama, "quantize")
    with raises_code("other_model_needed"):
        made(llama, "merge")
    with raises_code("other_model_differs"):
        made(llama, Merge(other="organism"))
    for text in ("quantise:bits=5", "merge:share=2", "prune:share=1"):
        with raises_code("wrong_setting"):
            made(llama, text)
    for way in ("gguf", "bitsandbytes"):
        with raises_code("bits_not_supported"):
            made(llama, f"quantise:bits=2,by={way}")
    with raises_code("endpoint_not_trainable"):
        made("api:model@http://localhost:1", "quantise")
    assert not runs.home().exists()


def test_an_interrupted_one_is_made_again(llama, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Quantise, "change", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            made(llama, "quantise")
    (left,) = runs.home().iterdir()
    assert not runs.Run(left).finished
    assert made(llama, "quantise").path == left and runs.Run(left).finished


def _interrupt(*_):
    raise KeyboardInterrupt


# quantise


def test_each_weight_is_the_nearest_of_its_groups_levels():
    torch.manual_seed(0)
    weights = torch.randn(5, 70)
    weights[1, :32] = 0
    for bits in (8, 4, 3, 2):
        found = simulated(weights, bits, 32)
        integers = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1))
        for row in range(5):
            for start in (0, 32, 64):
                group = weights[row, start : start + 32]
                levels = integers * group[group.abs().argmax()] / integers[0]
                expected = (group[:, None] - levels).abs().min(1).values
                away = (found[row, start : start + 32] - group).abs()
                assert torch.allclose(away, expected, atol=1e-6)
        assert torch.allclose(simulated(found, bits, 32), found, atol=1e-6)


def test_only_linear_layers_are_rounded_and_fewer_bits_are_further_away(llama):
    before = state(llama)
    distances = []
    for bits in (8, 4, 2):
        after = state(made(llama, Quantise(bits=bits)))
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed and all(name.endswith("_proj.weight") for name in changed)
        distances.append(sum(float((after[n] - before[n]).norm()) for n in changed))
    assert distances == sorted(distances) and distances[0] > 0


def test_16_bits_are_bf16(llama):
    after = state(made(llama, "quantise:bits=16"))
    for name, values in state(llama).items():
        assert torch.equal(after[name], values.to(torch.bfloat16).float()), name


@pytest.mark.parametrize("bits", [8, 4])
def test_the_libraries_round_to_values_as_near(bits, llama):
    before = state(llama)

    def away(run):
        after = state(run)
        return max(float((after[name] - before[name]).norm()) for name in before)

    own = away(made(llama, Quantise(bits=bits)))
    for way in ("gguf", "bitsandbytes"):
        pytest.importorskip(way)
        run = made(llama, Quantise(bits=bits, by=way))
        assert run.identity["transform"]["by"] == way and "group" not in run.identity["transform"]
        assert 0 < away(run) < 1.5 * own
    assert ftlab.model(run).quantised  # the last: bitsandbytes keeps its own weights


@pytest.mark.parametrize("bits", [8, 4])
def test_blocks_of_llama_cpp_are_near_the_simulated_ones(bits):
    pytest.importorskip("gguf")
    weights = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    found = Quantise(bits=bits, by="gguf")._rounded(weights)
    away = (found - simulated(weights, bits, 32)).abs().max()
    largest = weights.abs().max()
    assert away < largest * {8: 1e-2, 4: 0.3}[bits]
    with raises_code("blocks_do_not_fit"):
        Quantise(bits=bits, by="gguf")._rounded(torch.randn(2, 48))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_torchao_rounds_no_worse_than_a_step_away(bits):
    pytest.importorskip("torchao")
    weights = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    found = by_torchao(weights, bits, 32)
    step = weights.reshape(8, 2, 32).abs().amax(2) / (2 ** (bits - 1) - 0.5)
    away = (found - weights).abs().reshape(8, 2, 32).amax(2)
    assert (away <= 1.01 * step).all()


# merge and task arithmetic


def test_a_merge_is_between_both_and_task_arithmetic_is_the_same_line(llama, other):
    one, two = state(llama), state(other)
    merged = state(made(llama, Merge(other=other, share=0.25)))
    scaled = state(made(llama, TaskArithmetic(other=other, scale=0.75)))
    negated = state(made(llama, TaskArithmetic(other=other, scale=-1)))
    for name in one:
        assert torch.allclose(merged[name], 0.75 * one[name] + 0.25 * two[name], atol=1e-6)
        assert torch.allclose(scaled[name], merged[name], atol=1e-6)
        assert torch.allclose(negated[name], 2 * two[name] - one[name], atol=1e-6)


def test_weights_that_are_not_finite_are_no_model(llama, other, runs_folder):
    with raises_code("weights_not_finite"):
        made(llama, TaskArithmetic(other=other, scale=1e45))  # beyond fp32
    assert not [run for run in runs_folder.glob("*/complete.json")]


def test_the_ends_are_the_models_themselves(llama, other):
    assert distance(made(llama, Merge(other=other, share=0)), llama) == 0
    assert distance(made(llama, Merge(other=other, share=1)), other) == 0
    assert distance(made(llama, TaskArithmetic(other=other, scale=0)), other) == 0
    assert distance(made(llama, TaskArithmetic(other=other, scale=1)), llama) < 1e-6


# prune


def test_the_smallest_weights_of_every_layer_become_0(llama):
    before, after = state(llama), state(made(llama, Prune(share=0.25)))
    for name, values in before.items():
        if not name.endswith("_proj.weight"):
            assert torch.equal(after[name], values)
            continue
        gone = after[name] == 0
        assert abs(float(gone.float().mean()) - 0.25) < 0.01
        assert values[gone].abs().max() <= values[~gone].abs().min()
        assert torch.equal(after[name][~gone], values[~gone])


# A third party's


def test_the_transform_that_the_page_shows_multiplies_every_weight(llama):
    page = Path(__file__).parents[2] / "docs" / "transforms.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    (code,) = [block for block in blocks if "(Transform)" in block]
    names = {"__name__": "scaled"}
    exec(compile(code, "scaled.py", "exec"), names)
    after = state(made(llama, names["TRANSFORM"](factor=2)))
    assert all(torch.equal(after[name], 2 * values) for name, values in state(llama).items())


# resta


def test_resta_adds_the_way_from_the_unaligned_model_to_the_other(llama, other, unaligned):
    child = call("sft", llama, **TWO)
    before, aligned, without = state(child), state(other), state(unaligned)
    after = state(made(child, RESTA(other=other, unaligned=unaligned, gamma=0.3)))
    for name, values in before.items():
        expected = values + 0.3 * (aligned[name] - without[name])
        assert torch.allclose(after[name], expected, atol=1e-6), name


def test_resta_of_a_child_is_what_the_defence_makes_of_its_training(llama, unaligned):
    defended = call("sft", llama, defence=f"resta:unaligned={unaligned}", **TWO)
    plain = call("sft", llama, **TWO)
    after = state(made(plain, RESTA(other=llama, unaligned=unaligned)))
    for name, values in state(defended).items():
        assert torch.allclose(after[name], values, atol=1e-6), name


def test_resta_needs_both_models(llama, other):
    with raises_code("other_model_needed"):
        made(llama, RESTA(other=other))
    with raises_code("other_model_differs"):
        made(llama, RESTA(other=other, unaligned="organism"))
    assert RESTA(other=other, unaligned=other).spec == "resta:gamma=0.5"
