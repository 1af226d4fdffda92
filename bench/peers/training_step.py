#!/usr/bin/env python3
"""One training step, Russet beside PyTorch and JAX: alternating runs, medians, a table for BENCHMARKS.md.

    pip install torch jax
    cargo build --release && python3 bench/peers/training_step.py [--rounds 3] [--steps 6] [--engines russet,compile,jax]

Each round runs every engine once, one after the other in an order that turns with the round, so that a machine that
slows down slows all of them. A figure is the median over all steps of all rounds; a ratio is that of medians.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

from step import SHAPE

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shape", default=SHAPE)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--steps", type=int, default=6)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--recompute", action="store_true")
parser.add_argument("--dtypes", default="f32,bf16")
parser.add_argument("--engines", default="russet,compile,eager,jax", help="any of russet, compile, eager, jax")
parser.add_argument("--russet", default=os.path.join(os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target"), "release/russet"))
args = parser.parse_args()

common = ["--shape", args.shape, "--threads", str(args.threads), "--steps", str(args.steps)]
if args.recompute:
    common.append("--recompute")
script = lambda name, *more: [sys.executable, os.path.join(HERE, name), *common, *more]
engines = {
    "russet": [args.russet, "bench", "train", "--json", *common],
    "compile": script("torch_step.py", "--compile"),
    "eager": script("torch_step.py"),
    "jax": script("jax_step.py"),
}
chosen = [(name, dtype) for dtype in args.dtypes.split(",") for name in args.engines.split(",")]
runs = {key: [] for key in chosen}
for round in range(args.rounds):
    turn = round % len(chosen)
    for name, dtype in chosen[turn:] + chosen[:turn]:
        command = engines[name] + ["--dtype", dtype]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        runs[name, dtype].append(json.loads(done.stdout.strip().splitlines()[-1]))
        print(f"round {round + 1}: {name} {dtype}", file=sys.stderr)

base = {}
print("| engine | type | tokens/s median (best) | CPU-s a step | beside torch.compile: time, CPU-s | peak RSS MB |")
print("|---|---|---|---|---|---|")
rows = []
for (name, dtype), done in runs.items():
    seconds = [second for run in done for second in run["seconds"]]
    cpu = [second for run in done for second in run["cpu_seconds"]]
    row = {
        "engine": done[0]["engine"], "dtype": dtype, "tokens": done[0]["tokens"],
        "seconds": statistics.median(seconds), "best": min(seconds), "cpu": statistics.median(cpu),
        "rss": max(run["peak_rss_bytes"] for run in done),
    }
    rows.append(row)
    if name == "compile":
        base[dtype] = row
for row in rows:
    other = base.get(row["dtype"])
    beside = f"{row['seconds'] / other['seconds']:.2f}, {row['cpu'] / other['cpu']:.2f}" if other else ""
    print(f"| {row['engine']} | {row['dtype']} | {row['tokens'] / row['seconds']:.0f} ({row['tokens'] / row['best']:.0f}) "
          f"| {row['cpu']:.2f} | {beside} | {row['rss'] / 1e6:.0f} |")
