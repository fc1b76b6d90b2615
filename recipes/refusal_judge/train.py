"""How the judge `refusal` is made and measured, on files that anyone can get (`ftlab train-judge`; needs scikit-learn).

XSTest's human labels (Röttger et al. 2024, arXiv 2308.01263; CC-BY-4.0, completions research-only), CoCoNot's chosen
answers (Brahman et al. 2024, arXiv 2407.12043; MIT: answers to prompts that should be answered), human-written answers
of instruction sets, and refusals of a grammar (`data/judge/refusal/grammar.json`) on those sets' prompts. Do-Not-Answer
(Wang et al. 2023, arXiv 2308.13387; CC BY-NC-SA) measures and never trains.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from ftlab.judges.refusal import FOLDER, TOKEN, clean, encode, marks, ngrams, probabilities, sentences

LABELS = {"1_full_compliance": 0, "2_full_refusal": 1, "3_partial_refusal": 2}
WEIGHTS = dict(xstest=1.0, headless=0.3, coconot=0.5, benign=0.4, synthetic=0.5)  # of a document
MOST = 600  # documents of one benign file
SYNTHETIC = 7000
KINDS = {  # part of the grammar: (share of the synthetic documents, label)
    "refusal": (0.45, 1), "capability": (0.1, 1), "partial": (0.12, 2), "complied": (0.25, 0), "disclaimed": (0.08, 0)
}  # fmt: skip
TOLD = 150  # characters of an answer that is something told, behind a disclaimer
RARE, SOURCES = 4, 2  # an n-gram stays that so many documents of so many sources hold; a word: twice the documents
COMMON = 0.02  # share of documents from which on a word keeps its identity though the prompt has it
C, FOLDS = 20.0, 3  # inverse strength of the L2 penalty; folds of prompts for calibration
ERROR_OUTSIDE = 0.03  # the uncertain band is the narrowest outside which no more than this share is wrong


def read(xstest: Path, coconot: Path, benign: list[Path]) -> list[dict]:
    """-> documents {prompt, answer, label, source, model, id}; label 0 complied, 1 refused, 2 refused in part."""
    import pandas as pd

    docs = []
    files = sorted(Path(xstest).glob("xstest_v2_completions_*.csv"))
    if not files:
        raise FileNotFoundError(
            f"{xstest}: no xstest_v2_completions_*.csv; give the folder model_completions of XSTest's repository"
        )
    for file in files:
        for r in pd.read_csv(file, keep_default_na=False).to_dict("records"):
            humans = [LABELS[r["annotation_1"]], LABELS[r["annotation_2"]]]
            docs.append(dict(prompt=r["prompt"], answer=r["completion"], label=LABELS[r["final_label"]], source="xstest",
                             model=file.stem.split("_")[-1], humans=humans, kind=r["type"], id=r["id"]))  # fmt: skip
    pairs = _json(Path(coconot) / "coconot_pref.jsonl")
    docs += [dict(prompt=r["prompt"], answer=r["chosen"], label=0, source="coconot", model="coconot") for r in pairs]
    for file in benign:
        for r in _json(Path(file))[:MOST]:
            for one in r["instances"][:2] if "instances" in r else [r]:
                prompt = r.get("question") or "\n".join(filter(None, (r["instruction"], one.get("input", ""))))
                answer = re.sub("<<.*?>>", "", one.get("answer") or one.get("output") or "")  # gsm8k's calculator
                if answer.strip():
                    docs.append(dict(prompt=prompt, answer=answer, label=0, source="benign", model=Path(file).stem))
    return docs


def _json(file: Path) -> list[dict]:
    text = file.read_text(encoding="utf-8")
    return json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]


def synthesise(docs: list[dict], n: int = SYNTHETIC, seed: int = 0) -> list[dict]:
    """-> documents of the grammar on the prompts of benign documents: refusals of many kinds, for lack of ability too;
    compliance after a polite word, an apology or a disclaimer, cut short, or quoting a refusal; both in one answer; a
    third with curly apostrophes."""
    grammar = json.loads((FOLDER / "grammar.json").read_text(encoding="utf-8"))
    rng, out = random.Random(seed), []
    rows = [d for d in docs if d["label"] == 0 and d["source"] in ("coconot", "benign")]
    told = [d for d in rows if len(d["answer"]) >= TOLD] or rows
    pairs = [d for d in told if d["source"] == "coconot"] or told

    def expand(text: str, slots: dict) -> str:
        return re.sub(r"{(\w+)}", lambda m: slots[m[1]] if m[1] in slots else expand(rng.choice(grammar[m[1]]), slots), text)  # fmt: skip

    for _ in range(n):
        kind = rng.choices(list(KINDS), [share for share, _ in KINDS.values()])[0]
        row = rng.choice(rows if kind != "disclaimed" else pairs if rng.random() < 0.5 else told)
        words = re.findall(r"[\w'-]+", row["prompt"])[-14:] or ["that"]
        length = rng.randint(1, min(5, len(words)))
        start = rng.randrange(len(words) - length + 1)
        topic, answer = " ".join(words[start : start + length]).lower(), row["answer"].strip()
        if rng.random() < 0.35 and kind != "disclaimed":
            answer = answer[: rng.randint(60, 700)]
        slots = dict(x=topic, X=topic[:1].upper() + topic[1:], answer=answer, answer_short=re.split(r"(?<=[.!?])\s", answer)[0])  # fmt: skip
        text = expand(rng.choice(grammar[kind]), slots).strip()
        text = text.replace("'", "’") if rng.random() < 0.3 else text
        out.append(dict(prompt=row["prompt"], answer=text, label=KINDS[kind][1], source="synthetic", model="synthetic"))
    return out


def headless(docs: list[dict]) -> list[dict]:
    """-> human-labelled refusals of three sentences or more again without their first: the opening is not all there is."""
    out = []
    for d in docs:
        parts = re.split(r"(?<=[.!?])\s+", d["answer"].strip(), maxsplit=1) if "humans" in d and d["label"] == 1 else []
        if len(parts) > 1 and re.search(r"[.!?]\s", parts[1]):
            out.append({**d, "answer": parts[1], "source": "headless"})
    return out


def lexicon(docs: list[dict]) -> dict:
    """-> model with `vocabulary` and `common`: nothing in it that fewer than RARE documents of SOURCES sources hold."""

    def counted(bags):
        count, where = Counter(), defaultdict(set)
        for doc, bag in zip(docs, bags, strict=True):
            count.update(bag)
            for gram in bag:
                where[gram].add(doc["model"])
        return {g: c for g, c in count.items() if c >= RARE and len(where[g]) >= SOURCES}

    words = counted({"0" if t[0].isdigit() else t for t in TOKEN.findall(clean(d["answer"]))} for d in docs)
    known = {w for w, c in words.items() if c >= 2 * RARE and not w[0].isspace()}
    model = {"vocabulary": known, "common": {w for w, c in words.items() if c >= COMMON * len(docs)}}
    grams = counted(marks(s).union(*map(ngrams, s)) for s in texts(model, docs))
    return {**model, "vocabulary": {g: i for i, g in enumerate(sorted(known | set(grams)))}}


def fit(docs: list[dict]) -> dict:
    """-> model (as `refusal.load` gives it), calibrated on predictions for prompts that its regressions had not seen."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    docs = docs + headless(docs)
    model = lexicon(docs)
    document, column, value = encode(model, texts(model, docs))
    x = csr_matrix((value, (document, column)), (len(docs), column.max() + 1))
    label, weight = (np.array(v) for v in ([d["label"] for d in docs], [WEIGHTS[d["source"]] for d in docs]))

    def regressions(rows):
        kind = dict(C=C, solver="liblinear", fit_intercept=False, random_state=0)  # the constant is x's last column
        targets = label[rows] > 0, label[rows] == 1
        return np.vstack(
            [LogisticRegression(**kind).fit(x[rows], t, sample_weight=weight[rows]).coef_ for t in targets]
        )

    fold, z = folds(docs, FOLDS), np.zeros((2, len(docs)))
    for k in range(FOLDS):
        z[:, fold == k] = (x[fold == k] @ regressions(fold != k).T).T
    some = label > 0
    calibration = []
    for rows, target in ((slice(None), some), (some, label[some] == 1)):
        c = LogisticRegression(C=1.0).fit(z[:, rows].T, target, sample_weight=weight[rows])
        calibration.append([*map(float, c.coef_[0]), float(c.intercept_[0])])
    return {**model, "weights": regressions(slice(None)), "calibration": calibration}


def band(probability: np.ndarray, truth: np.ndarray) -> list[float]:
    """-> [low, high] around 0.5, the narrowest outside which at most ERROR_OUTSIDE of the answers is judged wrongly."""
    wrong, distance = (probability >= 0.5) != truth, np.abs(probability - 0.5)
    for half in np.arange(0.0, 0.5, 0.01):
        outside = distance >= half
        if not outside.any() or wrong[outside].mean() <= ERROR_OUTSIDE:
            break
    return [round(0.5 - float(half), 2), round(0.5 + float(half), 2)]


def save(model: dict, folder: Path) -> None:
    """Writes model.json and weights.safetensors (float16); n-grams as a sorted list, a number is its place."""
    from safetensors.numpy import save_file

    Path(folder).mkdir(parents=True, exist_ok=True)
    text = {k: model[k] for k in ("calibration", "uncertain")}
    text |= {"common": sorted(model["common"]), "vocabulary": list(model["vocabulary"])}
    (Path(folder) / "model.json").write_text(json.dumps(text, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    save_file({"weights": model["weights"].astype(np.float16)}, Path(folder) / "weights.safetensors")


def folds(docs: list[dict], k: int) -> np.ndarray:
    """-> fold of each document; documents of one prompt share theirs."""
    names = list(dict.fromkeys(d["prompt"] for d in docs))
    random.Random(0).shuffle(names)
    of = {name: i % k for i, name in enumerate(names)}
    return np.array([of[d["prompt"]] for d in docs])


def predict(model: dict, docs: list[dict]) -> np.ndarray:
    return probabilities(model, texts(model, docs))


def texts(model: dict, docs: list[dict]) -> list[list[list[str]]]:
    return [sentences(model, d["prompt"], d["answer"]) for d in docs]
