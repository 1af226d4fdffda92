//! Manifests from Russet come back as they went; manifests from anywhere else are sentences.

use super::*;
use crate::{Artifact, Draft, Inputs, Stage};
use proptest::prelude::*;

/// A manifest with one of everything.
fn sample() -> Manifest {
    let record = FileRecord {
        blake3: Hash::of(b"x"),
        bytes: 1,
    };
    let files = BTreeMap::from(["config.json", "shards/0.bin"].map(|name| (name.into(), record)));
    let input = |kind, path: &str| InputRecord {
        kind,
        blake3: Hash::of(b""),
        path: path.into(),
    };
    let inputs = BTreeMap::from([
        (
            "tokens".into(),
            input(InputKind::Artifact(Kind::Tokens), "../02-tokens"),
        ),
        ("text".into(), input(InputKind::File, "../../data/a.txt")),
    ]);
    let recipe = json!({ "train": { "steps": 12, "rate": 3e-4 } });
    let tool = Tool::new("0.1.0", "3f2a");
    Manifest::new(Kind::Checkpoint, "pretrain", &tool, &recipe, files, inputs)
}

/// The sample with one text for another.
fn edited(from: &str, to: &str) -> Vec<u8> {
    let text = String::from_utf8(sample().to_bytes()).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    text.replacen(from, to, 1).into_bytes()
}

#[track_caller]
fn check_refused(bytes: &[u8], reason: &str) {
    let error = Manifest::from_bytes(bytes).unwrap_err();
    assert!(error.contains(reason), "{error}");
    assert!(error.len() < 700 && !error.contains('\n'), "{error}");
}

#[test]
fn manifest_is_sorted_and_readable() {
    let text = String::from_utf8(sample().to_bytes()).unwrap();
    let start = "{\n  \"files\": {\n    \"config.json\": {\n      \"blake3\": \"";
    assert!(text.starts_with(start), "{text}");
    assert!(text.ends_with(
        "  \"stage\": \"pretrain\",\n  \"tool\": {\n    \"commit\": \"3f2a\",\n    \"version\": \"0.1.0\"\n  }\n}\n"
    ));
    assert_eq!(Manifest::from_bytes(text.as_bytes()), Ok(sample()));
}

#[test]
fn every_kind_has_its_name() {
    for kind in Kind::ALL {
        assert_eq!(kind.name().parse(), Ok(kind));
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
    }
    assert!(
        "Tokens"
            .parse::<Kind>()
            .unwrap_err()
            .contains("there are text, tokenizer, tokens")
    );
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    for (name, reason) in [
        ("/etc/passwd", "begins or ends with `/`"),
        ("../../x", "leads out of the folder"),
        ("a/../../x", "leads out of the folder"),
        ("a/./x", "leads out of the folder"),
        ("a//x", "two in a row"),
        ("a/", "begins or ends with `/`"),
        ("", "is empty"),
        (r"..\\x", "backslash"),
        (r"a\u0000b", "control character"),
        ("C:x", "drive letter"),
        ("manifest.json", "is the manifest's own"),
        (&"x".repeat(2000), "too long"),
    ] {
        check_refused(&edited("config.json", name), reason);
    }
    for (path, reason) in [
        ("/etc", "is absolute or winding"),
        ("../a/../b", "is absolute or winding"),
        ("./a", "is absolute or winding"),
        ("a/", "is absolute or winding"),
        ("", "is empty"),
        (r"..\\a", "backslash"),
    ] {
        check_refused(&edited("../02-tokens", path), reason);
    }
    check_refused(
        &edited("\"tokens\": {", "\"to\\nkens\": {"),
        "control character",
    );
}

#[test]
fn nothing_hides_in_a_manifest() {
    let twice = "not byte for byte what Russet writes";
    let first = "\"config.json\": {\n      \"blake3\": \"";
    let record = format!(
        "\"config.json\": {{ \"blake3\": \"{}\", \"bytes\": 1 }}, {first}",
        Hash::of(b"y")
    );
    check_refused(&edited(first, &record), twice);
    check_refused(
        &edited("\"steps\": 12", "\"steps\": 13, \"steps\": 12"),
        twice,
    );
    check_refused(&edited("\"steps\": 12", "\"steps\":  12"), twice);
    check_refused(
        &edited("\"steps\": 12", "\"steps\": 99999999999999999999999"),
        twice,
    );
    check_refused(&edited("\"steps\": 12", "\"steps\": 1e2"), twice);
    check_refused(&edited("\"stage\"", "\"format\": 1, \"stage\""), twice);
    check_refused(
        &edited("\"stage\"", "\"x\": 1, \"stage\""),
        "unknown field `x`",
    );
    check_refused(
        &edited("\"bytes\": 1", "\"bytes\": 1, \"mode\": 7"),
        "unknown field `mode`",
    );
    check_refused(&[sample().to_bytes(), b" ".to_vec()].concat(), twice);
    check_refused(
        &[b"\xef\xbb\xbf".to_vec(), sample().to_bytes()].concat(),
        "not whole JSON",
    );
}

#[test]
fn what_no_manifest_can_be_is_refused() {
    check_refused(b"", "not whole JSON");
    check_refused(b"{}", "another program wrote it");
    check_refused(b"[1]", "another program wrote it");
    check_refused(
        &edited("\"format\": 1", "\"format\": 2"),
        "format 2, and this version of Russet reads format 1",
    );
    check_refused(
        &edited("\"format\": 1", "\"format\": -1"),
        "another program wrote it",
    );
    check_refused(
        &edited("\"format\": 1", "\"format\": 1.0"),
        "another program wrote it",
    );
    check_refused(
        &edited("\"kind\": \"checkpoint\"", "\"kind\": \"chekpoint\""),
        "unknown variant `chekpoint`",
    );
    check_refused(
        &edited("\"kind\": \"tokens\"", "\"kind\": \"fine\""),
        "`fine` is no kind of artifact",
    );
    check_refused(&edited("\"bytes\": 1", "\"bytes\": -1"), "invalid value");
    check_refused(
        &edited("\"bytes\": 1", "\"bytes\": 1e999"),
        "number out of range",
    );
    check_refused(
        &edited("\"bytes\": 1", "\"bytes\": 18446744073709551616"),
        "invalid type",
    );
    check_refused(&edited("\"bytes\": 1", "\"bytes\": \"1\""), "invalid type");
    check_refused(
        &edited(&Hash::of(b"x").to_string(), "00"),
        "is not a BLAKE3 hash",
    );
    check_refused(
        &edited(&Hash::of(b"x").to_string(), &"A".repeat(64)),
        "is not a BLAKE3 hash",
    );
    for open in ["[", "{\"a\":"] {
        check_refused(open.repeat(1 << 20).as_bytes(), "recursion limit");
        check_refused(
            &edited(
                "\"steps\": 12",
                &format!("\"steps\": {}", open.repeat(1000)),
            ),
            "recursion limit",
        );
    }
    check_refused(
        &vec![b' '; (16 << 20) + 1],
        "it is longer than 16777216 bytes",
    );
}

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (proptest::num::f64::NORMAL | proptest::num::f64::SUBNORMAL | proptest::num::f64::ZERO)
            .prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            proptest::collection::btree_map(any::<String>(), inner, 0..8)
                .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_. -]{2,9}(/[a-zäé0-9_-]{1,9}){0,3}"
        .prop_filter("dots", |name| check_file_name(name).is_ok())
}

fn hash() -> impl Strategy<Value = Hash> {
    any::<u64>().prop_map(|seed| Hash::of(&seed.to_le_bytes()))
}

fn manifest() -> impl Strategy<Value = Manifest> {
    let file = (hash(), any::<u64>()).prop_map(|(blake3, bytes)| FileRecord { blake3, bytes });
    let kind = proptest::sample::select(Kind::ALL.to_vec());
    let input_kind = prop_oneof![
        Just(InputKind::File),
        Just(InputKind::Folder),
        kind.clone().prop_map(InputKind::Artifact),
    ];
    let input =
        (input_kind, hash(), 0..3_usize, name()).prop_map(|(kind, blake3, up, name)| InputRecord {
            kind,
            blake3,
            path: "../".repeat(up) + &name,
        });
    let maps = (
        proptest::collection::btree_map(name(), file, 0..9),
        proptest::collection::btree_map("[^\\p{C}\\\\:]{1,9}", input, 0..4),
    );
    (
        kind,
        any::<String>(),
        any::<(String, String)>(),
        json(),
        maps,
    )
        .prop_map(
            |(kind, stage, (version, commit), recipe, (files, inputs))| {
                Manifest::new(
                    kind,
                    &stage,
                    &Tool { version, commit },
                    &recipe,
                    files,
                    inputs,
                )
            },
        )
}

proptest! {
    #[test]
    fn any_manifest_comes_back(manifest in manifest()) {
        let bytes = manifest.to_bytes();
        let back = Manifest::from_bytes(&bytes);
        prop_assert_eq!(back.as_ref(), Ok(&manifest));
        prop_assert_eq!(back.unwrap().to_bytes(), bytes);
    }

    #[test]
    fn any_json_is_written_in_one_way(value in json()) {
        let bytes = canonical(&value);
        let back: Value = serde_json::from_slice(&bytes).unwrap();
        prop_assert_eq!(&back, &value);
        prop_assert_eq!(canonical(&back), bytes);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>, value in json()) {
        prop_assert!(Manifest::from_bytes(&bytes).is_err());
        prop_assert!(Manifest::from_bytes(&canonical(&value)).is_err());
    }

    /// One bit wrong anywhere: refused, or a manifest of another hash that says so in its bytes.
    #[test]
    fn a_flipped_bit_never_reads_as_the_same(at in 0..sample().to_bytes().len(), bit in 0..8) {
        let mut bytes = sample().to_bytes();
        bytes[at] ^= 1_u8 << bit;
        prop_assert_ne!(Manifest::from_bytes(&bytes), Ok(sample()));
    }

    #[test]
    fn a_truncated_manifest_is_refused(keep in 0..sample().to_bytes().len()) {
        prop_assert!(Manifest::from_bytes(&sample().to_bytes()[..keep]).is_err());
    }

    /// One value anywhere replaced by any other: never a panic, and what is read is what is there.
    #[test]
    fn any_value_in_any_place_is_read_or_refused(place in any::<proptest::sample::Index>(), other in json()) {
        let mut value = serde_json::to_value(sample()).unwrap();
        let mut pointers = Vec::new();
        all_pointers(&value, String::new(), &mut pointers);
        *value.pointer_mut(&pointers[place.index(pointers.len())]).unwrap() = other;
        let bytes = canonical(&value);
        if let Ok(manifest) = Manifest::from_bytes(&bytes) {
            prop_assert_eq!(manifest.to_bytes(), bytes);
        }
    }
}

fn all_pointers(value: &Value, here: String, out: &mut Vec<String>) {
    if let Value::Object(map) = value {
        for (key, value) in map {
            all_pointers(value, format!("{here}/{}", key.replace('/', "~1")), out);
        }
    }
    out.push(here);
}

/// An artifact with two files, spoilt; what opening and verifying say.
#[track_caller]
fn check_spoilt(spoil: impl Fn(&Path), opened: std::result::Result<(), &str>, verified: &str) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    let draft = Draft::create(&dir, Kind::Tokens).unwrap();
    draft.write("config.json", b"{}").unwrap();
    draft.write("shards/0.bin", b"0123").unwrap();
    let stage = Stage::new("test", &Tool::new("0", "test"), Value::Null, Inputs::new());
    let artifact = draft.commit(&stage).unwrap();
    artifact.verify().unwrap();
    spoil(&dir);
    let says = |result: Result<()>, reason: &str| {
        let error = result.unwrap_err().to_string();
        assert!(
            error.starts_with(&dir.display().to_string()) && error.contains(reason),
            "{error}"
        );
    };
    match opened {
        Ok(()) => drop(Artifact::open(&dir, Kind::Tokens).unwrap()),
        Err(reason) => says(Artifact::open(&dir, Kind::Tokens).map(drop), reason),
    }
    says(artifact.verify(), verified);
}

#[test]
fn spoilt_files_are_named() {
    let file = |dir: &Path| dir.join("shards/0.bin");
    check_spoilt(
        |dir| fs::write(file(dir), "0124").unwrap(),
        Ok(()),
        "file `shards/0.bin` has BLAKE3 ",
    );
    let short = "file `shards/0.bin` has 3 bytes, and the manifest says 4";
    check_spoilt(
        |dir| fs::write(file(dir), "012").unwrap(),
        Err(short),
        short,
    );
    let missing = "file `shards/0.bin` is missing";
    check_spoilt(
        |dir| fs::remove_file(file(dir)).unwrap(),
        Err(missing),
        missing,
    );
    check_spoilt(
        |dir| fs::write(dir.join("shards/1.bin"), "").unwrap(),
        Ok(()),
        "file `shards/1.bin` is not in the manifest",
    );
    let folder = "file `shards/0.bin` is a link or a folder";
    let replace_by_folder = |dir: &Path| {
        fs::remove_file(file(dir)).unwrap();
        fs::create_dir(file(dir)).unwrap();
    };
    check_spoilt(replace_by_folder, Err(folder), folder);
}

#[cfg(unix)]
#[test]
fn links_in_an_artifact_are_not_followed() {
    use std::os::unix::fs::symlink;
    let link = "file `config.json` is a link or a folder";
    let link_file = |dir: &Path| {
        fs::write(dir.join("../elsewhere"), "{}").unwrap();
        fs::remove_file(dir.join("config.json")).unwrap();
        symlink("../elsewhere", dir.join("config.json")).unwrap();
    };
    check_spoilt(link_file, Err(link), link);
    let behind = "file `shards/0.bin` lies behind a link";
    let link_folder = |dir: &Path| {
        fs::rename(dir.join("shards"), dir.join("../elsewhere")).unwrap();
        symlink("../elsewhere", dir.join("shards")).unwrap();
    };
    check_spoilt(link_folder, Err(behind), behind);

    // A linked manifest is refused before it is read; a link to the whole folder is a name like any other.
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    let stage = Stage::new("test", &Tool::new("0", "test"), Value::Null, Inputs::new());
    Draft::create(&dir, Kind::Text)
        .unwrap()
        .commit(&stage)
        .unwrap();
    symlink("a", root.path().join("latest")).unwrap();
    Artifact::open(&root.path().join("latest"), Kind::Text).unwrap();
    fs::rename(dir.join(MANIFEST), root.path().join("m")).unwrap();
    symlink("../m", dir.join(MANIFEST)).unwrap();
    let error = Artifact::open(&dir, Kind::Text).unwrap_err().to_string();
    assert!(
        error.contains("manifest.json cannot be trusted: it is a link or a folder"),
        "{error}"
    );
}

#[test]
fn the_wrong_folder_is_a_sentence() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    let open = |dir: &Path| {
        Artifact::open(dir, Kind::Checkpoint)
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        open(&dir),
        format!(
            "{} is not an artifact: there is nothing; run the stage that writes it first",
            dir.display()
        )
    );
    fs::write(&dir, "").unwrap();
    assert_eq!(
        open(&dir),
        format!(
            "{} is not an artifact: it is a file; name the folder",
            dir.display()
        )
    );
    let has_none = "it has no manifest.json; name a folder that a stage of Russet wrote";
    assert_eq!(
        open(root.path()),
        format!("{} is not an artifact: {has_none}", root.path().display())
    );
    fs::remove_file(&dir).unwrap();
    let stage = Stage::new("test", &Tool::new("0", "test"), Value::Null, Inputs::new());
    let artifact = Draft::create(&dir, Kind::Tokens)
        .unwrap()
        .commit(&stage)
        .unwrap();
    let wanted = "is a tokens artifact, and a checkpoint is wanted here: name the folder that the stage before this one wrote";
    assert_eq!(open(&dir), format!("{} {wanted}", dir.display()));
    let error = artifact.file("config.json").unwrap_err().to_string();
    assert_eq!(
        error,
        format!("{} lists no file `config.json`; it has none", dir.display())
    );
}
