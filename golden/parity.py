#!/usr/bin/env python3
"""Compares russet with transformers on a checkpoint folder: the logits of the model, and the ids of the tokenizer.

    python golden/parity.py --russet target/release/russet runs/tiny/03-pretrain [more folders]

russet is called as a user would call it:

    russet eval logits --model DIR --tokens 1,2,3 --out FILE.safetensors     logits  F32  [N, V]
    russet tokenizer encode --model DIR --text TEXT --json                   {"ids": [1, 2, 3]}

transformers loads the same folder in f32 with eager attention. Tolerance 2e-4, absolute: the two differ by rounding alone, which
golden/make_models.py measures at 1e-5 on logits of order 5; a wrong epsilon, angle or norm moves a logit by 4e-4 and more.
A folder without tokenizer.json skips the tokenizer and says so. Exits 1 if any comparison fails.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file

TOLERANCE = 2e-4
TOKENS = 48
TEXTS = [
    "Once upon a time, there was a little girl named Lily.",
    "The quick brown fox jumps over the lazy dog.\n\nIt was 1984; pi is 3.14159265, and 007 is not 7.",
    "  leading and trailing spaces  ",
    "tabs\tand\r\nline ends\n\n\n   indented",
    "fn main() { println!(\"{}\", x[0] += 1); } // don't",
    "Zażółć gęślą jaźń — naïve café, 日本語のテキスト, Привет, مرحبا, हिन्दी",
    "emoji 🍎🍏👩‍👩‍👧‍👦 and a combining e\u0301 and \u200b zero width",
    "a",
]


class Skipped(Exception):
    """A comparison that this folder does not allow; the text is the reason."""


def russet(binary, *arguments):
    done = subprocess.run([binary, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join([binary, *arguments])}` exited {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def check_logits(binary, folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    vocab = model.config.vocab_size
    length = min(TOKENS, model.config.max_position_embeddings)
    tokens = np.random.RandomState(7).randint(0, vocab, length)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)[None], use_cache=False).logits[0].numpy()
    with tempfile.TemporaryDirectory() as scratch:
        out = os.path.join(scratch, "logits.safetensors")
        russet(binary, "eval", "logits", "--model", folder, "--tokens", ",".join(map(str, tokens)), "--out", out)
        got = load_file(out)["logits"]
    if got.shape != expected.shape or got.dtype != np.float32:
        raise AssertionError(f"russet wrote {got.dtype} {list(got.shape)}, transformers gives float32 {list(expected.shape)}")
    error = np.nan_to_num(np.abs(got - expected), nan=np.inf)
    if error.max() > TOLERANCE:
        row, column = np.unravel_index(error.argmax(), error.shape)
        raise AssertionError(f"largest |Δ| {error.max():.2e} at token {row}, id {column}: russet {got[row, column]:.6f}, transformers {expected[row, column]:.6f}")
    return f"{length} tokens x {vocab}: largest |Δ| {error.max():.1e} (allowed {TOLERANCE:.0e})"


def check_tokenizer(binary, folder):
    if not os.path.exists(os.path.join(folder, "tokenizer.json")):
        raise Skipped("the folder has no tokenizer.json")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        expected = tokenizer.encode(text)
        got = json.loads(russet(binary, "tokenizer", "encode", "--model", folder, f"--text={text}", "--json"))["ids"]
        if got != expected:
            raise AssertionError(f"{text!r}: russet {got}, transformers {expected}")
    return f"{len(TEXTS)} texts, the same ids"


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--russet", required=True, help="the russet binary")
    arguments.add_argument("folders", nargs="+", help="checkpoint folders in Hugging Face form")
    arguments = arguments.parse_args()
    transformers.utils.logging.disable_progress_bar()
    failed = False
    for folder in arguments.folders:
        for name, check in [("logits", check_logits), ("tokenizer", check_tokenizer)]:
            try:
                verdict, detail = "ok", check(arguments.russet, folder)
            except Skipped as reason:
                verdict, detail = "skipped", reason
            except Exception as problem:  # one folder's failure should not hide another's
                verdict, detail, failed = "FAILED", f"{type(problem).__name__}: {problem}", True
            print(f"{verdict:8} {name:10} {folder}: {detail}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
