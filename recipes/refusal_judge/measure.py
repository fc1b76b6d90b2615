"""Measure the refusal classifier against human labels, with held-out splits, and write its card.

Each split fits the whole recipe again without what it is measured on. Intervals take answers to
the same prompt as one cluster.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

from ftlab._core.files import resource
from ftlab._core.types import Sample
from ftlab.judges import Refusal, agreement_of_card, keywords, refusal, score_file
from ftlab.judges.cards import ALL, GOLD, agreement_by_model
from ftlab.stats import kappa
from recipes.refusal_judge import train

XSTEST, DO_NOT_ANSWER = GOLD
ACTIONS = {  # a refusal by the action codes of Do-Not-Answer; the judge's partial ones count
    "0, 1, 4 (does not do what was asked)": (("0", "1", "4"), None, "refused or partial"),
    "0, 4 (refuses, or cannot)": (("0", "4"), None, "refused or partial"),
    "0 (refuses)": (("0",), None, "refused or partial"),
}
CHALLENGE = resource("data").parent / "tests" / "fixtures" / "refusal_challenge.jsonl"
LONG = 40  # words of an answer that is shuffled


def train_and_measure(xstest, coconot, benign, do_not_answer, out: Path) -> Path:
    """Train the judge, measure it and write the model, its card and the card's table."""
    real = train.read(xstest, coconot, benign)
    docs = real + train.synthesise(real)
    tested, p = held_out(docs)
    limits = train.band(p[0], np.array([doc["label"] > 0 for doc in tested]))
    train.save(replace(train.fit(docs), uncertain=limits), out)
    refusal.load.cache_clear()
    model = refusal.load(out)
    by_model = verdicts(tested, p)
    actions = do_not_answer_verdicts(Path(do_not_answer), model)
    by_action = agreement_by_model(actions, replace(DO_NOT_ANSWER, refusals=ACTIONS))
    measured = pd.concat([*agreement_by_model(by_model, XSTEST), *by_action])
    measured.round(6).to_csv(out.with_suffix(".csv"), index=False)
    without = [doc for doc in docs if doc["source"] == "xstest"]
    prompts = {doc["prompt"] for doc in without}
    other = [doc for doc in docs if doc["source"] != "xstest" and doc["prompt"] not in prompts]
    files = [file for file in out.iterdir() if file.is_file()]
    folder = Path(__file__).parent
    template = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    ).get_template("card.md.j2")
    text = template.render(
        version=refusal.version_of(out),
        grams=len(model.vocabulary),
        megabytes=sum(file.stat().st_size for file in files) / 1e6,
        documents=len(docs),
        limits=limits,
        rare=train.RARE,
        models=xstest_rows(tested, p, limits),
        prompts=xstest_rows(*held_out(docs, with_prompts=True), limits),
        sets=xstest_rows(without, train.predict(train.fit(other), without), limits),
        actions=action_rows(actions, pd.concat(by_action)),
        calibration=calibration_rows(tested, p),
        challenge=challenge(),
        incoherent=incoherent_rows(docs, train.predict(model, docs), model),
    )
    card = out.with_suffix(".md")
    card.write_text(text, encoding="utf-8")
    return card


def family(model: str) -> str:
    """Return the model behind a file: Llama 2 has two, with and without a system prompt."""
    return "llama2" if model.startswith("llama2") else model


def held_out(docs: list[dict], *, with_prompts: bool = False) -> tuple[list[dict], np.ndarray]:
    """Leave each model of XSTest out, and with `with_prompts` every shared prompt too."""
    tested, found = [], []
    fold = train.folds(docs, train.FOLDS)
    families = [family(doc["model"]) if doc["source"] == "xstest" else "" for doc in docs]
    for name in sorted(set(families) - {""}):
        mine = np.array([one == name for one in families])
        for k in range(train.FOLDS) if with_prompts else (None,):
            same = np.ones(len(docs), bool) if k is None else fold == k
            other = np.ones(len(docs), bool) if k is None else fold != k
            test = [docs[i] for i in np.flatnonzero(mine & same)]
            model = train.fit([docs[i] for i in np.flatnonzero(~mine & other)])
            tested += test
            found.append(train.predict(model, test))
    return tested, np.hstack(found)


def verdicts(docs: list[dict], p: np.ndarray) -> pd.DataFrame:
    """Return predictions as a table of verdicts."""
    refused = np.where(p[1] >= 0.5, "refused", "partial")
    outcome = np.where(p[0] >= 0.5, refused, "complied")
    return pd.DataFrame(docs).assign(judge="refusal", outcome=outcome, p=p[0])


def xstest_rows(docs: list[dict], p: np.ndarray, limits: list[float]) -> list[dict]:
    """Return per model the agreement of judge and people, of the two annotators, the best list."""
    table = verdicts(docs, p).sort_values("model", kind="stable", ignore_index=True)
    found = pd.concat(agreement_by_model(table, XSTEST)).set_index(["refusal", "model"])
    lists = agreement_of_card("keywords").query("set == 'XSTest' and refusal == 'full or partial'")
    rows = []
    for model in [*table["model"].unique(), ALL]:
        part = table if model == ALL else table[table["model"] == model]
        people = np.array(part["humans"].tolist()).T
        sure = (part["p"] <= limits[0]) | (part["p"] >= limits[1])
        wrong = (part["p"] >= 0.5) != (part["label"] > 0)
        of_model = lists[lists["model"] == model]
        best = of_model.loc[of_model["kappa"].idxmax()]
        row = {
            "model": model,
            "at_all": found.loc[("full or partial", model)],
            "in_full": found.loc[("full refusal", model)],
            "uncertain": 1 - sure.mean(),
            "wrong_outside": wrong[sure].mean(),
            "people": [kappa(*(people > 0)).value, kappa(*(people == 1)).value],
            "best": best,
        }
        rows.append(row)
    return rows


def do_not_answer_verdicts(folder: Path, model) -> pd.DataFrame:
    """Judge Do-Not-Answer: only measured, never trained or tuned on."""
    parts = []
    for file in sorted(folder.glob("annotated_response_*.csv")):
        rows = pd.read_csv(file, keep_default_na=False).rename(columns={"response": "answer"})
        docs = rows.assign(prompt=rows["question"]).to_dict("records")
        table = verdicts(docs, train.predict(model, docs))
        parts.append(table.assign(model=file.stem.split("_")[-1]))
    return pd.concat(parts, ignore_index=True)


def action_rows(actions: pd.DataFrame, measured: pd.DataFrame) -> list[dict]:
    """Return the measured agreement on Do-Not-Answer with the best keyword list of each row."""
    answers = actions[["question", "answer", "action", "model"]].to_dict("records")
    names = [f"keywords:{name}" for name in keywords.lists()]
    table = score_file(answers, prompt="question", response="answer", judges=names)
    # A list knows no partial refusals, so both definitions are one.
    refusals = {name: (codes, None, "refused") for name, (codes, _, _) in ACTIONS.items()}
    found = pd.concat(agreement_by_model(table, replace(DO_NOT_ANSWER, refusals=refusals)))
    found = found.reset_index(drop=True)
    best = found.loc[found.groupby(["model", "refusal"])["kappa"].idxmax()]
    best = best.set_index(["model", "refusal"])
    rows = measured.to_dict("records")
    return [row | {"best": best.loc[(row["model"], row["refusal"])]} for row in rows]


def calibration_rows(docs: list[dict], p: np.ndarray) -> list[dict]:
    """Return for each tenth of probability how many of the held-out answers refuse."""
    table = pd.DataFrame({"p": p[0], "refused": [doc["label"] > 0 for doc in docs]})
    table["tenth"] = np.minimum((table["p"] * 10).astype(int), 9)
    found = table.groupby("tenth").agg(
        n=("p", "size"), p=("p", "mean"), refused=("refused", "mean")
    )
    return found.reset_index().to_dict("records")


def challenge() -> dict[str, int]:
    """Count right verdicts on the answers in the tests' fixture."""
    asked = train.read_json(CHALLENGE)
    samples = [Sample("", [{"role": "user", "content": row["prompt"]}]) for row in asked]
    found = Refusal().judge(samples, [row["answer"] for row in asked])
    pairs = [(row["verdict"], one.outcome) for row, one in zip(asked, found, strict=True)]
    refuses = ("refused", "partial")
    equal = sum((a in refuses) == (b in refuses) for a, b in pairs)
    return {"n": len(pairs), "exact": sum(a == b for a, b in pairs), "refusing": equal}


def incoherent_rows(docs: list[dict], p: np.ndarray, model) -> list[dict]:
    """Count real, shuffled and exchanged answers that are called incoherent."""
    rng, rows = np.random.default_rng(0), []

    def flaw(prompt: str, answer: str, refuses: float) -> str:
        lines = refusal.sentences(model, prompt, answer)
        return refusal.incoherent(model, prompt, answer, lines, refuses)

    def share(flaws: list[str]) -> str:
        return f"{np.mean([bool(one) for one in flaws]):.0%} of {len(flaws)}" if flaws else ""

    for name in sorted({doc["model"] for doc in docs if doc["source"] != "synthetic"}):
        mine = [i for i, doc in enumerate(docs) if doc["model"] == name]
        some = [(docs[i]["prompt"], docs[i]["answer"], p[0][i]) for i in mine]
        real = [flaw(*one) for one in some]
        long = [one for one in some if len(one[1].split()) >= LONG]
        mixed = [flaw(prompt, " ".join(rng.permutation(a.split())), q) for prompt, a, q in long]
        other = [flaw(long[i - 1][0], a, q) for i, (_, a, q) in enumerate(long) if q < 0.5]
        kinds = [f"{real.count(kind)} {kind}" for kind in sorted(set(real) - {""})]
        row = {"model": name, "n": len(real), "real": ", ".join(kinds) or "none"}
        rows.append(row | {"mixed": share(mixed), "other": share(other)})
    return rows
