//! `log.jsonl` of a run, read whole and resumed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use russet_artifact::{RunLog, read_log};
use russet_fuzz::{put, scratch, seed};

fuzz_target!(
    init: {
        let folder = scratch();
        let mut log = RunLog::create(&folder).expect("a log can be made");
        log.scalars(1, &[("loss", 2.5), ("lr", f64::NAN)]).expect("it takes scalars");
        log.text(2, "sample", "Once upon a time").expect("it takes text");
        drop(log);
        seed("run_log", "valid", &std::fs::read(folder.join("log.jsonl")).expect("it is there"));
    },
    |data: &[u8]| {
        put("log.jsonl", data);
        let read = read_log(&scratch());
        if let Ok(events) = &read {
            let middle = events.get(events.len() / 2).map_or(0, |event| event.step);
            let _ = RunLog::resume(&scratch(), middle);
        }
    }
);
