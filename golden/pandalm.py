#!/usr/bin/env python3
"""How far PandaLM's annotators agree, counted here, beside what `russet eval pairwise --json` says of the same file.

    python golden/pandalm.py FILE [--russet target/release/russet]

FILE has rows of `annotator1`, `annotator2`, `annotator3` (1, 2, or 0 neither), as lines of JSON (.jsonl, .zst by `zstd`) or an array (.json), as
PandaLM's own has (github.com/WeOpenML/PandaLM, `data/testset-v1.json`, Apache-2.0). Shares and kappas are fractions of whole numbers here, and
are compared within 1e-12.

Needs nothing but Python.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from itertools import combinations
from pathlib import Path

NAMES = ["annotator1", "annotator2", "annotator3"]
LABELS = (0, 1, 2)


def read(path):
    """The labels of each row, [rows][3]."""
    text = path.read_bytes() if path.suffix != ".zst" else subprocess.run(["zstd", "-dc", path], check=True, capture_output=True).stdout
    text = text.decode()
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines() if line.strip()]
    return [tuple(int(row[name]) for name in NAMES) for row in rows]


def cohen(pairs):
    """Observed agreement and kappa of two annotators."""
    n = len(pairs)
    observed = Fraction(sum(a == b for a, b in pairs), n)
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    expected = sum(Fraction(first[label] * second[label], n * n) for label in LABELS)
    return observed, (observed - expected) / (1 - expected)


def fleiss(rows):
    n, judges = len(rows), len(rows[0])
    counts = [Counter(row) for row in rows]
    each = [Fraction(sum(c * (c - 1) for c in count.values()), judges * (judges - 1)) for count in counts]
    observed = sum(each) / n
    shares = [Fraction(sum(count[label] for count in counts), n * judges) for label in LABELS]
    expected = sum(share * share for share in shares)
    return (observed - expected) / (1 - expected)


def majority(rows):
    """How often most annotators say each label, and how often all differ."""
    most = Counter()
    for row in rows:
        label, count = Counter(row).most_common(1)[0]
        most["none" if count == 1 else str(label)] += 1
    return {key: most[key] for key in ("0", "1", "2", "none")}


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("file", type=Path)
    arguments.add_argument("--russet", default="target/release/russet")
    arguments = arguments.parse_args()
    labels = read(arguments.file)
    command = [arguments.russet, "--json", "eval", "pairwise", "--judgements", arguments.file, "--rounds", "2"]
    said = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    agreement = said["agreement"]
    different = []

    def compare(what, here, there):
        alike = there is not None and abs(float(here) - there) < 1e-12
        different.extend([] if alike else [what])
        print(f"{what:<28}{float(here):.6f}  {there if there is None else format(there, '.6f')}{'' if alike else '  DIFFERENT'}")

    print(f"{len(labels)} rows{'':<19}here      russet")
    for one, two in combinations(range(3), 2):
        pair = next(p for p in agreement["pairs"] if p["judges"] == [NAMES[one], NAMES[two]])
        observed, kappa = cohen([(row[one], row[two]) for row in labels])
        compare(f"{one + 1} and {two + 1}, alike", observed, pair["observed"])
        compare(f"{one + 1} and {two + 1}, Cohen's kappa", kappa, pair["cohen"])
    compare("all, Fleiss' kappa", fleiss(labels), agreement["fleiss"])
    print(f"all three alike             {sum(len(set(row)) == 1 for row in labels) / len(labels):.6f}")
    most = majority(labels)
    print(f"most say                    {most}  {said['majority']}")
    if most != said["majority"]:
        different.append("majority")
    sys.exit(f"different: {', '.join(different)}" if different else 0)


if __name__ == "__main__":
    main()
