#!/usr/bin/env python3
"""The leaderboard's verdicts on calls of functions: crates/eval/tests/calls_golden.jsonl.zst.

    python golden/calls.py           # writes it

Questions and possible answers are BFCL's (Apache-2.0), as the package bfcl-eval carries them; each is answered by a right call that is then changed
at random: another value, type, case or order, an argument more or less, one level of nesting taken away. The verdicts are those of its `ast_checker`. A line is
`{"question", "ground_truth", "response", "valid"}`, the responses written as Python prints the values.

Needs: pip install --no-deps bfcl-eval==2026.3.23, and zstandard
"""

import importlib
import importlib.util
import json
import random
import sys
import types
from pathlib import Path

import zstandard

OUT = Path(__file__).resolve().parent.parent / "crates/eval/tests/calls_golden.jsonl.zst"
EACH = {"simple_python": 90, "multiple": 30, "parallel": 40}


def checker():
    """`ast_checker` without the clients of language models that its package imports."""
    place = Path(importlib.util.find_spec("bfcl_eval").submodule_search_locations[0])

    def package(name, folder):
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module

    package("bfcl_eval", place)
    package("bfcl_eval.constants", place / "constants")
    package("bfcl_eval.eval_checker", place / "eval_checker")
    package("bfcl_eval.eval_checker.ast_eval", place / "eval_checker/ast_eval")
    config = types.ModuleType("bfcl_eval.constants.model_config")
    config.MODEL_CONFIG_MAPPING = {"x": types.SimpleNamespace(underscore_to_dot=False)}
    sys.modules["bfcl_eval.constants.model_config"] = config
    for java in ("java", "js"):
        name = f"bfcl_eval.eval_checker.ast_eval.type_convertor.{java}_type_converter"
        sys.modules[name] = types.ModuleType(name)
        setattr(sys.modules[name], f"{java}_type_converter", None)
    package("bfcl_eval.eval_checker.ast_eval.type_convertor", place)
    from bfcl_eval.constants.enums import Language
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

    def check(question, calls, truth, category):
        return ast_checker(question["function"], calls, truth, Language.PYTHON, category, "x")["valid"]

    return place / "data", check


def fits(value):
    """A value of those possible, with lists of possible values within replaced by one."""
    if isinstance(value, dict):
        return {key: fits(random.choice([one for one in possible if one != ""] or [0])) for key, possible in value.items()}
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return [fits(one) for one in value]
    return value


def right(truth):
    calls = []
    for call in truth:
        [(name, parameters)] = call.items()
        arguments = {}
        for key, possible in parameters.items():
            some = [one for one in possible if one != ""]
            if not some or ("" in possible and random.random() < 0.3):
                continue
            arguments[key] = fits(random.choice(some))
        calls.append({name: arguments})
    return calls


def other(value):
    """Something near a value."""
    if isinstance(value, bool):
        return random.choice([not value, str(value), int(value)])
    if isinstance(value, int):
        return random.choice([float(value), value + 1, str(value), [value]])
    if isinstance(value, float):
        return random.choice([int(value), value + 0.5, str(value)])
    if isinstance(value, str):
        return random.choice([value.upper(), value.replace(" ", "-"), value + "x", value + ".", 3, [value], ""])
    if isinstance(value, list):
        return random.choice([value[::-1], value[:-1], value + value[:1], [other(one) for one in value], [], str(value)])
    if isinstance(value, dict) and value:
        key = random.choice(list(value))
        return random.choice([{**value, key: other(value[key])}, {k: v for k, v in value.items() if k != key}, {**value, "zz": 1}])
    return None


def changed(calls):
    calls = json.loads(json.dumps(calls))
    what = random.choice(["none", "value", "value", "value", "value", "drop", "add", "name", "order", "more"])
    call = random.choice(calls)
    [(name, arguments)] = call.items()
    if what == "value" and arguments:
        key = random.choice(list(arguments))
        arguments[key] = other(arguments[key])
    elif what == "drop" and arguments:
        del arguments[random.choice(list(arguments))]
    elif what == "add":
        arguments["surplus"] = 1
    elif what == "name":
        call.clear()
        call[name + "s"] = arguments
    elif what == "order":
        random.shuffle(calls)
    elif what == "more":
        calls.append(call)
    return calls


def main():
    random.seed(3)
    data, check = checker()
    rows = []
    for category, count in EACH.items():
        def lines(path):
            return [json.loads(line) for line in path.read_text().splitlines()]

        questions = lines(data / f"BFCL_v4_{category}.json")
        truths = {row["id"]: row["ground_truth"] for row in lines(data / f"possible_answer/BFCL_v4_{category}.json")}
        for question in random.sample(questions, count):
            truth = truths[question["id"]]
            for calls in [right(truth), changed(right(truth)), changed(right(truth)), changed(right(truth))]:
                try:
                    valid = check(question, json.loads(json.dumps(calls)), truth, category)
                except (KeyError, TypeError, AttributeError):
                    continue  # where the checker itself ends with an error there is no verdict
                texts = [f"{name}({', '.join(f'{key}={value!r}' for key, value in call[name].items())})" for call in calls for name in call]
                rows.append({"question": question, "ground_truth": truth, "response": f"[{', '.join(texts)}]", "valid": valid})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    OUT.write_bytes(zstandard.ZstdCompressor(level=19).compress(text.encode()))
    print(f"{len(rows)} responses, {sum(row['valid'] for row in rows)} of them right")


if __name__ == "__main__":
    main()
