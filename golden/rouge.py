#!/usr/bin/env python3
"""ROUGE by the package rouge_score, without stemming: crates/eval/tests/rouge_golden.json.

    python golden/rouge.py

Texts are drawn from a small vocabulary, so that n-grams meet, with capitals, punctuation, digits and letters beyond a-z between.

Needs: pip install rouge_score==0.1.2
"""

import json
import random
from pathlib import Path

from rouge_score import rouge_scorer

OUT = Path(__file__).resolve().parent.parent / "crates/eval/tests/rouge_golden.json"
WORDS = ["the", "The", "cat", "cat's", "sat", "on", "mat", "a", "42", "3.5", "café", "naïve", "well-known", "MAT", "…", "İ", "dog", "ran", "U.S."]


def main():
    random.seed(5)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    cases = []
    for _ in range(80):
        def draw(most):
            return " ".join(random.choice(WORDS) for _ in range(random.randint(0, most)))

        references, response = [draw(14) for _ in range(random.randint(1, 3))], draw(12)
        scores = scorer.score_multi(references, response)
        of = {kind: [score.precision, score.recall, score.fmeasure] for kind, score in scores.items()}
        cases.append({"references": references, "response": response} | of)
    OUT.write_text(json.dumps(cases, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
