//! A TensorBoard event file, as a resumed run reads it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_artifact::tensorboard::{Value, records, values_record, version_record};
use russet_fuzz::seed;

fuzz_target!(
    init: {
        let values = [("loss", Value::Scalar(2.5)), ("text", Value::Text("a".into()))];
        seed("events", "valid", &[version_record(), values_record(3, &values)].concat());
    },
    |data: &[u8]| {
        let read: usize = records(data).iter().map(|(_, bytes)| bytes.len()).sum();
        assert!(read <= data.len());
    }
);
