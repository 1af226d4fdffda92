#!/usr/bin/env python3
"""Make train.jsonl.zst and heldout.jsonl.zst from a books.jsonl.zst of public-domain books.

    python3 make.py books.jsonl.zst [OUTPUT_FOLDER]

Rows in: {"author", "title", "text"}, the text in Markdown, one paragraph a line or hard-wrapped.
Rows out: {"author", "title", "section", "text"}, plain prose: one paragraph a line, a blank line
between paragraphs, verse keeps its lines. One row is one tale or chapter; the split is by book.
Standard library and the `zstd` command only; the same input gives the same bytes (zstd 1.5.x).
With `--table` it prints the README's tables instead of writing files.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

# (author, title). Children's tales only: checked by reading, and by words per sentence.
TRAIN = [
    ("Aesop", "Aesop's Fables"),
    ("Hans Christian Andersen", "Andersen's Fairy Tales"),
    ("Hans Christian Andersen", "The Little Mermaid"),
    ("Anonymous", "Aladdin and the Magic Lamp"),
    ("L. Frank Baum", "A Kidnapped Santa Claus"),
    ("L. Frank Baum", "Dorothy and the Wizard in Oz"),
    ("L. Frank Baum", "Ozma of Oz"),
    ("L. Frank Baum", "The Life and Adventures of Santa Claus"),
    ("L. Frank Baum", "The Marvelous Land of Oz"),
    ("L. Frank Baum", "The Wonderful Wizard of Oz"),
    ("Frances Hodgson Burnett", "A Little Princess"),
    ("Frances Hodgson Burnett", "The Secret Garden"),
    ("Lewis Carroll", "Alice's Adventures in Wonderland"),
    ("Lewis Carroll", "Through the Looking-Glass"),
    ("Carlo Collodi", "The Adventures of Pinocchio"),
    ("Charles Dickens", "A Christmas Carol"),
    ("Henry van Dyke", "The First Christmas Tree"),
    ("Henry van Dyke", "The Other Wise Man"),
    ("Rudyard Kipling", "The Jungle Book"),
    ("George MacDonald", "The Princess and the Goblin"),
    ("Lucy Maud Montgomery", "Christmas Stories"),
    ("Edith Nesbit", "Five Children and It"),
    ("Edith Nesbit", "The Book of Dragons"),
    ("Beatrix Potter", "Great Big Treasury of Beatrix Potter"),
    ("Anna Sewell", "Black Beauty"),
    ("Johanna Spyri", "Heidi"),
    ("James Stephens", "Irish Fairy Tales"),
    ("Robert Louis Stevenson", "Treasure Island"),
    ("Adalbert Stifter", "Rock Crystal"),
    ("William Makepeace Thackeray", "The Rose and the Ring"),
    ("Mark Twain", "The Prince and the Pauper"),
    ("Gabrielle-Suzanne Barbot de Villeneuve", "Beauty and the Beast"),
    ("Horatio Alger", "Andy Gordon"),
]
# No author and no tale of these is in TRAIN.
HELDOUT = [
    ("Abbie Farwell Brown", "The Christmas Angel"),
    ("John Ruskin", "The King of the Golden River"),
    ("Gertrude Chandler Warner", "The Boxcar Children"),
    ("Oscar Wilde", "The Happy Prince & Other Tales"),
]

# Books broken into lines of about forty characters, and books whose sections open with a dedication.
HARD_WRAPPED = {"Great Big Treasury of Beatrix Potter"}
DEDICATED = {"Great Big Treasury of Beatrix Potter"}

# A section with one of these words is left out: not for a model that talks to anybody.
UNFIT = re.compile(r"\b(nigger\w*|dark(?:y|ies)|pickaninn\w*|redskins?|squaws?|injuns?|half-breeds?)\b", re.I)

SHORTEST = 200  # characters; what is shorter is an end mark, a dedication or a torn line
LONGEST = 32_000  # characters; a longer section is cut at paragraph ends into equal parts


def clean_inline(line: str) -> str:
    """Markdown marks, editors' brackets and odd spaces out; the words stay."""
    line = re.sub(r"^>\s?", "", line)
    line = line.replace("*", "").replace("_", "").replace("\\", "").replace("`", "'")
    line = line.replace("\u00e2\u0080\u0098", "'").replace("\u2018", "'").replace("\u2019", "'")
    line = line.replace("\u201c", '"').replace("\u201d", '"').replace("\u2014", "--")
    line = re.sub(r"\s*\|\s*", " ", line)
    line = re.sub(r"[ \t\u00a0]+", " ", line)
    return line.strip()


def is_noise(block: str) -> bool:
    """Rules, star rows, translator and end lines, table rulers, type-set jokes, footnotes."""
    bare = re.sub(r"[*_#\s]", "", block)
    bare_words = re.sub(r"[*_#]", "", block).strip()
    return (
        not bare
        or re.fullmatch(r"[-|=]+", bare) is not None
        or re.fullmatch(r"(?i)the\s?end\.?", bare_words) is not None
        or re.match(r"(?i)[*_]*(translated|translation) by\b.{0,60}$", block.strip()) is not None
        or "{" in block
        or "}" in block
        or re.fullmatch(r"Published \d{4}", bare_words) is not None
        or re.match(r"\*[A-Z][^*]*$", block.strip()) is not None
    )


def is_verse(lines: list[str]) -> bool:
    """In a hard-wrapped book: three lines or more, every one of which opens with a capital."""
    heads = [re.sub(r"^[^A-Za-z]+", "", line)[:1] for line in lines]
    return len(lines) > 2 and all(h.isupper() for h in heads if h)


def paragraphs(block: str, hard_wrapped: bool) -> list[str]:
    """One block between blank lines -> its paragraphs; verse is one paragraph with line ends."""
    block = re.sub(r"\s*\[[^\]]*\]", "", block)  # glosses such as "[the halibut]"
    lines = [cleaned for line in block.split("\n") if (cleaned := clean_inline(line))]
    if not lines:
        return []
    if len(lines) == 1:
        return lines
    if hard_wrapped:
        return ["\n".join(lines)] if is_verse(lines) else [" ".join(lines)]
    if max(map(len, lines)) > 100:  # whole paragraphs without a blank line between
        return lines
    if min(map(len, lines[:-1])) >= 50:  # stray hard-wrapped prose
        return [" ".join(lines)]
    return ["\n".join(lines)]


def sections(title: str, text: str) -> list[tuple[str, list[str]]]:
    """Cut a book at its headings -> (section name, paragraphs)."""
    body = re.split(r"^-{5,}\s*$", text, maxsplit=1, flags=re.M)[1]
    path: list[tuple[int, str]] = []
    found: list[tuple[str, list[str]]] = [("", [])]
    heading_open = False
    body = re.sub(r"^(#+ .*)$", r"\n\1\n", body, flags=re.M)
    for block in re.split(r"\n[ \t]*\n", body):
        block = block.strip("\n")
        heading = re.fullmatch(r"(#+) +(.*?)\s*", block)
        if heading:
            name = clean_inline(heading[2])
            if is_noise(name):
                continue
            level = len(heading[1])
            # "CHAPTER II." followed at once by its name, of the same or a lower level, is one heading.
            if heading_open and path and path[-1][0] == level:
                path[-1] = (level, f"{path[-1][1]} {name}")
            else:
                path = [p for p in path if p[0] < level] + [(level, name)]
            heading_open = True
            continue
        if is_noise(block):
            continue
        if title in DEDICATED and heading_open and re.match(r"_|Dedicated|In Remembrance", block) and len(block) < 160:
            continue
        new = paragraphs(block, title in HARD_WRAPPED)
        if not new:
            continue
        if heading_open:
            found.append((" / ".join(name for _, name in path), []))
            heading_open = False
        found[-1][1].extend(new)
    return [(name, paras) for name, paras in found if paras]


def cut(name: str, paras: list[str]) -> list[tuple[str, str]]:
    """A section longer than LONGEST -> equal parts, cut between paragraphs."""
    total = sum(len(p) + 2 for p in paras)
    parts = -(-total // LONGEST)
    if parts == 1:
        return [(name, "\n\n".join(paras))]
    cuts: list[list[str]] = [[] for _ in range(parts)]
    seen = 0
    for para in paras:
        cuts[min(seen * parts // total, parts - 1)].append(para)
        seen += len(para) + 2
    return [(f"{name} (part {i + 1})".strip(), "\n\n".join(c)) for i, c in enumerate(cuts)]


def documents(author: str, title: str, text: str) -> list[dict[str, str]]:
    rows = []
    for name, paras in sections(title, text):
        for section, body in cut(name, paras):
            if len(body) >= SHORTEST and not UNFIT.search(body):
                rows.append({"author": author, "title": title, "section": section, "text": body})
    return rows


def main() -> None:
    arguments = [a for a in sys.argv[1:] if a != "--table"]
    if not arguments:
        sys.exit(__doc__)
    raw = subprocess.run(["zstd", "-dcq", arguments[0]], check=True, capture_output=True).stdout
    books = {}
    for line in raw.decode("utf-8").split("\n"):
        if line:
            row = json.loads(line)
            books[row["author"], row["title"]] = row["text"]
    out = Path(arguments[1] if len(arguments) > 1 else Path(__file__).parent)
    for split, chosen in (("train", TRAIN), ("heldout", HELDOUT)):
        lines, total = [], 0
        for author, title in chosen:
            rows = documents(author, title, books[author, title])
            size = sum(len(r["text"].encode()) for r in rows)
            total += size
            lines += [json.dumps(r, ensure_ascii=False) + "\n" for r in rows]
            if "--table" in sys.argv:
                print(f"| {author} | {title} | {len(rows)} | {size:,} | {split} |")
        if "--table" in sys.argv:
            print(f"| **{split}** | {len(chosen)} books | {len(lines)} | {total:,} | |")
            continue
        command = ["zstd", "-19", "-q", "--no-progress", "-T1", "-c"]
        packed = subprocess.run(command, input="".join(lines).encode(), check=True, capture_output=True).stdout
        (out / f"{split}.jsonl.zst").write_bytes(packed)
        print(f"{split}: {len(lines)} documents, {total:,} bytes of text, {len(packed):,} bytes packed")


if __name__ == "__main__":
    main()
