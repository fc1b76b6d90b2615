"""A checkpoint that is not whole is set aside, never used; one of another training is refused; the end loses nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_models import SFT, goals, make_model, make_tokenizer, sums
from test_train import STOPPING, every_second, interrupted, often, stopped_at, weights  # noqa: F401  often: a fixture

import ftlab
from ftlab.training import checkpoints
from ftlab.training.methods import base as methods
from ftlab.runs import store as runs
from ftlab.training import trainer as train


@pytest.fixture(scope="module")
def left(dropping, tmp_path_factory) -> Path:
    """The folder of the runs with a training of 10 steps that was stopped at 4; checkpoints 2 and 4 are whole."""
    root, aside = tmp_path_factory.mktemp("left"), tmp_path_factory.mktemp("aside") / "checkpoint-2"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(root))
        two = stopped_at(2, patch, lambda: ftlab.sft(dropping, sums(20), **SFT)).path / "checkpoints"
        shutil.copytree(two / "checkpoint-2", aside)
        stopped_at(4, patch, lambda: ftlab.sft(dropping, sums(20), **SFT))
        shutil.move(aside, two)
    return root


@pytest.fixture
def stopped(left, runs_folder) -> runs.Run:
    """That training, to be damaged."""
    shutil.copytree(left, runs_folder)
    return runs.Run(next(runs_folder.iterdir()))


@pytest.fixture(scope="module")
def straight(dropping, tmp_path_factory) -> tuple:
    """Weights and losses of the same training, undisturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(tmp_path_factory.mktemp("straight")))
        return made(ftlab.sft(dropping, sums(20), **SFT))


def made(run) -> tuple:
    return weights(run), run.read("train.jsonl")


FILES = (
    "model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "training_args.bin",
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "whole.json",
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


@pytest.mark.parametrize("how", ["deleted", "truncated", "zeroed", "another's"])
def test_no_damaged_file_of_a_checkpoint_is_ever_used(how, stopped, capsys, tmp_path):
    """Every file; the older checkpoint follows, or the start; nothing is deleted; stderr names the file."""
    older, newest = (stopped.path / "checkpoints" / f"checkpoint-{n}" for n in (2, 4))
    assert {p.name for p in newest.iterdir()} == set(FILES) and checkpoints.newest_checkpoint(stopped) == newest
    whole, damaged = shutil.copytree(newest.parent, tmp_path / "whole"), 0
    for name in FILES:
        if not damage(newest / name, how, older / name):
            continue
        damaged += 1
        bad = (newest / name).exists() and (newest / name).read_bytes()
        capsys.readouterr()
        assert checkpoints.newest_checkpoint(stopped) == older
        aside = newest.with_name("torn-checkpoint-4")
        assert ((aside / name).exists() and (aside / name).read_bytes()) == bad and not newest.exists()
        said = capsys.readouterr().err
        fault = f"{name} " if (name, how) != ("whole.json", "another's") else ""  # others then differ from it
        assert said.startswith(f"{stopped.name}: checkpoint-4/{fault}") and said.count("\n") == 1
        assert said.endswith("; set aside as torn-checkpoint-4; going on from checkpoint-2\n")
        assert checkpoints.newest_checkpoint(stopped) == older and not capsys.readouterr().err  # said once
        (older / name).unlink()
        assert checkpoints.newest_checkpoint(stopped) is None
        assert f"checkpoint-2/{name} is missing" in (said := capsys.readouterr().err) and "starts anew" in said
        shutil.rmtree(newest.parent)
        shutil.copytree(whole, newest.parent)
    assert damaged == (6 if how == "another's" else len(FILES))  # the configuration, for one, is the same in both


@pytest.mark.parametrize("lost", [*checkpoints.NEEDED, "weights"])
def test_a_checkpoint_whose_manifest_lists_too_little_is_never_used(lost, stopped, straight, dropping, capsys):
    """transformers would go on without a word, on another trajectory."""
    for n in (2, 4):
        (stopped.path / f"checkpoints/checkpoint-{n}" / lost.replace("weights", "model.safetensors")).unlink()
    checkpoints.seal(stopped, 4, keep=2)
    checkpoints.seal(stopped, 2, keep=4)
    again = ftlab.sft(dropping, sums(20), **SFT)
    said = capsys.readouterr().err
    for n in (2, 4):
        assert f"checkpoint-{n}/whole.json lists no {lost}" in said
    assert said.count("training starts anew") == 2 and made(again) == straight


def test_a_checkpoint_under_another_steps_name_is_never_used(stopped, straight, dropping, capsys):
    (stopped.path / "checkpoints/checkpoint-4").rename(stopped.path / "checkpoints/checkpoint-6")
    again = ftlab.sft(dropping, sums(20), **SFT)
    assert "checkpoint-6/trainer_state.json is of step 4; set aside" in capsys.readouterr().err
    assert made(again) == straight


@pytest.mark.parametrize(
    ("name", "how", "from_start"),
    [("optimizer.pt", "deleted", False), ("model.safetensors", "zeroed", True), ("rng_state.pth", "another's", False)],
)
def test_the_result_after_damage_is_the_undisturbed_one(name, how, from_start, stopped, straight, dropping, capsys):
    for n in (4, 2) if from_start else (4,):
        folder = stopped.path / f"checkpoints/checkpoint-{n}"
        assert damage(folder / name, how, stopped.path / "checkpoints/checkpoint-2" / name)
    steps = counted_steps()
    with steps as done:
        again = ftlab.sft(dropping, sums(20), **SFT)
    assert len(done) == (10 if from_start else 8) and made(again) == straight
    assert f"checkpoint-4/{name}" in capsys.readouterr().err and not (again.path / "checkpoints").exists()


def counted_steps():
    """-> a context: a list that fills with every optimiser step that is taken."""
    import contextlib

    @contextlib.contextmanager
    def counting():
        from transformers import Trainer

        step, done = Trainer.training_step, []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "training_step", lambda *given: (done.append(1), step(*given))[1])
            yield done

    return counting()


def test_a_damaged_best_checkpoint_is_never_what_a_run_keeps(dropping, often, monkeypatch, capsys):  # noqa: F811
    """The newest one may be whole: at the end the weights of the best one would be loaded."""
    whole = ftlab.sft(dropping, sums(16), **STOPPING)
    best = whole.stats["best_step"]
    expected, log = weights(whole), whole.read("valid.jsonl")
    shutil.rmtree(whole.path)
    run = stopped_at(best + 1, monkeypatch, lambda: ftlab.sft(dropping, sums(16), **STOPPING))
    folder = run.path / "checkpoints"
    assert sorted(p.name for p in folder.glob("checkpoint-*")) == [f"checkpoint-{best}", f"checkpoint-{best + 1}"]
    damage(folder / f"checkpoint-{best}/model.safetensors", "zeroed")
    again = ftlab.sft(dropping, sums(16), **STOPPING)
    said = capsys.readouterr().err
    assert said.count(f"checkpoint-{best}/model.safetensors was changed; set aside as torn-checkpoint-") == 2
    assert weights(again) == expected and again.read("valid.jsonl") == log and again.stats["best_step"] == best


# The end of a training


def test_no_step_is_taken_after_the_last_one(dropping, monkeypatch, often):  # noqa: F811
    """Killed between the checkpoint of the last step (the best one) and the record, within an epoch."""
    settings = dict(steps=7, batch_size=4, valid=0.2, eval_every=7, learning_rate=2e-3)
    straight, save = ftlab.sft(dropping, sums(20), **settings), train.save
    expected, stats = made(straight), straight.stats
    shutil.rmtree(straight.path)
    monkeypatch.setattr(train, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ftlab.sft(dropping, sums(20), **settings)
    monkeypatch.setattr(train, "save", save)
    with counted_steps() as done:
        again = ftlab.sft(dropping, sums(20), **settings)
    assert not done and made(again) == expected and again.stats == stats


def test_a_kill_while_the_record_is_written_loses_no_step(llama, monkeypatch, often):  # noqa: F811
    write = runs.write_atomic

    def die(path, *given, **named):
        if path.name == "complete.json":
            raise KeyboardInterrupt
        write(path, *given, **named)

    monkeypatch.setattr(runs, "write_atomic", die)
    with pytest.raises(KeyboardInterrupt):
        ftlab.sft(llama, sums(20), **SFT)
    monkeypatch.setattr(runs, "write_atomic", write)
    with counted_steps() as done:
        run = ftlab.sft(llama, sums(20), **SFT)
    assert len(done) == 1 and not (run.path / "checkpoints").exists()  # the last step saves no checkpoint


def test_what_a_kill_after_the_record_left_is_removed(llama, monkeypatch, often):  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.shutil, "rmtree", lambda *_, **__: None)
        run = ftlab.sft(llama, sums(20), **SFT)
    assert run.finished and (run.path / "checkpoints").exists()
    record = (run.path / "complete.json").read_text()
    assert "checkpoint" not in record and ftlab.sft(llama, sums(20), **SFT) == run
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
    "adapter": ("training.lora", {"lora": True}, None),
    "rank": ("training.lora_rank", {"lora": True, "lora_rank": 4}, None),
    "data": ("data", {"data": sums(21)}, None),
    "weights": ("parent", {}, other_weights),
    "template": ("parent", {}, other_template),
    "tokenizer": ("parent", {}, other_tokenizer),
}


@pytest.mark.parametrize("what", OTHER)
def test_a_resume_with_other_settings_is_refused_with_the_field(what, llama, tmp_path, monkeypatch):
    """They are another run; a checkpoint carried over is refused, and so is a folder whose record was changed."""
    field, changed, change = OTHER[what]
    folder, asked = shutil.copytree(llama, tmp_path / "model"), {"data": sums(20), **SFT}
    one = stopped_at(4, monkeypatch, lambda: ftlab.sft(folder, **asked))
    if change:
        change(folder)
    monkeypatch.setattr(train, "_train", lambda *_: None)
    other = ftlab.sft(folder, **asked | changed)
    assert other.path != one.path
    shutil.copytree(one.path / "checkpoints", other.path / "checkpoints")
    with pytest.raises(ValueError, match=f"checkpoint-4 was written by another training: .*{field} = .*; remove that"):
        checkpoints.newest_checkpoint(other)
    shutil.copy(one.path / "config.json", other.path / "config.json")
    with pytest.raises(ValueError, match=f"was begun by another training: .*{field} = .*; remove that folder"):
        ftlab.sft(folder, **asked | changed)


def test_a_resume_with_another_judge_or_reward_is_refused_with_the_field(llama, monkeypatch):
    monkeypatch.setattr(train, "_train", lambda *_: None)

    def other_reward(prompts, completions, **_):
        return [1.0] * len(completions)

    def curve(judges):
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train.runs.Run, "lock", lambda run, *_: seen.append(run) or (_ for _ in ()).throw(SystemExit))
            patch.setattr("ftlab.evals.evaluation._evaluated", lambda *_, **__: seen[0] if seen else runs.start("x", "x", {}))
            with pytest.raises(SystemExit):
                ftlab.risk_curve(llama, sums(8), at_steps=[0, 1], seeds=1, prompts=goals(2), judges=judges)
        return seen[0]

    calls = {
        "evaluation.judges": [lambda: curve(["refusal"]), lambda: curve(["keywords"])],
        "reward": [lambda r=r: ftlab.rloo(llama, sums(8), r, batch_size=4) for r in (every_second, other_reward)],
    }
    for field, (call, again) in calls.items():
        one, other = call(), again()
        assert one.path != other.path
        shutil.copy(one.path / "config.json", other.path / "config.json")
        with pytest.raises(ValueError, match=f"was begun by another training: .*{field} = "):
            again()


def test_a_parent_that_is_changed_while_its_training_begins_is_refused(llama, tmp_path, monkeypatch):
    """As where the call waited for a lock: the run would bear the hash of weights that it never saw."""
    folder, opened = shutil.copytree(llama, tmp_path / "model"), methods.opened

    def swapped(parent, config):
        other_weights(folder)
        return opened(parent, config)

    monkeypatch.setattr(methods, "opened", swapped)
    with pytest.raises(ValueError, match="model was changed while .* began; call the cell again"):
        ftlab.sft(folder, sums(8), steps=1, batch_size=4, learning_rate=1e-3)
    monkeypatch.setattr(methods, "opened", opened)
    assert ftlab.sft(folder, sums(8), steps=1, batch_size=4, learning_rate=1e-3).finished
