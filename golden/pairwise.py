#!/usr/bin/env python3
"""What alpaca_eval, scikit-learn and statsmodels make of judgements: crates/eval/tests/pairwise_golden.json.

    python golden/pairwise.py            # writes it
    python golden/pairwise.py --check    # says whether it would come out the same

Win rates and standard errors are alpaca_eval's `get_winrate`; the length-controlled ones its `make_dmatrix_for_model` and
`fit_LogisticRegressionCV`, with liblinear's tolerance at 1e-14 where alpaca_eval has scikit-learn's 1e-4, so that what is compared is the minimum
and not where a solver stops. The judgements are drawn from numpy's frozen RandomState. Cohen's kappa is scikit-learn's, Fleiss' statsmodels'.

Needs: pip install --no-deps alpaca_eval==0.6.6, and numpy pandas patsy scikit-learn statsmodels.
"""

import argparse
import importlib.util
import json
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats.inter_rater import aggregate_raters, fleiss_kappa

OUT = Path(__file__).resolve().parent.parent / "crates/eval/tests/pairwise_golden.json"


def alpaca_eval():
    """Its modules for metrics, without the clients of language models around them."""
    place = Path(importlib.util.find_spec("alpaca_eval").submodule_search_locations[0])
    package = types.ModuleType("alpaca_eval")
    package.__path__ = [str(place)]
    hub = types.ModuleType("huggingface_hub")
    hub.hf_hub_download = None  # the gamed baselines: drawn here instead
    utils = types.ModuleType("alpaca_eval.utils")
    utils.convert_to_dataframe = lambda rows: rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(rows)
    utils.validate_alpacaeval_preference = lambda x, is_allow_nan=True: (1 <= x <= 2) or (is_allow_nan and np.isnan(x))
    others = {"alpaca_eval.constants": types.ModuleType("c"), "alpaca_eval.types": types.ModuleType("t")}
    others["alpaca_eval.types"].AnyLoadableDF = object
    metrics = types.ModuleType("alpaca_eval.metrics")
    metrics.__path__ = [str(place / "metrics")]
    sys.modules |= {"alpaca_eval": package, "huggingface_hub": hub, "alpaca_eval.utils": utils, "alpaca_eval.metrics": metrics} | others
    package.utils, package.constants, package.types = utils, *others.values()
    from alpaca_eval.metrics import glm_winrate, winrate

    return glm_winrate, winrate


def draw(random, rows, difficulty):
    """Judgements in which the longer response is often preferred."""
    lengths = random.randint(20, 600, size=(rows, 2))
    hard = random.randn(rows)
    logit = 0.4 + 0.006 * (lengths[:, 1] - lengths[:, 0]) - (0.7 * hard if difficulty else 0)
    p = 1 / (1 + np.exp(-logit))
    preference = np.where(random.rand(rows) < 0.5, np.round(p * 0.9 + 0.05, 4), (random.rand(rows) < p) * 1.0)
    preference = np.where(random.rand(rows) < 0.1, 0.5, preference)
    frame = {"preference": preference + 1, "length_1": lengths[:, 0], "length_2": lengths[:, 1]}
    if difficulty:
        frame["instruction_difficulty"] = np.round(hard, 6)
    return pd.DataFrame(frame)


def controlled(glm, df, gamed, difficulty):
    """`get_length_controlled_winrate`, from featurizing on."""
    longer = df["length_1"] - df["length_2"]
    frame = pd.DataFrame({"preference": df["preference"] - 1, "std_delta_len": longer / longer.std(), "not_gamed_baseline": True})
    formula = "np.tanh(std_delta_len) + not_gamed_baseline.astype(float) - 1"
    if difficulty:
        frame["instruction_difficulty"] = df["instruction_difficulty"]
        formula = "np.tanh(std_delta_len) + instruction_difficulty + not_gamed_baseline.astype(float) - 1"
    test = frame.drop(columns="preference").assign(std_delta_len=0)
    weight = None
    train = frame
    if gamed is not None:
        train = pd.concat([gamed.assign(not_gamed_baseline=False), frame], axis=0)
        own = train["not_gamed_baseline"].astype(bool)
        weight = own.astype(float) + (0.2 * ~own).astype(float) / 2
    xy, x = glm.make_dmatrix_for_model(train, test, formula=formula)
    model = glm.fit_LogisticRegressionCV(
        xy, "preference", is_ytrue_proba=True, sample_weight=weight, n_splits=5, tol=1e-14, max_iter=100_000_000
    )
    predicted = pd.Series(model.predict_proba(x)[:, 1])
    weights = dict(zip(x.columns, model.coef_[0]))
    return {
        "win_rate": predicted.mean() * 100,
        "standard_error": predicted.sem() * 100,
        "length": weights["np.tanh(std_delta_len)"],
        "difficulty": weights.get("instruction_difficulty"),
        "model": weights["not_gamed_baseline.astype(float)"],
        "c": float(model.C_[0]),
    }


def make():
    glm, winrate = alpaca_eval()
    cases = []
    for seed, (rows, difficulty, with_gamed) in enumerate([(120, True, False), (80, False, False), (150, True, True), (23, True, False)]):
        random = np.random.RandomState(seed)
        df = draw(random, rows, difficulty)
        gamed = None
        if with_gamed:
            delta = np.round(random.randn(2 * rows) * 1.5, 4)
            score = np.round(1 / (1 + np.exp(-0.8 * delta)), 4)
            hard = np.tile(df["instruction_difficulty"].to_numpy(), 2)
            gamed = pd.DataFrame({"preference": score, "std_delta_len": delta, "instruction_difficulty": hard})
        plain = winrate.get_winrate(df)
        cases.append(
            {
                "rows": df.to_dict("records"),
                "gamed": [] if gamed is None else gamed.to_dict("records"),
                "win_rate": plain["win_rate"],
                "standard_error": plain["standard_error"],
                "wins": int(plain["n_wins"]),
                "draws": int(plain["n_draws"]),
                "controlled": controlled(glm, df, gamed, difficulty),
            }
        )
    random = np.random.RandomState(9)
    truth = random.randint(0, 3, size=200)
    labels = np.stack([np.where(random.rand(200) < keep, truth, random.randint(0, 3, size=200)) for keep in (0.9, 0.7, 0.5)], axis=1)
    kappas = {
        "labels": labels.tolist(),
        "cohen": [cohen_kappa_score(labels[:, i], labels[:, j]) for i, j in ((0, 1), (0, 2), (1, 2))],
        "fleiss": fleiss_kappa(aggregate_raters(labels)[0]),
    }
    return {"cases": cases, "agreement": kappas}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--check", action="store_true")
    check = arguments.parse_args().check
    warnings.filterwarnings("ignore")
    text = json.dumps(make(), indent=None, separators=(",", ":")) + "\n"
    if check:
        sys.exit(0 if OUT.read_text() == text else f"{OUT} would come out otherwise")
    OUT.write_text(text)


if __name__ == "__main__":
    main()
