#!/usr/bin/env python3
"""Packs what the IFEval checkers of `crates/eval` carry from other projects: `crates/eval/data/*.zst`.

    python golden/ifeval_data.py --prompts ifeval_input_data.jsonl --punkt …/punkt_tab/english

`--prompts` is `ifeval_input_data.jsonl` of google-research/instruction_following_eval; `--punkt` the folder of nltk's English Punkt
parameters (nltk_data, or the copy in the wheel of llama-index-core below _static/nltk_cache/tokenizers/punkt_tab). The language profiles
come from the installed langdetect. Needs: langdetect==1.0.9, zstandard.
"""

import argparse
import json
from pathlib import Path

import langdetect
import zstandard
from langdetect.utils.ngram import NGram

DATA = Path(__file__).resolve().parent.parent / "crates/eval/data"


def write(name: str, text: str) -> None:
    packed = zstandard.ZstdCompressor(level=22).compress(text.encode())
    (DATA / name).write_bytes(packed)
    print(f"{name}: {len(text.encode())} bytes, {len(packed)} packed")


def punkt(folder: Path) -> str:
    """A line a fact, its kind first: abbreviation, collocation, sentence starter, orthographic context."""
    lines = []
    for kind, file in [("a", "abbrev_types.txt"), ("c", "collocations.tab"), ("s", "sent_starters.txt"), ("o", "ortho_context.tab")]:
        facts = (folder / file).read_text(encoding="utf-8").split("\n")
        lines += [f"{kind}\t{fact}" for fact in sorted(facts) if fact.strip()]
    return "\n".join(lines) + "\n"


def profiles() -> str:
    """A line a fact, its kind first: a language with its totals of 1-, 2- and 3-grams; characters of Chinese script that count as the first of
    them; an n-gram with LANGUAGE:COUNT for each language that has it."""
    folder = Path(langdetect.__file__).parent / "profiles"
    loaded = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.iterdir())]
    lines = ["\t".join(["l", profile["name"], *map(str, profile["n_words"])]) for profile in loaded]
    lines += [f"k\t{characters}" for characters in NGram.CJK_CLASS]
    grams = {}
    for number, profile in enumerate(loaded):
        for gram, count in profile["freq"].items():
            if 1 <= len(gram) <= 3:
                grams.setdefault(gram, []).append(f"{number}:{count}")
    lines += ["\t".join(["g", gram, *grams[gram]]) for gram in sorted(grams)]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--punkt", type=Path, required=True)
    arguments = parser.parse_args()
    write("ifeval_input_data.jsonl.zst", arguments.prompts.read_text(encoding="utf-8"))
    write("punkt_english.txt.zst", punkt(arguments.punkt))
    write("langdetect_profiles.txt.zst", profiles())


if __name__ == "__main__":
    main()
