#!/usr/bin/env python3
"""What guesses bring: a model alone, with a draft model and with a lookup in the prompt, alternating, a table for BENCHMARKS.md.

    bench/guesses.py --model nano35 --draft draft35 --texts texts/heldout.jsonl.zst [--prompts 4] [--tokens 400] [--temperatures 0,0.8]
        [--rounds 3] [--threads 2] [--quote]

Prompts are the beginnings of documents, 400 characters each, of a zstd-packed JSON Lines file with a field `text`; `--quote` has each said
twice and begun a third time, which a lookup foresees; answers of fewer than 32 tokens are left out. Every way generates the same tokens
greedily, or the script ends. Rates are medians over prompts and rounds of `russet generate`.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--texts", required=True)
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--temperatures", default="0,0.8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quote", action="store_true")
    target = os.environ.get("CARGO_TARGET_DIR", f"{ROOT}/target")
    parser.add_argument("--russet", default=os.path.join(target, "release/russet"))
    args = parser.parse_args()
    lines = subprocess.run(["zstd", "-dc", args.texts], capture_output=True, check=True).stdout.decode().split("\n")
    texts = [json.loads(line)["text"] for line in lines if line]
    step = max(1, len(texts) // args.prompts)
    prompts = [text[:400] for text in texts[::step][:args.prompts]]
    if args.quote:
        prompts = [f"{prompt}\n\n{prompt}\n\n{prompt[:80]}" for prompt in prompts]
    ways = {"alone": [], "draft": ["--draft", args.draft], "lookup": ["--prompt-lookup"]}
    print("| temperature | way | tokens/s | beside alone | guesses that were right | break-even |\n|---|---|---|---|---|---|")
    for temperature in args.temperatures.split(","):
        made = {way: [] for way in ways}
        for round in range(args.rounds):
            order = list(ways)[round % 3:] + list(ways)[:round % 3]
            for prompt in prompts:
                said = {}
                for way in order:
                    command = [args.russet, "generate", "--model", args.model, "--prompt", prompt, "--max-tokens", str(args.tokens),
                               "--temperature", temperature, "--seed", "3", "--threads", str(args.threads), "--json", *ways[way]]
                    done = subprocess.run(command, capture_output=True, text=True)
                    if done.returncode:
                        sys.exit(done.stderr)
                    said[way] = json.loads(done.stdout)
                tokens = {way: one["token_ids"] for way, one in said.items()}
                if float(temperature) == 0 and any(ids != tokens["alone"] for ids in tokens.values()):
                    sys.exit("guesses have changed what is generated")
                # A text that ends at once tells nothing.
                if min(map(len, tokens.values())) >= 32:
                    for way, one in said.items():
                        made[way].append(one)
        if not made["alone"]:
            sys.exit("no answer had 32 tokens; take more --prompts")
        # Of pairs: each prompt in each round beside itself.
        alone = [said["tokens_per_second"] for said in made["alone"]]
        for way, all in made.items():
            rates = [said["tokens_per_second"] for said in all]
            ratio = statistics.median(rate / other for rate, other in zip(rates, alone))
            guessed = [said["speculation"] for said in all if "speculation" in said]
            drafted = sum(guess["drafted"] for guess in guessed)
            right = f"{100 * sum(guess['accepted'] for guess in guessed) / drafted:.0f} % of {drafted // args.rounds}" if drafted else ""
            even = [guess["break_even"] for guess in guessed if guess.get("break_even") is not None]
            even = f"{100 * statistics.median(even):.0f} %" if even else ""
            print(f"| {temperature} | {way} | {statistics.median(rates):,.0f} | {ratio:.2f}x | {right} | {even} |")


if __name__ == "__main__":
    main()
