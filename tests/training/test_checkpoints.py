"""A checkpoint that is not whole is set aside; one of another training is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import raises_code
from small_models import SFT, make_model, make_tokenizer, sums
from trainings import (
    STOPPING,
    counted_steps,
    dies_while_saving,
    every_second,
    stopped_at,
    weights,
)

from ftlab import runs, training
from ftlab.runs import store
from ftlab.training import checkpoints


@pytest.fixture(scope="module")
def left(dropping, tmp_path_factory) -> Path:
    """A training of 10 steps that was stopped at 4; checkpoints 2 and 4 are whole."""
    root, aside = tmp_path_factory.mktemp("left"), tmp_path_factory.mktemp("aside") / "checkpoint-2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(root))
        two = (
            stopped_at(2, patch, lambda: training.sft(dropping, sums(20), **SFT)).path
            / "checkpoints"
        )
        shutil.copytree(two / "checkpoint-2", aside)
        stopped_at(4, patch, lambda: training.sft(dropping, sums(20), **SFT))
        shutil.move(aside, two)
    return root


@pytest.fixture
def stopped(left, runs_folder) -> runs.Run:
    """That training, to be damaged."""
    shutil.copytree(left, runs_folder)
    return runs.Run(next(runs_folder.iterdir()))


@pytest.fixture
def straight(dropping, trained) -> tuple:
    """Weights and losses of the same training, undisturbed."""
    return made(trained(training.sft, dropping, sums(20), **SFT))


def made(run) -> tuple:
    return weights(run), run.read("train.jsonl")


FILES = (
    "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json",
    "training_args.bin", "config.json", "generation_config.json", "tokenizer.json",
    "tokenizer_config.json", "chat_template.jinja", "whole.json",
)  # fmt: skip


def damage(file: Path, how: str, other: Path | None = None) -> bool:
    """-> whether that was one: small files may be the same in both checkpoints."""
    before = file.read_bytes()
    if how == "deleted":
        file.unlink()
        return True
    middle = len(before) // 2
    if how == "truncated":
        file.write_bytes(before[:middle])
    elif how == "zeroed":
        file.write_bytes(before[: middle - 8] + bytes(16) + before[middle + 8 :])
    else:
        file.write_bytes(other.read_bytes())
    return file.read_bytes() != before


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deleted", "truncated", "zeroed", "another's"])
def test_no_damaged_file_of_a_checkpoint_is_ever_used(how, stopped, capsys, tmp_path):
    """Every file: the older checkpoint follows, or the start; stderr names the file."""
    older, newest = (stopped.path / "checkpoints" / f"checkpoint-{n}" for n in (2, 4))
    assert {p.name for p in newest.iterdir()} == set(FILES) and checkpoints.newest_checkpoint(
        stopped
    ) == newest
    whole, damaged = shutil.copytree(newest.parent, tmp_path / "whole"), 0
    for name in FILES:
        if not damage(newest / name, how, older / name):
            continue
        damaged += 1
        bad = (newest / name).exists() and (newest / name).read_bytes()
        capsys.readouterr()
        assert checkpoints.newest_checkpoint(stopped) == older
        aside = newest.with_name("torn-checkpoint-4")
        assert (
            (aside / name).exists() and (aside / name).read_bytes()
        ) == bad and not newest.exists()
        said = capsys.readouterr().err
        fault = (
            f"{name} " if (name, how) != ("whole.json", "another's") else ""
        )  # others then differ from it
        assert said.startswith(f"{stopped.name}: checkpoint-4/{fault}") and said.count("\n") == 1
        assert said.endswith("; set aside as torn-checkpoint-4; continuing from checkpoint-2\n")
        assert (
            checkpoints.newest_checkpoint(stopped) == older and not capsys.readouterr().err
        )  # said once
        (older / name).unlink()
        assert checkpoints.newest_checkpoint(stopped) is None
        assert (
            f"checkpoint-2/{name} is missing" in (said := capsys.readouterr().err)
            and "starts again" in said
        )
        shutil.rmtree(newest.parent)
        shutil.copytree(whole, newest.parent)
    assert damaged == (
        6 if how == "another's" else len(FILES)
    )  # the configuration, for one, is the same in both


@pytest.mark.slow
@pytest.mark.parametrize("lost", [*checkpoints.NEEDED, "weights"])
def test_a_checkpoint_whose_manifest_lists_too_little_is_never_used(
    lost, stopped, straight, dropping, capsys
):
    """transformers would go on without a word, on another trajectory."""
    for n in (2, 4):
        (
            stopped.path
            / f"checkpoints/checkpoint-{n}"
            / lost.replace("weights", "model.safetensors")
        ).unlink()
    checkpoints.seal(stopped, 4, best_step=2)
    checkpoints.seal(stopped, 2, best_step=4)
    again = training.sft(dropping, sums(20), **SFT)
    said = capsys.readouterr().err
    for n in (2, 4):
        assert f"checkpoint-{n}/whole.json lists no {lost}" in said
    assert said.count("training starts again") == 2 and made(again) == straight


@pytest.mark.slow
def test_a_checkpoint_under_another_steps_name_is_never_used(stopped, straight, dropping, capsys):
    (stopped.path / "checkpoints/checkpoint-4").rename(stopped.path / "checkpoints/checkpoint-6")
    again = training.sft(dropping, sums(20), **SFT)
    assert "checkpoint-6/trainer_state.json is of step 4" in capsys.readouterr().err
    assert made(again) == straight


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "how", "from_start"),
    [
        ("optimizer.pt", "deleted", False),
        ("model.safetensors", "zeroed", True),
        ("rng_state.pth", "another's", False),
    ],
)
def test_the_result_after_damage_is_the_undisturbed_one(
    name, how, from_start, stopped, straight, dropping, capsys
):
    for n in (4, 2) if from_start else (4,):
        folder = stopped.path / f"checkpoints/checkpoint-{n}"
        assert damage(folder / name, how, stopped.path / "checkpoints/checkpoint-2" / name)
    with counted_steps() as done:
        again = training.sft(dropping, sums(20), **SFT)
    assert len(done) == (10 if from_start else 8) and made(again) == straight
    assert (
        f"checkpoint-4/{name}" in capsys.readouterr().err
        and not (again.path / "checkpoints").exists()
    )


@pytest.mark.slow
def test_a_damaged_best_checkpoint_is_never_what_a_run_keeps(
    dropping, often, monkeypatch, capsys, trained
):
    """The newest one may be whole: at the end the weights of the best one would be loaded."""
    whole = trained(training.sft, dropping, sums(16), **STOPPING)
    best = whole.stats["best_step"]
    expected, log = weights(whole), whole.read("valid.jsonl")
    run = stopped_at(best + 1, monkeypatch, lambda: training.sft(dropping, sums(16), **STOPPING))
    folder = run.path / "checkpoints"
    assert sorted(p.name for p in folder.glob("checkpoint-*")) == [
        f"checkpoint-{best}",
        f"checkpoint-{best + 1}",
    ]
    damage(folder / f"checkpoint-{best}/model.safetensors", "zeroed")
    again = training.sft(dropping, sums(16), **STOPPING)
    said = capsys.readouterr().err
    assert (
        said.count(
            f"checkpoint-{best}/model.safetensors was changed; set aside as torn-checkpoint-"
        )
        == 2
    )
    assert (
        weights(again) == expected
        and again.read("valid.jsonl") == log
        and again.stats["best_step"] == best
    )


# The end of a training


@pytest.mark.slow
def test_no_step_is_taken_after_the_last_one(dropping, monkeypatch, often, trained):
    """Killed between the checkpoint of the last step (the best one) and the record."""
    settings = dict(steps=7, batch_size=4, valid=0.2, eval_every=7, learning_rate=2e-3)
    straight = trained(training.sft, dropping, sums(20), **settings)
    expected, stats = made(straight), straight.stats
    with monkeypatch.context() as patch:
        dies_while_saving(patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            training.sft(dropping, sums(20), **settings)
    with counted_steps() as done:
        again = training.sft(dropping, sums(20), **settings)
    assert not done and made(again) == expected and again.stats == stats


@pytest.mark.slow
def test_a_kill_while_the_record_is_written_loses_no_step(llama, monkeypatch, often):
    write = store.write_atomic

    def die(path, *given, **named):
        if path.name == "complete.json":
            raise KeyboardInterrupt
        write(path, *given, **named)

    monkeypatch.setattr(store, "write_atomic", die)
    with pytest.raises(KeyboardInterrupt):
        training.sft(llama, sums(20), **SFT)
    monkeypatch.setattr(store, "write_atomic", write)
    with counted_steps() as done:
        run = training.sft(llama, sums(20), **SFT)
    assert (
        len(done) == 1 and not (run.path / "checkpoints").exists()
    )  # the last step saves no checkpoint


@pytest.mark.slow
def test_what_a_kill_after_the_record_left_is_removed(llama, monkeypatch, often):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.shutil, "rmtree", lambda *_, **__: None)
        run = training.sft(llama, sums(20), **SFT)
    assert run.finished and (run.path / "checkpoints").exists()
    record = (run.path / "complete.json").read_text()
    assert "checkpoint" not in record and training.sft(llama, sums(20), **SFT) == run
    assert run.finished and not (run.path / "checkpoints").exists()


# Another training


def other_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("| trim", ""))


def other_tokenizer(folder: Path) -> None:
    tokenizer = make_tokenizer("llama")
    tokenizer.add_tokens(["Ann"])
    tokenizer.chat_template = (folder / "chat_template.jinja").read_text()
    tokenizer.save_pretrained(folder)


def other_weights(folder: Path) -> None:
    make_model(folder, "llama", seed=7)


OTHER = {  # what differs: (field, settings, what is done to the parent's folder)
    "batch size": ("training.batch_size", {"batch_size": 2}, None),
    "micro-batch": ("training.accumulation", {"accumulation": 2}, None),
    "seed": ("training.seed", {"seed": 1}, None),
    "learning rate": ("training.learning_rate", {"learning_rate": 1e-3}, None),
    "steps": ("training.steps", {"epochs": None, "steps": 9}, None),
    "adapter": ("training.adapter", {"adapter": "lora"}, None),
    "rank": ("training.lora_rank", {"adapter": "lora", "lora_rank": 4}, None),
    "data": ("data", {"data": sums(21)}, None),
    "weights": ("parent", {}, other_weights),
    "template": ("parent", {}, other_template),
    "tokenizer": ("parent", {}, other_tokenizer),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", OTHER)
def test_a_resume_with_other_settings_is_refused_with_the_field(what, llama, tmp_path, monkeypatch):
    """They are another run; a checkpoint or a record carried over is refused."""
    field, changed, change = OTHER[what]
    folder, asked = shutil.copytree(llama, tmp_path / "model"), {"data": sums(20), **SFT}
    one = stopped_at(4, monkeypatch, lambda: training.sft(folder, **asked))
    if change:
        change(folder)
    monkeypatch.setattr("ftlab.training.trainer._train", lambda job: None)
    other = training.sft(folder, **asked | changed)
    assert other.path != one.path
    shutil.copytree(one.path / "checkpoints", other.path / "checkpoints")
    with raises_code("other_training") as info:
        checkpoints.newest_checkpoint(other)
    assert field in info.value.details["fields"]
    shutil.copy(one.path / "config.json", other.path / "config.json")
    with raises_code("other_training") as info:
        training.sft(folder, **asked | changed)
    assert field in info.value.details["fields"]


def test_a_resume_with_another_monitor_or_reward_is_refused_with_the_field(llama, monkeypatch):
    monkeypatch.setattr("ftlab.training.trainer._train", lambda job: None)

    def other(*_, **__):
        return [1.0]

    def watched(monitor):
        return training.sft(llama, sums(8), monitor=monitor, eval_every=1, batch_size=4)

    def rewarded(reward):
        return training.rloo(llama, sums(8), reward, batch_size=4)

    for field, train in {"monitor": watched, "reward": rewarded}.items():
        one, two = train(every_second), train(other)
        assert one.path != two.path
        shutil.copy(one.path / "config.json", two.path / "config.json")
        with raises_code("other_training") as info:
            train(other)
        assert field in info.value.details["fields"]
