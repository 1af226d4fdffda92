//! A safetensors file by itself: header, offsets, types.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_fuzz::{put, seed, tiny};
use russet_model::stored::Stored;

fuzz_target!(
    init: seed("safetensors", "valid", &tiny::checkpoint().weights),
    |data: &[u8]| {
        let path = put("model.safetensors", data);
        let Ok(mut stored) = Stored::open_file(&path) else { return };
        let names: Vec<String> = stored.names().map(str::to_owned).collect();
        for name in names {
            let shape = stored.shape(&name).expect("it is listed").to_vec();
            if let Ok(tensor) = stored.take(&name, &shape) {
                assert_eq!(tensor.shape(), shape);
            }
        }
        stored.finish().expect("all was taken or refused");
    }
);
