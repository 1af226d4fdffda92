#!/usr/bin/env python3
"""Steps of several meshes beside what the plan says of them: time, memory of a rank, bytes sent. Prints a table for BENCHMARKS.md.

    cargo build --release && bench/ranks.py RECIPE [--steps 12] [--rounds 3] [--meshes fsdp=2 "fsdp=2,tensor=2" …] [--set KEY=VALUE …]

RECIPE is a pretrain recipe whose tokens are there. Each round runs every mesh once, the plan (`--dry-run`, which measures the
machine's peak anew) right before the run; medians of rounds. Ranks are threads: with more of them than cores, they share cores,
which the plan reckons with. Only the standard library is needed.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("recipe")
parser.add_argument("--steps", type=int, default=12)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--meshes", nargs="+", metavar="MESH", default=["data=1", "data=2", "fsdp=2", "tensor=2", "sequence=2", "data=4", "fsdp=4",
                                                                    "fsdp=2,tensor=2", "fsdp=2,sequence=2"])
parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
parser.add_argument("--russet", default=os.path.join(os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target"), "release/russet"))
args = parser.parse_args()


def russet(mesh, *more):
    command = [args.russet, "pretrain", args.recipe, "--json", "--set", f"train.steps={args.steps}",
               "--set", "train.warmup_steps=1", "--set", "train.validate_every=0", "--set", "train.checkpoint_every=0", *more]
    for setting in [*args.set, *(f"parallel.{axis}" for axis in mesh.split(","))]:
        command += ["--set", setting]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def measured(mesh):
    """(planned seconds, seconds, planned peak, peak, planned bytes, bytes) of a step; the peak and bytes of the first rank."""
    planned = russet(mesh, "--dry-run", "--out", "unused")["stages"][0]["plan"]
    tokens = planned["tokens_per_step"]
    if "parallel" in planned:
        seconds, rank = planned["step"]["own"]["seconds"], planned["parallel"]["rank"]
    else:  # one rank sends nothing
        memory = planned["memory"]
        peak = sum(memory[part] for part in ("weights", "gradients", "optimizer", "activations"))
        seconds, rank = planned["estimate"]["seconds"] / planned["steps"], dict(peak=peak, moved={})
    with tempfile.TemporaryDirectory() as folder:
        run = russet(mesh, "--out", f"{folder}/run")
    return (seconds, tokens / run["tokens_per_second"], rank["peak"], run["peak_bytes_per_rank"][0],
            sum(rank["moved"].values()), run["bytes_moved_per_step"][0])


rounds = {mesh: [] for mesh in args.meshes}
for number in range(args.rounds):
    for mesh in args.meshes[:: 1 if number % 2 == 0 else -1]:
        print(f"round {number + 1}: {mesh}", file=sys.stderr, flush=True)
        rounds[mesh].append(measured(mesh))
print("| mesh | step, s: planned | measured | beside the first: planned | measured | peak of a rank, MB: planned | measured | sent, MB: planned | measured |")
print("|---|---|---|---|---|---|---|---|---|")
first = None
for mesh, rows in rounds.items():
    planned, took, peak, peaked, sent, did = (statistics.median(column) for column in zip(*rows))
    first = first or (planned, took)
    print(f"| {mesh} | {planned:.3f} | {took:.3f} | {planned / first[0]:.2f} | {took / first[1]:.2f} | {peak / 1e6:.1f} | {peaked / 1e6:.1f} | "
          f"{sent / 1e6:.2f} | {did / 1e6:.2f} |")
