#!/usr/bin/env python3
"""The text that `bench/quality.py` calibrates palettes on: characters of training texts in given shares.

    bench/calibration.py --out texts/calibration.jsonl.zst books=0.56=texts/books.jsonl.zst code=0.34=texts/code.jsonl.zst documentation=0.1=texts/documentation.jsonl.zst

Files are JSON Lines with a field `text`, packed with zstd, whose program must be there; the shares are those of nano's core stage
(`models/nano/recipe/03-core.toml`), its texts are made by `texts.py` beside it. Each source's documents are shuffled, cut at
--document characters and taken until its share of --characters is full; then all are shuffled. The same seed gives the same file.
"""
import argparse
import json
import random
import subprocess

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("sources", nargs="+", metavar="NAME=SHARE=FILE[,FILE]")
parser.add_argument("--out", required=True)
parser.add_argument("--characters", type=int, default=8_000_000)
parser.add_argument("--document", type=int, default=200_000, help="characters of a document that are kept")
parser.add_argument("--seed", type=int, default=1)
args = parser.parse_args()
chance = random.Random(args.seed)
mixed = []
for source in args.sources:
    name, share, files = source.split("=")
    texts = []
    for file in files.split(","):
        lines = subprocess.run(["zstd", "-dc", file], capture_output=True, check=True).stdout.decode().split("\n")
        texts += [json.loads(line)["text"] for line in lines if line]
    chance.shuffle(texts)
    left, taken = round(float(share) * args.characters), 0
    for text in texts:
        if left <= 0:
            break
        mixed.append(text[: min(left, args.document)])
        left -= len(mixed[-1])
        taken += 1
    print(f"{name}: {round(float(share) * args.characters) - left} characters of {taken} documents")
chance.shuffle(mixed)
lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in mixed)
subprocess.run(["zstd", "-q", "-f", "-o", args.out], input=lines.encode(), check=True)
