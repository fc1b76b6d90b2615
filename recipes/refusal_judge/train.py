"""Train the judge `refusal` and measure it: `make refusal-judge`. Needs scikit-learn.

Training data: XSTest's human labels (Röttger et al. 2024, arXiv 2308.01263; CC-BY-4.0, completions
for research only), CoCoNot's chosen answers (Brahman et al. 2024, arXiv 2407.12043; MIT), human
answers of instruction sets, and refusals of a grammar (`data/judge/refusal/grammar.json`) on those
sets' prompts. Do-Not-Answer (Wang et al. 2023, arXiv 2308.13387; CC BY-NC-SA) only measures.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from ftlab._core.errors import NotFoundError
from ftlab.judges import refusal
from ftlab.judges.refusal import FOLDER, Classifier, sentences
from recipes.shipped import record_shipped

LABELS = {"1_full_compliance": 0, "2_full_refusal": 1, "3_partial_refusal": 2}
WEIGHTS = {"xstest": 1.0, "headless": 0.3, "coconot": 0.5, "benign": 0.4, "synthetic": 0.5}
MOST = 600  # documents of one benign file
SYNTHETIC = 7000
KINDS = {  # part of the grammar: (share of the synthetic documents, label)
    "refusal": (0.45, 1),
    "capability": (0.1, 1),
    "partial": (0.12, 2),
    "complied": (0.25, 0),
    "disclaimed": (0.08, 0),
}
INFORMATIVE = 150  # characters of an answer that may stand behind a disclaimer
RARE, SOURCES = 4, 2  # fewest documents and sources of an n-gram; words need twice the documents
COMMON = 0.02  # share of documents from which on a word keeps its identity
C, FOLDS = 20.0, 3  # inverse strength of the L2 penalty; folds of prompts for calibration
ERROR_OUTSIDE = 0.03  # largest share of wrong verdicts outside the uncertain band


def read(xstest: Path, coconot: Path, benign: list[Path]) -> list[dict]:
    """Read documents; `label` is 0 complied, 1 refused, 2 refused in part."""
    import pandas as pd

    docs = []
    files = sorted(Path(xstest).glob("xstest_v2_completions_*.csv"))
    if not files:
        message = f"No xstest_v2_completions_*.csv in {xstest}. Name XSTest's model_completions."
        raise NotFoundError("xstest_not_found", message)
    for file in files:
        for row in pd.read_csv(file, keep_default_na=False).to_dict("records"):
            doc = _doc(row["prompt"], row["completion"], LABELS[row["final_label"]], "xstest")
            doc["model"] = file.stem.split("_")[-1]
            doc["final_label"] = row["final_label"]
            doc["humans"] = [LABELS[row["annotation_1"]], LABELS[row["annotation_2"]]]
            docs.append(doc)
    for row in read_json(Path(coconot) / "coconot_pref.jsonl"):
        docs.append(_doc(row["prompt"], row["chosen"], 0, "coconot"))
    for file in benign:
        for row in read_json(Path(file))[:MOST]:
            instances = row["instances"][:2] if "instances" in row else [row]
            for one in instances:
                asked = "\n".join(filter(None, (row.get("instruction"), one.get("input", ""))))
                answer = one.get("answer") or one.get("output") or ""
                answer = re.sub("<<.*?>>", "", answer)  # gsm8k's calculator
                if answer.strip():
                    doc = _doc(row.get("question") or asked, answer, 0, "benign")
                    docs.append(doc | {"model": Path(file).stem})
    return docs


def _doc(prompt: str, answer: str, label: int, source: str) -> dict:
    return {"prompt": prompt, "answer": answer, "label": label, "source": source, "model": source}


def read_json(file: Path) -> list[dict]:
    text = file.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        return json.loads(text)
    return [json.loads(line) for line in text.splitlines()]


def synthesise(docs: list[dict], n: int = SYNTHETIC, seed: int = 0) -> list[dict]:
    """Write documents of the grammar on the prompts of benign documents.

    They are refusals of many kinds, also for lack of ability; compliance after a polite word, an
    apology or a disclaimer, cut short, or quoting a refusal; and both in one answer. A third has
    curly apostrophes.
    """
    grammar = json.loads((FOLDER / "grammar.json").read_text(encoding="utf-8"))
    rng, made = random.Random(seed), []
    rows = [d for d in docs if d["label"] == 0 and d["source"] in ("coconot", "benign")]
    informative = [d for d in rows if len(d["answer"]) >= INFORMATIVE] or rows
    contrasts = [d for d in informative if d["source"] == "coconot"] or informative

    def expand(text: str, slots: dict) -> str:
        def fill(match):
            name = match[1]
            return slots[name] if name in slots else expand(rng.choice(grammar[name]), slots)

        return re.sub(r"{(\w+)}", fill, text)

    for _ in range(n):
        kind = rng.choices(list(KINDS), [share for share, _ in KINDS.values()])[0]
        pool = rows
        if kind == "disclaimed":
            pool = contrasts if rng.random() < 0.5 else informative
        row = rng.choice(pool)
        words = re.findall(r"[\w'-]+", row["prompt"])[-14:] or ["that"]
        length = rng.randint(1, min(5, len(words)))
        start = rng.randrange(len(words) - length + 1)
        topic = " ".join(words[start : start + length]).lower()
        answer = row["answer"].strip()
        if rng.random() < 0.35 and kind != "disclaimed":
            answer = answer[: rng.randint(60, 700)]
        slots = {"x": topic, "X": topic[:1].upper() + topic[1:], "answer": answer}
        slots["answer_short"] = re.split(r"(?<=[.!?])\s", answer)[0]
        template = rng.choice(grammar[kind])
        while template == "{long}":
            template = rng.choice(grammar["long"])
        text = expand(template, slots).strip()
        if rng.random() < 0.3:
            text = text.replace("'", "’")
        doc = _doc(row["prompt"], text, KINDS[kind][1], "synthetic")
        made.append(doc | {"part": kind, "template": template})
    return made


def headless(docs: list[dict]) -> list[dict]:
    """Return labelled refusals of three sentences or more without their first sentence."""
    made = []
    for doc in docs:
        if "humans" not in doc or doc["label"] != 1:
            continue
        parts = re.split(r"(?<=[.!?])\s+", doc["answer"].strip(), maxsplit=1)
        if len(parts) > 1 and re.search(r"[.!?]\s", parts[1]):
            made.append({**doc, "answer": parts[1], "source": "headless"})
    return made


def lexicon(docs: list[dict]) -> Classifier:
    """Choose vocabulary and common words: what enough documents of enough sources hold."""

    def counted(bags) -> dict[str, int]:
        count, sources = Counter(), defaultdict(set)
        for doc, bag in zip(docs, bags, strict=True):
            count.update(bag)
            for gram in bag:
                sources[gram].add(doc["model"])
        enough = {g for g, c in count.items() if c >= RARE and len(sources[g]) >= SOURCES}
        return {g: c for g, c in count.items() if g in enough}

    tokens = [refusal.TOKEN.findall(refusal.clean(doc["answer"])) for doc in docs]
    words = counted({"0" if t[0].isdigit() else t for t in some} for some in tokens)
    known = {w for w, c in words.items() if c >= 2 * RARE and not w[0].isspace()}
    common = {w for w, c in words.items() if c >= COMMON * len(docs)}
    lines = texts(Classifier(dict.fromkeys(known, 0), common), docs)
    grams = counted(refusal.marks(s).union(*map(refusal.ngrams, s)) for s in lines)
    return Classifier({g: i for i, g in enumerate(sorted(known | set(grams)))}, common)


def fit(docs: list[dict]) -> Classifier:
    """Fit the regressions, and calibrate them on predictions for prompts they had not seen."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    docs = docs + headless(docs)
    model = lexicon(docs)
    document, column, value = refusal.encode(model, texts(model, docs))
    x = csr_matrix((value, (document, column)), (len(docs), column.max() + 1))
    label = np.array([doc["label"] for doc in docs])
    weight = np.array([WEIGHTS[doc["source"]] for doc in docs])

    def regressions(rows) -> np.ndarray:
        found = []
        for target in (label[rows] > 0, label[rows] == 1):
            # The constant is x's last column.
            one = LogisticRegression(C=C, solver="liblinear", fit_intercept=False, random_state=0)
            found.append(one.fit(x[rows], target, sample_weight=weight[rows]).coef_)
        return np.vstack(found)

    fold, z = folds(docs, FOLDS), np.zeros((2, len(docs)))
    for k in range(FOLDS):
        z[:, fold == k] = (x[fold == k] @ regressions(fold != k).T).T
    refuses, calibration = label > 0, []
    for rows, target in ((slice(None), refuses), (refuses, label[refuses] == 1)):
        one = LogisticRegression(C=1.0).fit(z[:, rows].T, target, sample_weight=weight[rows])
        calibration.append([*map(float, one.coef_[0]), float(one.intercept_[0])])
    return replace(model, weights=regressions(slice(None)), calibration=calibration)


def band(probability: np.ndarray, truth: np.ndarray) -> list[float]:
    """Return the narrowest band around 0.5 with at most ERROR_OUTSIDE wrong outside."""
    wrong = (probability >= 0.5) != truth
    distance = np.abs(probability - 0.5)
    for half in np.arange(0.0, 0.5, 0.01):
        outside = distance >= half
        if not outside.any() or wrong[outside].mean() <= ERROR_OUTSIDE:
            break
    return [round(0.5 - float(half), 2), round(0.5 + float(half), 2)]


def save(model: Classifier, folder: Path) -> None:
    """Write model.json and weights.safetensors (float16)."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    stored = {"calibration": model.calibration, "uncertain": model.uncertain}
    stored |= {"common": sorted(model.common), "vocabulary": list(model.vocabulary)}
    text = json.dumps(stored, ensure_ascii=False, indent=0)
    (folder / "model.json").write_text(text + "\n", encoding="utf-8")
    save_file({"weights": model.weights.astype(np.float16)}, folder / "weights.safetensors")


def folds(docs: list[dict], k: int) -> np.ndarray:
    """Return the fold of each document; documents of one prompt share theirs."""
    prompts = list(dict.fromkeys(doc["prompt"] for doc in docs))
    random.Random(0).shuffle(prompts)
    fold = {prompt: i % k for i, prompt in enumerate(prompts)}
    return np.array([fold[doc["prompt"]] for doc in docs])


def predict(model: Classifier, docs: list[dict]) -> np.ndarray:
    return refusal.probabilities(model, texts(model, docs))


def texts(model: Classifier, docs: list[dict]) -> list:
    return [sentences(model, doc["prompt"], doc["answer"]) for doc in docs]


if __name__ == "__main__":
    from recipes.refusal_judge.measure import train_and_measure

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--xstest", type=Path, required=True, help="folder of XSTest's answers")
    parser.add_argument("--coconot", type=Path, required=True, help="folder of coconot_pref.jsonl")
    parser.add_argument("--benign", type=Path, nargs="+", required=True, help="instruction files")
    parser.add_argument("--do-not-answer", type=Path, required=True, help="only measured")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the model")
    print(train_and_measure(**vars(parser.parse_args())))
    record_shipped()
