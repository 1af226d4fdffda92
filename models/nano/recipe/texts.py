#!/usr/bin/env python3
"""The texts of this recipe: every fortieth document of each source is held out, the others are for training.

    models/nano/recipe/texts.py --out texts books=books.jsonl.zst documentation=docs.jsonl.zst code=rust.jsonl.zst,python.jsonl.zst

Files are JSON Lines with a field `text`, packed with zstd, whose program must be there. Of each source NAME.jsonl.zst and
NAME-heldout.jsonl.zst are written, and heldout.jsonl.zst: 800,000 characters of what is held out in the shares of the core stage.
"""
import argparse
import json
import os
import subprocess

SHARES = {"books": 0.56, "code": 0.34, "documentation": 0.10}
CHARACTERS = 800_000

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("sources", nargs="+", metavar="NAME=FILE[,FILE]")
parser.add_argument("--out", required=True)
args = parser.parse_args()
os.makedirs(args.out, exist_ok=True)


def write(name, texts):
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    subprocess.run(["zstd", "-q", "-f", "-o", f"{args.out}/{name}.jsonl.zst"], input=lines.encode(), check=True)


heldout = {}
for source in args.sources:
    name, _, files = source.partition("=")
    texts = []
    for file in files.split(","):
        lines = subprocess.run(["zstd", "-dc", file], capture_output=True, check=True).stdout.decode().split("\n")
        texts += [json.loads(line)["text"] for line in lines if line]
    heldout[name] = texts[39::40]
    write(name, [text for number, text in enumerate(texts) if number % 40 != 39])
    write(f"{name}-heldout", heldout[name])

mixed = []
for name, share in SHARES.items():
    left = share * CHARACTERS
    for text in heldout.get(name, []):
        if left <= 0:
            break
        mixed.append(text[: int(left) + 1])
        left -= len(mixed[-1])
write("heldout", mixed)
