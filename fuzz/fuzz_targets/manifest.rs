//! `manifest.json` of an artifact folder.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_artifact::{Artifact, Draft, Inputs, Kind, MANIFEST, Stage, Tool};
use russet_fuzz::{put, scratch, seed};

fuzz_target!(
    init: {
        let folder = scratch().join("seed");
        let stage = Stage::new("tokens", &Tool::new("0.1.0", "abc"), serde_json::json!({"a": 1}), Inputs::new());
        let draft = Draft::create(&folder, Kind::Tokens).expect("a draft can be made");
        draft.write("tokens.bin", b"x").expect("a draft takes files");
        draft.commit(&stage).expect("a draft can be committed");
        seed("manifest", "valid", &std::fs::read(folder.join(MANIFEST)).expect("it has a manifest"));
        std::fs::remove_dir_all(folder).expect("it can be removed");
    },
    |data: &[u8]| {
        put(MANIFEST, data);
        if let Ok(artifact) = Artifact::open_any(&scratch()) {
            let _ = (artifact.verify(), artifact.manifest().key());
            for name in artifact.manifest().inputs.keys() {
                let _ = artifact.input(name);
            }
        }
    }
);
