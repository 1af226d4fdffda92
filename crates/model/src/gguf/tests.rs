use super::*;
use proptest::prelude::*;

/// A file of two tensors and an entry of each kind, in memory.
pub(super) fn file() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let mut file = GgufWriter::new();
    file.text("general.architecture", "qwen3");
    file.unsigned("a.number", 7);
    file.float("a.fraction", 0.5);
    file.bool("a.switch", true);
    file.texts("a.texts", &["", "one", "zwö"]);
    file.integers("a.integers", &[-1, 2]);
    file.floats("a.floats", &[1.5, -2.0]);
    file.tensor("x".into(), GgufType::F32, vec![2, 3]);
    file.tensor("y".into(), GgufType::Q8_0, vec![32]);
    file.write(&path, |index| Ok(vec![index as f32 + 1.0; [6, 32][index]]))
        .unwrap();
    std::fs::read(path).unwrap()
}

#[test]
fn what_is_written_is_read() {
    let bytes = file();
    let gguf = Gguf::parse(&bytes).unwrap();
    assert_eq!(gguf.text("general.architecture"), Ok(Some("qwen3")));
    assert_eq!(gguf.unsigned("a.number"), Ok(Some(7)));
    assert_eq!(gguf.float("a.fraction"), Ok(Some(0.5)));
    assert_eq!(gguf.bool("a.switch"), Ok(Some(true)));
    let array = |key| gguf.array(key).unwrap().unwrap();
    assert_eq!(array("a.texts").texts().unwrap(), ["", "one", "zwö"]);
    assert_eq!(array("a.integers").floats().unwrap(), [-1.0, 2.0]);
    assert_eq!(array("a.floats").floats().unwrap(), [1.5, -2.0]);
    assert!(array("a.floats").texts().is_err() && array("a.texts").floats().is_err());
    assert!(gguf.unsigned("a.switch").is_err() && gguf.text("a.number").is_err());
    assert_eq!(gguf.tensor_names().collect::<Vec<_>>(), ["x", "y"]);
    assert_eq!(gguf.tensor("x"), Some((GgufType::F32, &[2, 3][..])));
    assert_eq!(gguf.tensor_f32("x").unwrap(), [1.0; 6]);
    // 2 as 127 steps of an f16 scale.
    assert!(
        gguf.tensor_f32("y")
            .unwrap()
            .iter()
            .all(|y| (y - 2.0).abs() < 1e-3)
    );
    assert_eq!(gguf.tensor_f32("z"), None);
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = file();
    // The last tensor is padded to 64 bytes, of which 34 count.
    for len in 0..bytes.len() - 30 {
        let error = Gguf::parse(&bytes[..len]).unwrap_err();
        assert!(!error.is_empty(), "{len}");
    }
}

/// A head with so many tensors and entries, then `rest`.
fn raw(version: u32, tensors: u64, entries: u64, rest: &[&[u8]]) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend(tensors.to_le_bytes());
    bytes.extend(entries.to_le_bytes());
    bytes.extend(rest.concat());
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn tensor(name: &str, dims: &[u64], kind: u32, start: u64) -> Vec<u8> {
    let mut bytes = text(name);
    bytes.extend((dims.len() as u32).to_le_bytes());
    bytes.extend(dims.iter().flat_map(|d| d.to_le_bytes()));
    bytes.extend(kind.to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes
}

fn refused(bytes: &[u8], wanted: &str) {
    let error = Gguf::parse(bytes).unwrap_err();
    assert!(error.contains(wanted), "{error} should say {wanted}");
}

#[test]
fn lengths_beyond_the_file_are_refused() {
    refused(b"GGML", "GGUF file");
    refused(&raw(1, 0, 0, &[]), "version 1");
    refused(&raw(3u32.swap_bytes(), 0, 0, &[]), "big-endian");
    refused(&raw(3, u64::MAX, 0, &[]), "tensors");
    refused(&raw(3, 0, u64::MAX / 2, &[]), "entries");
    let long = [&u64::MAX.to_le_bytes()[..], b"abc", &[0; 20]].concat();
    refused(&raw(3, 0, 1, &[&long]), "bytes of text");
    let array = |kind: u32, count: u64| {
        [
            &9u32.to_le_bytes()[..],
            &kind.to_le_bytes(),
            &count.to_le_bytes(),
            &[0; 16],
        ]
        .concat()
    };
    let entry = |array: &[u8]| raw(3, 0, 1, &[&text("k"), array]);
    refused(&entry(&array(kinds::TEXT, u64::MAX / 8 + 1)), "values");
    refused(&entry(&array(kinds::F32, 5)), "values");
    refused(&entry(&array(kinds::ARRAY, 1)), "array of arrays");
    refused(&entry(&array(77, 1)), "type 77");
    refused(
        &entry(&[&13u32.to_le_bytes()[..], &[0; 16]].concat()),
        "type 13",
    );
    refused(
        &entry(&[&7u32.to_le_bytes()[..], &[2; 16]].concat()),
        "0 or 1",
    );
    let twice = [text("k"), 0u32.to_le_bytes().to_vec(), vec![1]].concat();
    refused(&raw(3, 0, 2, &[&twice, &twice]), "two entries");
}

#[test]
fn tensors_that_cannot_be_are_refused() {
    let with = |tensors: &[Vec<u8>]| {
        let all: Vec<&[u8]> = tensors.iter().map(Vec::as_slice).collect();
        raw(3, tensors.len() as u64, 0, &[&all.concat(), &[0; 96]])
    };
    Gguf::parse(&with(&[tensor("a", &[4, 2], 0, 0)])).unwrap();
    refused(&with(&[tensor("a", &[1 << 40, 1 << 40], 0, 0)]), "address");
    refused(&with(&[tensor("a", &[1 << 62], 0, 0)]), "beyond the end");
    // 2^62 blocks of 34 bytes wrap around to a small number.
    refused(&with(&[tensor("a", &[32, 1 << 60], 8, 0)]), "address");
    refused(&with(&[tensor("a", &[1 << 63, 2], 1, 0)]), "address");
    refused(
        &with(&[tensor("a", &[32, 1 << 57], 8, 0)]),
        "beyond the end",
    );
    refused(
        &with(&[tensor("a", &[4], 0, u64::MAX - 31)]),
        "beyond the end",
    );
    refused(&with(&[tensor("a", &[4], 0, 96)]), "beyond the end");
    refused(&with(&[tensor("a", &[4], 0, 7)]), "multiple of 32");
    refused(&with(&[tensor("a", &[0], 0, 0)]), "dim of 0");
    refused(&with(&[tensor("a", &[1; 5], 0, 0)]), "5 dims");
    refused(&with(&[tensor("a", &[], 0, 0)]), "0 dims");
    refused(&with(&[tensor("a", &[4], 10, 0)]), "Q2_K");
    refused(&with(&[tensor("a", &[4], 21, 0)]), "IQ3_S");
    refused(&with(&[tensor("a", &[4], 4000, 0)]), "number 4000");
    refused(&with(&[tensor("a", &[31], 8, 0)]), "blocks hold 32");
    refused(
        &with(&[tensor("a", &[4], 0, 0), tensor("a", &[4], 0, 32)]),
        "two tensors",
    );
    refused(
        &with(&[tensor("a", &[9], 0, 0), tensor("b", &[4], 0, 32)]),
        "over one another",
    );
    refused(&with(&[tensor("", &[4], 0, 0)]), "name of 0 bytes");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    /// Whatever is changed in a file, reading it ends, and what is accepted can be looked at.
    #[test]
    fn a_changed_file_is_read_or_refused(at in any::<prop::sample::Index>(), with in prop::collection::vec(any::<u8>(), 1..9)) {
        let mut bytes = file();
        let at = at.index(bytes.len());
        for (byte, new) in bytes[at..].iter_mut().zip(with) {
            *byte = new;
        }
        if let Ok(gguf) = Gguf::parse(&bytes) {
            for name in gguf.tensor_names() {
                let _ = gguf.tensor_f32(name);
            }
            let _ = decoder::load(&gguf);
        }
    }
}
