//! A recipe and the `--set` words of the command line: `key=value` lines up to a zero byte, then TOML.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_artifact::{Override, Recipe};
use russet_fuzz::{halves, joined, seed};

const RECIPE: &[u8] =
    b"stage = \"pretrain\"\nseed = 1\n\n[train]\nsteps = 10\nlr = 3e-4\nsplits = [\"a\", 'b']\n";

fuzz_target!(
    init: {
        seed("recipe", "plain", &joined(b"", RECIPE));
        seed("recipe", "overridden", &joined(b"train.steps=12\ntrain.name=x\n", RECIPE));
    },
    |data: &[u8]| {
        let (overrides, recipe) = halves(data);
        let text = (std::str::from_utf8(overrides), std::str::from_utf8(recipe));
        let (Ok(overrides), Ok(recipe)) = text else { return };
        let overrides = overrides.lines().map(str::parse).collect::<Result<Vec<Override>, _>>();
        let Ok(overrides) = overrides else { return };
        if let Ok(recipe) = Recipe::from_text("01-fuzz", recipe, &overrides)
            && let Ok(table) = recipe.table()
        {
            let _ = Recipe::resolved_json(&table);
        }
    }
);
