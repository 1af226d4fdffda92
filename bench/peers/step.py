"""The arguments that the scripts of one training step share."""
import argparse
from types import SimpleNamespace

SHAPE = "dim=512,layers=6,heads=8,kv_heads=2,ffn=1408,vocab=8192,seq=256,batch=8"


def shape(text):
    pairs = dict(part.split("=", 1) for part in text.split(","))
    names = [part.split("=")[0] for part in SHAPE.split(",")]
    if sorted(pairs) != sorted(names):
        raise argparse.ArgumentTypeError(f"a shape names {', '.join(names)}, each once")
    return SimpleNamespace(**{name: int(value) for name, value in pairs.items()})


def arguments(doc, compiles=False):
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=shape, default=shape(SHAPE))
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    if compiles:
        parser.add_argument("--compile", action="store_true")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    return parser.parse_args()
