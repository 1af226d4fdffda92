#!/usr/bin/env python3
"""Experiments on pre-training, side by side at equal tokens: trains, resumes, prints tables for BENCHMARKS.md.

    cargo build --release && bench/experiments.py --texts books.jsonl.zst --heldout books-heldout.jsonl.zst [--out runs/experiments] [GROUP ...]

Groups: small (AdamW and AdaStar over rates, 6.5 M parameters), large (the same, 21 M), distil (6.5 M, plain and with the best AdamW
of 21 M as teacher), prune (that teacher's FFN cut to half, against random weights of that shape), mup (the best rate at widths
256, 512 and 1024). Each run is a folder of recipes under --out; what is done is skipped, what was interrupted goes on. Only
the standard library is needed.
"""
import argparse
import json
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("groups", nargs="*", metavar="GROUP", default=[], help="all by default")
parser.add_argument("--texts", nargs="+", required=True)
parser.add_argument("--heldout", nargs="+", required=True)
parser.add_argument("--out", default="runs/experiments")
parser.add_argument("--tokens", type=float, default=2.0, help="millions of tokens of a run (mup: a quarter)")
parser.add_argument("--russet", default=os.path.join(os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target"), "release/russet"))
args = parser.parse_args()
known = ["small", "large", "distil", "prune", "mup"]
groups = args.groups or known
if unknown := [group for group in groups if group not in known]:
    sys.exit(f"no group {', '.join(unknown)}; there are {', '.join(known)}")

SMALL = dict(width=256, layers=6, heads=4, kv_heads=2, ffn=704)
LARGE = dict(width=512, layers=6, heads=8, kv_heads=2, ffn=1408)
SHARD = f"{args.out}/tokens/02-tokens"


def toml(value):
    return json.dumps(value)


def recipe(**tables):
    """A recipe's text: plain values first, tables after."""
    lines = [f"{key} = {toml(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    for name, table in tables.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]"] + [f"{key} = {toml(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def run(name, *stages):
    """Runs stages (file name, recipe) as one folder and gives its path."""
    folder = f"{args.out}/recipes/{name}"
    os.makedirs(folder, exist_ok=True)
    for file, text in stages:
        with open(f"{folder}/{file}.toml", "w", encoding="utf-8") as to:
            to.write(text)
    print(f"{name} …", file=sys.stderr, flush=True)
    command = [args.russet, "run", folder, "--out", f"{args.out}/{name}"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"{name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return f"{args.out}/{name}"


def pretrain(lr, model=None, optimizer=None, millions=args.tokens, sequence=512, inputs=None, seed=1, **more):
    steps = max(4, round(millions * 1e6 / (8 * sequence * 4)) * 4)  # so that quarters are whole
    tables = dict(
        stage="pretrain",
        inputs=dict(tokens=SHARD, **(inputs or {})),
        compute=dict(dtype="bf16"),
        train=dict(steps=steps, batch_sequences=8, micro_batch_sequences=4, sequence_length=sequence, peak_lr=lr,
                   warmup_steps=max(1, steps // 10), final_lr_ratio=0.02, z_loss=1e-6, seed=seed,
                   validate_every=steps // 4, validation_tokens=100_000, checkpoint_every=100),
        optimizer=dict(kind="adamw", weight_decay=0.1) if optimizer is None else optimizer,
        data=dict(train="train", validation="heldout", packing="best-fit"),
        **more,
    )
    if model:
        tables["model"] = model
    return recipe(**tables)


def curve(folder):
    """Bits per byte held out, in the order of steps."""
    log = next(name for name in sorted(os.listdir(folder)) if name.endswith("pretrain.log") and not name.startswith("00"))
    rows = [json.loads(line) for line in open(f"{folder}/{log}/log.jsonl", encoding="utf-8")]
    return [row["validation_bits_per_byte"] for row in rows if "validation_bits_per_byte" in row]


def table(title, rows):
    print(f"\n{title}\n\n| | a quarter | half | three quarters | all |\n|---|---|---|---|---|")
    for label, folder in rows:
        print(f"| {label} | " + " | ".join(f"{bits:.3f}" for bits in curve(folder)[-4:]) + " |")
    sys.stdout.flush()


run("tokens",
    ("01-tokenizer", recipe(stage="tokenizer", tokenizer=dict(vocab_size=8192), data=dict(texts=args.texts))),
    ("02-tokens", recipe(stage="tokens", inputs=dict(tokenizer="01-tokenizer"),
                         data=dict(train=args.texts, heldout=args.heldout))))

def best(rows):
    """The run of the lowest last bits per byte."""
    return min(rows, key=lambda row: curve(row[1])[-1])[1]


ADAMW = [(f"AdamW, {lr}", f"adamw-{lr}", lr, None) for lr in (0.002, 0.004, 0.008)]
ADASTAR = [(f"AdaStar, {lr}", f"adastar-{lr}", lr, dict(kind="adastar")) for lr in (0.0015, 0.003, 0.006)]
ADASTAR_9 = [("AdaStar, 0.003, beta1 0.9", "adastar-0.003-beta0.9", 0.003, dict(kind="adastar", beta1=0.9))]


def trained(size, model, optimizers):
    return [(label, run(f"{name}-{size}m", ("01-pretrain", pretrain(lr, model, optimizer))))
            for label, name, lr, optimizer in optimizers]


if "small" in groups:
    table("Optimizers, 6.5 M parameters, bits per byte held out", trained(6, SMALL, ADAMW + ADASTAR + ADASTAR_9))
if "large" in groups:
    table("Optimizers, 21 M parameters, bits per byte held out", trained(21, LARGE, ADAMW + ADASTAR[:2]))
if set(groups) & {"distil", "prune"}:
    teacher = f"{best(trained(21, LARGE, ADAMW[:2]))}/01-pretrain"
if "distil" in groups:
    table("Distilled, 6.5 M parameters", [
        *trained(6, SMALL, ADAMW[1:2]),
        *[(f"{kind}, m = {mix}", run(f"student-{kind}-{mix}", ("01-pretrain", pretrain(
            ADAMW[1][2], SMALL, inputs=dict(teacher=teacher), distill=dict(kind=kind, mix=mix)))))
          for kind, mix in (("kl", 0.9), ("kl", 0.5), ("hard", 0.9), ("hard", 0.5))]])
if "prune" in groups:
    half = {**LARGE, "ffn": LARGE["ffn"] // 2}
    pruned = run("pruned", ("00-prune", recipe(
        stage="prune", inputs=dict(checkpoint=teacher, tokens=SHARD),
        prune=dict(ffn=half["ffn"], steps=150, sequence_length=512, validation="heldout", validation_tokens=100_000))),
        ("01-pretrain", pretrain(0.002, inputs=dict(checkpoint="00-prune"), seed=2)))
    table("FFN of 704 instead of 1408, as many tokens again", [
        ("pruned start", pruned),
        ("random start", run("unpruned", ("01-pretrain", pretrain(0.004, half, seed=2))))])
if "mup" in groups:
    print("\nThe last loss in bits per byte held out by width and rate of the narrowest (muP's base width 256)\n")
    rates = (0.001, 0.002, 0.004, 0.008, 0.016)
    print("| width | " + " | ".join(map(str, rates)) + " |\n|" + "---|" * (len(rates) + 1))
    for rule, base in (("muP", 256), ("none", 0)):
        for width in (256, 512, 1024):
            model = dict(width=width, layers=4, heads=width // 64, kv_heads=2, ffn=width * 11 // 4)
            optimizer = dict(kind="adamw", weight_decay=0.1, mup_base_width=base)
            # Without muP the base changes nothing at the base's own width.
            name = lambda lr: f"mup-{width}-{lr}" if base or width == 256 else f"plain-{width}-{lr}"
            bits = [curve(run(name(lr), ("01-pretrain", pretrain(
                lr, model, {**optimizer, "mup_base_width": 256} if width == 256 else optimizer,
                millions=args.tokens / 4, sequence=256))))[-1] for lr in rates]
            print(f"| {width}, {rule} | " + " | ".join(f"{b:.3f}" for b in bits) + " |", flush=True)
