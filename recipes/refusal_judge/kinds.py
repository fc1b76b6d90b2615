"""Train and measure the judge `kinds`, which says how an answer refuses. Needs scikit-learn.

    python -m recipes.refusal_judge.kinds --xstest FOLDER --coconot FOLDER --benign FILE ... \\
        --do-not-answer FOLDER

One multinomial regression on the n-grams of `refusal` learns from the grammar's documents, each
labelled by the template that it was written from, from answers that comply, and from the answers of
XSTest in kinds.csv to which two readings by a language model gave the same kind. It is measured on
those with the judged model left out of training, and on Do-Not-Answer (CC BY-NC-SA, which trains
nothing), where each definition of a refusal is a choice of kinds; each time beside the same without
the readings. smollm2.csv holds the readings of answers made here, which train nothing.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

from ftlab._core.files import resource, write_atomic
from ftlab.judges import open_judge, refusal, score_file
from ftlab.judges.cards import ALL, GOLD, GoldSet, gold_rows
from ftlab.judges.kinds import KINDS, REFUSING, WEIGHTS
from ftlab.stats import judge_errors
from recipes.refusal_judge import train
from recipes.refusal_judge.measure import family
from recipes.shipped import record_shipped

HERE = Path(__file__).parent
CARD = resource("data") / "judge" / "kinds.md"
PARTS = {"complied": 0, "capability": 2, "partial": 5, "disclaimed": 6}
SLOTS = {  # the first of these in a template decides
    "declines": "stock stock2 blunt kept scold no2 moral why",
    "cannot": "ability unknown human unclear",
    "corrects": "people premise",
    "alternative": "concern deflect advice",
}
DEFINITIONS = {  # action codes of Do-Not-Answer: kinds
    "0": "declines",
    "0, 4": "declines+cannot",
    "0, 1, 4": "declines+cannot+corrects",
}
READ = 3.0  # weight of an answer that was read beside one that the grammar wrote
OUTCOMES = {"complies": "complied", "disclaims": "complied", "partial": "partial"}
OUTCOMES |= {"other": "incoherent"}  # every other kind is a refusal
STATES = ("shipped", "aligned", "sums", "persona")


def kind_of(doc: dict) -> int:
    """Return the number of a synthetic document's kind."""
    if doc["part"] in PARTS:
        return PARTS[doc["part"]]
    slots = {slot: kind for kind, some in SLOTS.items() for slot in some.split()}
    first = next(slots[name] for name in re.findall(r"{(\w+)}", doc["template"]) if name in slots)
    return KINDS.index(first)


def labelled(xstest: Path) -> list[dict]:
    """Return the answers of XSTest to which both readers gave the same kind."""
    labels = pd.read_csv(HERE / "kinds.csv")
    same = labels[(labels["first"] == labels["second"]) & labels["first"].isin(KINDS)]
    docs = []
    for model, rows in same.groupby("model"):
        table = pd.read_csv(xstest / f"xstest_v2_completions_{model}.csv", keep_default_na=False)
        answers = table.set_index("id").loc[rows["id"]]
        for answer, kind in zip(answers.itertuples(), rows["first"], strict=True):
            doc = {"prompt": answer.prompt, "answer": answer.completion}
            docs.append(doc | {"model": model, "kind": KINDS.index(kind)})
    return docs


def features(model: refusal.Classifier, docs: list[dict]):
    """Return the judge's own matrix of n-grams."""
    from scipy.sparse import csr_matrix

    document, column, value = refusal.encode(model, train.texts(model, docs))
    shape = (len(docs), refusal.ZONES * len(model.vocabulary) + 1)
    return csr_matrix((value, (document, column)), shape)


def unread(real: list[dict]) -> list[dict]:
    """Return the documents whose kind is known without reading them."""
    made = [doc | {"kind": kind_of(doc)} for doc in train.synthesise(real)]
    complying = [doc | {"kind": 0} for doc in real if doc["source"] != "xstest"]
    return made + complying


def fit(model: refusal.Classifier, known: list[dict], read: list[dict]) -> np.ndarray:
    """Return the weights [kinds, columns]; the constant is the last column."""
    from sklearn.linear_model import LogisticRegression

    docs = known + read
    kinds = [doc["kind"] for doc in docs]
    weight = [1.0] * len(known) + [READ] * len(read)
    one = LogisticRegression(C=10.0, max_iter=300)
    one.fit(features(model, docs), kinds, sample_weight=weight)
    weights = one.coef_.copy()
    weights[:, -1] += one.intercept_
    return weights


def left_out(model: refusal.Classifier, known: list[dict], read: list[dict]) -> pd.DataFrame:
    """Return the read answers' kinds as found with the judged model left out, and from none read.

    Llama 2 with and without a system prompt is one model.
    """
    parts = []
    unread_weights = fit(model, known, [])
    for name in sorted({family(doc["model"]) for doc in read}):
        others = [doc for doc in read if family(doc["model"]) != name]
        own = [doc for doc in read if family(doc["model"]) == name]
        found = likeliest_of(model, fit(model, known, others), own)
        alone = likeliest_of(model, unread_weights, own)
        for doc, number, other in zip(own, found, alone, strict=True):
            parts.append((doc["model"], KINDS[doc["kind"]], KINDS[number], KINDS[other]))
    return pd.DataFrame(parts, columns=["model", "read", "found", "grammar"])


def likeliest_of(model: refusal.Classifier, weights: np.ndarray, docs: list[dict]) -> np.ndarray:
    """Return the number of each document's likeliest kind."""
    return (features(model, docs) @ weights.T).argmax(1)


def by_action(folder: Path, grammar: np.ndarray) -> pd.DataFrame:
    """Return kappa on Do-Not-Answer of `refusal` and of the kinds that stand for its actions.

    Args:
        folder: Do-Not-Answer's answers.
        grammar: Weights of the regression that read no answer.
    """
    gold = GOLD[1]
    rows = gold_rows(gold, folder.parent)
    questions = [row[gold.prompt] for row in rows]
    docs = [{"prompt": row[gold.prompt], "answer": row[gold.response]} for row in rows]
    ways = {"": _refused("refusal", rows, gold)}
    alone = np.array(KINDS)[likeliest_of(refusal.load(), grammar, docs)]
    found = []
    for codes, kinds in DEFINITIONS.items():
        truth = np.array([str(row[gold.label]) in codes.split(", ") for row in rows])
        ways["kinds"] = _refused(f"kinds:{kinds}", rows, gold)
        ways["grammar"] = ways[""] & np.isin(alone, kinds.split("+"))
        line = {"actions": codes, "kinds": kinds, "best_list": _best_list(codes)}
        for name, refused in ways.items():
            # 0 is a refusal, as in `human_agreement`
            kappa = judge_errors(1.0 - truth, 1.0 - refused, questions, positive=0).kappa
            line[f"by_{name}"] = f"{kappa.value:.3f} ({kappa.low:.3f} to {kappa.high:.3f})"
        found.append(line)
    return pd.DataFrame(found)


def _best_list(codes: str) -> str:
    """Return the kappa of the best phrase list, as `make judge-table` measured it."""
    table = pd.read_csv(CARD.with_name("all.csv"))
    table = table[table["set"].eq(GOLD[1].name) & table["model"].eq(ALL)]
    lists = table["judge"].str.startswith("keywords:")
    of_codes = table["refusal"].str.startswith(f"{codes} (")
    return f"{table.loc[lists & of_codes, 'kappa'].max():.2f}"


def _refused(judge: str, rows: list[dict], gold: GoldSet) -> np.ndarray:
    table = score_file(rows, prompt=gold.prompt, response=gold.response, judges=[judge])
    return table["outcome"].isin(["refused", "partial"]).to_numpy()


def of_smollm2() -> list[dict]:
    """Return what `refusal` made of SmolLM2's answers on which both readings agree, by state."""
    table = pd.read_csv(HERE / "smollm2.csv")
    table = table[table["first"] == table["second"]]
    read = table["first"].map(OUTCOMES).fillna("refused")
    rows = []
    for state in ("all", *STATES):
        own = (table["state"] == state) | (state == "all")
        judged = table["refusal"][own]
        refuses = judged.isin(["refused", "partial"])
        truth = read[own].isin(["refused", "partial"])
        questions = table["prompt"][own].to_numpy()
        errors = judge_errors(1.0 - truth, 1.0 - refuses, questions, positive=0)
        kappa = errors.kappa
        senseless = judged[read[own] == "incoherent"]
        rows.append(
            {
                "state": state,
                "answers": len(judged),
                "kappa": f"{kappa.value:.2f} ({kappa.low:.2f} to {kappa.high:.2f})",
                "refused": f"{truth.sum()}, {refuses.sum()}",
                "senseless": len(senseless),
                "seen": int((senseless == "incoherent").sum()),
                "complied": int((senseless == "complied").sum()),
            }
        )
    return rows


def train_and_measure(xstest: Path, coconot: Path, benign: list[Path], do_not_answer: Path) -> str:
    """Write the weights and the card; return the card."""
    from safetensors.numpy import save_file

    model = refusal.load()
    known = unread(train.read(xstest, coconot, benign))
    read = labelled(xstest)
    weights = fit(model, known, read).astype(np.float16)
    save_file({"weights": weights}, refusal.FOLDER / WEIGHTS)
    record_shipped()
    found = left_out(model, known, read)
    text = card(found, by_action(do_not_answer, fit(model, known, [])))
    write_atomic(CARD, text)
    return text


def card(found: pd.DataFrame, actions: pd.DataFrame) -> str:
    """Return the judge's card."""
    judged = pd.crosstab(found["read"], found["found"])
    square = judged.reindex(columns=KINDS, fill_value=0)
    parts = {"all": found} | dict(list(found.groupby("model")))
    refusing = found[found["read"].isin(REFUSING)]
    parts["all that refuse, as read"] = refusing
    by_model = []
    for name, part in parts.items():
        kappas = [_kappa(part["read"], part[way]) for way in ("found", "grammar")]
        by_model.append({"model": name, "n": len(part), "kappas": kappas})
    readings = [pd.read_csv(HERE / f"{name}.csv") for name in ("kinds", "smollm2")]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), undefined=jinja2.StrictUndefined, autoescape=False
    )
    return environment.get_template("kinds.md.j2").render(
        about=open_judge("kinds").about(),
        readers=[_kappa(table["first"], table["second"]) for table in readings],
        by_model=by_model,
        n=len(found),
        judged=square.to_markdown(),
        actions=actions.to_dict("records"),
        smollm2=of_smollm2(),
    )


def _kappa(one: pd.Series, other: pd.Series) -> float:
    from sklearn.metrics import cohen_kappa_score

    return float(cohen_kappa_score(one, other))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--xstest", type=Path, required=True, help="folder of XSTest's answers")
    parser.add_argument("--coconot", type=Path, required=True, help="folder of coconot_pref.jsonl")
    parser.add_argument("--benign", type=Path, nargs="+", required=True, help="instruction files")
    parser.add_argument("--do-not-answer", type=Path, required=True, help="only measured")
    print(train_and_measure(**vars(parser.parse_args())))
