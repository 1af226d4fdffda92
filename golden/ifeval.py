#!/usr/bin/env python3
"""The reference checkers of IFEval beside ours.

    python golden/ifeval.py cases                     # crates/eval/cases/*.jsonl and crates/eval/tests/ifeval_draws.jsonl.zst
    python golden/ifeval.py compare --seed 7 --each 200   # fresh random responses through the reference and `russet eval ifeval`
    python golden/ifeval.py published STRICT LOOSE    # the reference's published verdicts on a model's responses against ours
    python golden/ifeval.py published STRICT LOOSE --keep 48  # a part of them for the tests

The reference is google-research's `instruction_following_eval` (instructions.py, instructions_registry.py, instructions_util.py):
`--reference DIR` names the folder that holds that package; without it the copy in the installed lm_eval is taken, whose checkers are the
same but for one line (see `check`). Strict and loose verdicts are formed as evaluation_lib.py forms them. langdetect runs under `DetectorFactory.seed = 0`.

Needs: nltk==3.9.1 langdetect==1.0.9 immutabledict absl-py packaging zstandard, and lm_eval (`pip install --no-deps lm_eval` will do) or
`--reference`. nltk's `punkt_tab` is looked for where nltk looks; the wheel of llama-index-core carries it too: set NLTK_DATA to its
llama_index/core/_static/nltk_cache.
"""

import argparse
import collections
import importlib
import importlib.util
import json
import logging
import random
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import langdetect
import zstandard
from ifeval_cases import draw, edges, kinds

ROOT = Path(__file__).resolve().parent.parent
CRATE = ROOT / "crates/eval"


def registry(folder):
    """The reference's classes by id, without running the packages around them."""
    if folder is None:
        spec = importlib.util.find_spec("lm_eval")
        if spec is None:
            sys.exit("lm_eval is not installed; install it with --no-deps, or name the reference by --reference")
        parts, place = ["lm_eval", "tasks", "ifeval"], Path(spec.submodule_search_locations[0])
        folders = [place, place / "tasks", place / "tasks/ifeval"]
    else:
        parts, folders = ["instruction_following_eval"], [folder / "instruction_following_eval"]
    for depth, path in enumerate(folders):
        name = ".".join(parts[: depth + 1])
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(path)]
    return importlib.import_module(".".join(parts) + ".instructions_registry").INSTRUCTION_DICT


class Reference:
    """What the reference says of one response and one instruction."""

    def __init__(self, folder):
        langdetect.DetectorFactory.seed = 0
        logging.disable(logging.CRITICAL)
        self.classes = registry(folder)

    def check(self, kind, arguments, response):
        """(strict, loose), as evaluation_lib.py has them."""
        instruction = self.classes[kind](kind)
        if kind == "keywords:letter_frequency":
            # The reference takes any one character; older copies, lm_eval's among them, draw a letter where it is none of a to z.
            instruction.build_description(**{**arguments, "letter": "a"})
            instruction._letter = arguments["letter"].strip().lower()
        else:
            instruction.build_description(**arguments)
        lines = response.split("\n")
        first, last, both = ("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))
        whole = [response, first, last, both]
        forms = whole + [form.replace("*", "") for form in whole]
        follows = lambda form: bool(form.strip() and instruction.check_following(form))
        return follows(response), any(follows(form) for form in forms)


def slug(kind):
    return kind.replace(":", ".")


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def pack(path, text):
    path.write_bytes(zstandard.ZstdCompressor(level=22).compress(text.encode()))


def cases(reference, arguments):
    folder = CRATE / "cases"
    folder.mkdir(exist_ok=True)
    by_kind = collections.defaultdict(list)
    for kind, response, choices in edges():
        # One set of arguments under which the response follows, one under which it does not, where there are such.
        found = {}
        for kwargs in choices:
            strict, loose = reference.check(kind, kwargs, response)
            found.setdefault(strict, {"kwargs": kwargs, "response": response, "strict": strict, "loose": loose})
            if len(found) == 2:
                break
        by_kind[kind] += found.values()
    for kind, rows in by_kind.items():
        (folder / f"{slug(kind)}.jsonl").write_text(lines(rows), encoding="utf-8")
        print(f"{kind}: {len(rows)} cases, {sum(row['strict'] for row in rows)} strict, {sum(row['loose'] for row in rows)} loose")
    generator = random.Random(arguments.seed)
    rows = []
    for kind in kinds():
        for _ in range(arguments.each):
            kwargs, response = draw(kind, generator)
            strict, loose = reference.check(kind, kwargs, response)
            rows.append({"id": kind, "kwargs": kwargs, "response": response, "strict": strict, "loose": loose})
    pack(CRATE / "tests/ifeval_draws.jsonl.zst", lines(rows))
    print(f"{len(rows)} draws")


def russet(arguments, folder, prompts, responses):
    """Our verdicts by key; `prompts` None for the benchmark's."""
    files = {name: folder / f"{name}.jsonl" for name in ("prompts", "responses", "verdicts")}
    files["responses"].write_text(lines(responses), encoding="utf-8")
    command = [str(arguments.russet), "eval", "ifeval", "--json", "--responses", str(files["responses"]), "--verdicts", str(files["verdicts"])]
    if prompts is not None:
        files["prompts"].write_text(lines(prompts), encoding="utf-8")
        command += ["--prompts", str(files["prompts"])]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = [json.loads(line) for line in files["verdicts"].read_text(encoding="utf-8").splitlines()]
    return {row["key"]: row for row in rows}


def compare(reference, arguments):
    generator = random.Random(arguments.seed)
    prompts, responses = [], []
    for kind in kinds():
        for _ in range(arguments.each):
            kwargs, response = draw(kind, generator)
            key = len(prompts)
            prompts.append({"key": key, "prompt": f"prompt {key}", "instruction_id_list": [kind], "kwargs": [kwargs]})
            responses.append({"prompt": f"prompt {key}", "response": response})
    with tempfile.TemporaryDirectory() as folder:
        ours = russet(arguments, Path(folder), prompts, responses)
    different = collections.Counter()
    for prompt, row in zip(prompts, responses):
        kind, kwargs = prompt["instruction_id_list"][0], prompt["kwargs"][0]
        theirs = reference.check(kind, kwargs, row["response"])
        verdict = ours[prompt["key"]]
        if theirs != (verdict["follow_list_strict"][0], verdict["follow_list_loose"][0]):
            different[kind] += 1
            print(f"{kind} {kwargs} on {row['response']!r}: the reference says {theirs}, russet {verdict}")
    for kind in kinds():
        print(f"{kind:48} {arguments.each - different[kind]} of {arguments.each} equal")
    sys.exit(1 if different else 0)


def published(arguments):
    read = lambda path: [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    strict, loose = read(arguments.strict), {row["prompt"]: row for row in read(arguments.loose)}
    if arguments.keep:
        rows = [
            {"prompt": row["prompt"], "response": row["response"], "ids": row["instruction_id_list"],
             "strict": row["follow_instruction_list"], "loose": loose[row["prompt"]]["follow_instruction_list"]}
            for row in strict[: arguments.keep]
        ]
        pack(CRATE / "tests/ifeval_gpt4.jsonl.zst", lines(rows))
        return
    with tempfile.TemporaryDirectory() as folder:
        responses = [{"prompt": row["prompt"], "response": row["response"]} for row in strict]
        prompts = [
            {"key": key, "prompt": row["prompt"], "instruction_id_list": row["instruction_id_list"], "kwargs": arguments.kwargs[row["prompt"]]}
            for key, row in enumerate(strict)
        ]
        ours = russet(arguments, Path(folder), prompts, responses)
    all_of, same = collections.Counter(), collections.Counter()
    for key, row in enumerate(strict):
        for way, theirs in (("strict", row), ("loose", loose[row["prompt"]])):
            for kind, their, our in zip(row["instruction_id_list"], theirs["follow_instruction_list"], ours[key][f"follow_list_{way}"]):
                all_of[kind] += 1
                same[kind] += their == our
                if their != our:
                    print(f"{kind}, {way}: published {their}, russet {our}: {row['prompt'][:80]!r}")
    for kind in sorted(all_of):
        print(f"{kind:48} {same[kind]} of {all_of[kind]} equal")
    sys.exit(0 if all_of == same else 1)


def benchmark():
    """`kwargs` of the benchmark's prompts."""
    text = zstandard.ZstdDecompressor().decompress((CRATE / "data/ifeval_input_data.jsonl.zst").read_bytes()).decode()
    rows = [json.loads(line) for line in text.split("\n") if line]
    return {row["prompt"]: row["kwargs"] for row in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="folder with instruction_following_eval/")
    parser.add_argument("--russet", type=Path, default=ROOT / "target/release/russet")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, each in (("cases", 60), ("compare", 200)):
        verb = verbs.add_parser(name)
        verb.add_argument("--seed", type=int, default=1)
        verb.add_argument("--each", type=int, default=each, help="random responses of each kind")
    verb = verbs.add_parser("published")
    verb.add_argument("strict", type=Path)
    verb.add_argument("loose", type=Path)
    verb.add_argument("--keep", type=int, default=0, help="write so many rows for the tests instead")
    arguments = parser.parse_args()
    if arguments.verb == "published":
        arguments.kwargs = benchmark()
        return published(arguments)
    return {"cases": cases, "compare": compare}[arguments.verb](Reference(arguments.reference), arguments)


if __name__ == "__main__":
    main()
