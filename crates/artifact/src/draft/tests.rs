//! What a killed, refused or crowded commit leaves behind. Child processes are this test program run again, one test of
//! it, told by an environment variable what to do.

use super::*;
use crate::manifest::Tool;
use crate::stage::Inputs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

const CHILD: &str = "RUSSET_ARTIFACT_TEST_CHILD";

fn stage(recipe: serde_json::Value) -> Stage {
    Stage::new("test", &Tool::new("0.0.0", "test"), recipe, Inputs::new())
}

/// An artifact whose every file says which it is, so that a mixture shows.
fn commit(dir: &Path, which: u64, exchange: bool) -> Result<Artifact> {
    let mut draft = Draft::create(dir, Kind::Tokens)?;
    draft.exchange = exchange;
    for file in 0..4 {
        draft.write(
            &format!("shards/{file}.bin"),
            which.to_string().repeat(500).as_bytes(),
        )?;
    }
    draft.commit(&stage(which.into()))
}

/// The one artifact at `dir`: whole, and all of one commit.
#[track_caller]
fn check_whole(dir: &Path) -> u64 {
    let artifact = Artifact::open(dir, Kind::Tokens).unwrap_or_else(|error| panic!("{error}"));
    artifact.verify().unwrap_or_else(|error| panic!("{error}"));
    let which = artifact.manifest().recipe.as_u64().unwrap();
    assert_eq!(artifact.manifest().files.len(), 4);
    for name in artifact.manifest().files.keys() {
        let text = fs::read_to_string(artifact.file(name).unwrap()).unwrap();
        assert_eq!(text, which.to_string().repeat(500));
    }
    which
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn child(test: &str, job: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, job)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Not a test of its own: what the killed child does, telling of every commit.
#[test]
fn child_commits_for_ever() {
    let Ok(job) = std::env::var(CHILD) else {
        return;
    };
    let [mode, first, dir] = job.splitn(3, ':').collect::<Vec<_>>()[..] else {
        panic!("{job}")
    };
    for which in first.parse().unwrap().. {
        commit(Path::new(dir), which, mode == "exchange").unwrap();
        std::io::stderr().write_all(b"committed\n").unwrap();
    }
}

fn kill_many_times(mode: &str) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("02-tokens");
    commit(&dir, 0, true).unwrap();
    let (mut at_work, mut seen) = (0, std::collections::BTreeSet::new());
    for round in 1..=25_u64 {
        let job = format!("{mode}:{}:{}", round * 1000, dir.display());
        let mut child = child("draft::tests::child_commits_for_ever", &job)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = BufReader::new(child.stderr.take().unwrap()).lines();
        told.next();
        let one = Instant::now();
        told.next();
        // Somewhere in the third commit, which takes about as long as the second did.
        std::thread::sleep(one.elapsed() * (round as u32 * 7 % 25) / 25);
        child.kill().unwrap();
        child.wait().unwrap();
        at_work += usize::from(names(root.path()).len() > 1);
        seen.insert(check_whole(&dir));
    }
    // It must have been killed at work, and have got somewhere.
    assert!(at_work >= 6 && seen.len() == 25, "{at_work} {seen:?}");
    commit(&dir, 7, true).unwrap();
    assert_eq!(check_whole(&dir), 7);
    assert_eq!(
        names(root.path()),
        ["02-tokens"],
        "what dead processes left is swept"
    );
}

#[test]
fn killed_at_any_moment_the_old_or_the_new_artifact_is_whole() {
    kill_many_times("exchange");
}

#[test]
fn killed_between_two_renames_the_old_artifact_comes_back() {
    kill_many_times("renames");
}

/// Not a test of its own: what the child does that ends at a step.
#[test]
fn child_commits_once() {
    let Ok(job) = std::env::var(CHILD) else {
        return;
    };
    let (mode, dir) = job.split_once(':').unwrap();
    commit(Path::new(dir), 1, mode == "exchange").unwrap();
}

/// Every step between two changes to the disk, also those too short for a kill to hit by chance.
#[test]
fn ended_at_every_step_the_old_or_the_new_artifact_is_whole() {
    for mode in ["exchange", "renames", "first"] {
        let (mut ends, mut seen) = (0, Vec::new());
        loop {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join("a");
            if mode != "first" {
                commit(&dir, 0, true).unwrap();
            }
            let job = format!("{mode}:{}", dir.display());
            let status = child("draft::tests::child_commits_once", &job)
                .env("RUSSET_ARTIFACT_TEST_END_AT", ends.to_string())
                .status()
                .unwrap();
            if mode != "first" || dir.exists() {
                seen.push(check_whole(&dir));
            }
            commit(&dir, 7, true).unwrap();
            assert_eq!(check_whole(&dir), 7);
            assert_eq!(names(root.path()), ["a"], "{mode}, step {ends}");
            if status.success() {
                break;
            }
            assert_eq!(status.code(), Some(77), "{mode}, step {ends}");
            ends += 1;
        }
        assert!(seen.is_sorted() && seen.last() == Some(&1), "{seen:?}");
        assert!(
            ends >= 6 && (mode == "first" || seen[0] == 0),
            "{ends} {seen:?}"
        );
    }
}

/// What a crash can leave beside the place.
#[test]
fn what_was_set_aside_comes_back_or_goes() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    let aside = root.path().join(".a.old-1-0");
    commit(&dir, 1, true).unwrap();
    fs::rename(&dir, &aside).unwrap();
    assert_eq!(check_whole(&dir), 1);
    assert_eq!(names(root.path()), ["a"]);

    // A crash after the second rename: both are there, and the aside one is of no use.
    commit(&aside, 0, true).unwrap();
    commit(&dir, 2, false).unwrap();
    assert_eq!(check_whole(&dir), 2);
    assert_eq!(names(root.path()), ["a"]);

    // Half deleted: not put back.
    fs::remove_file(dir.join(MANIFEST)).unwrap();
    fs::rename(&dir, &aside).unwrap();
    let error = Artifact::open(&dir, Kind::Tokens).unwrap_err().to_string();
    assert!(
        error.contains("there is nothing; run the stage that writes it first"),
        "{error}"
    );
}

#[test]
fn only_folders_of_dead_drafts_are_swept() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    let living = Draft::create(&dir, Kind::Tokens).unwrap();
    living.write("x", b"1").unwrap();
    for dead in [
        ".a.tmp-1-2",
        ".a.tmp-1-2/sub",
        ".b.tmp-1-2",
        ".a.tmp-x-2",
        ".a.tmp-1",
        ".a.old-1-2",
    ] {
        fs::create_dir(root.path().join(dead)).unwrap();
    }
    fs::write(root.path().join(".a.tmp-3-4"), "a file, not a folder").unwrap();
    let second = Draft::create(&dir, Kind::Tokens).unwrap();
    let mine = |draft: &Draft| {
        draft
            .path()
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    let mut expected = [
        ".a.old-1-2",
        ".a.tmp-1",
        ".a.tmp-3-4",
        ".a.tmp-x-2",
        ".b.tmp-1-2",
    ]
    .map(str::to_owned)
    .to_vec();
    expected.extend([mine(&living), mine(&second)]);
    expected.sort();
    assert_eq!(names(root.path()), expected);

    living.commit(&stage(1.into())).unwrap();
    second.write("x", b"2").unwrap();
    let last = second.commit(&stage(2.into())).unwrap();
    assert_eq!(fs::read(last.file("x").unwrap()).unwrap(), b"2");
}

#[test]
fn a_dropped_draft_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("new/a");
    let draft = Draft::create(&dir, Kind::Tokens).unwrap();
    draft.write("x", b"1").unwrap();
    drop(draft);
    assert!(names(&root.path().join("new")).is_empty());
}

#[test]
fn the_same_stage_leaves_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| commit(&root.path().join(name), 1, true).unwrap());
    assert_eq!(a.manifest_hash(), b.manifest_hash());
    let bytes = fs::read(a.dir().join(MANIFEST)).unwrap();
    assert_eq!(
        Manifest::from_bytes(&bytes).unwrap().identity(),
        a.manifest_hash()
    );
    let reopened = Artifact::open(a.dir(), Kind::Tokens).unwrap();
    assert_eq!(
        (reopened.manifest(), reopened.manifest_hash()),
        (a.manifest(), a.manifest_hash())
    );
}

#[test]
fn two_threads_at_one_place_leave_one_whole_artifact() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    commit(&dir, 0, true).unwrap();
    std::thread::scope(|scope| {
        for which in 1..=4 {
            let dir = &dir;
            scope.spawn(move || (0..5).for_each(|_| drop(commit(dir, which, true))));
        }
    });
    check_whole(&dir);
    drop(Draft::create(&dir, Kind::Tokens).unwrap());
    assert_eq!(names(root.path()), ["a"]);
}

/// Both when a draft begins and when it ends, the place is as it was.
#[track_caller]
fn check_occupied(occupy: impl Fn(&Path), reason: &str) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    let early = Draft::create(&dir, Kind::Tokens).unwrap();
    early.write("x", b"1").unwrap();
    occupy(&dir);
    let before = names(root.path());
    let errors = [
        Draft::create(&dir, Kind::Tokens).unwrap_err().to_string(),
        early.commit(&stage(1.into())).unwrap_err().to_string(),
    ];
    for error in errors {
        assert!(
            error.starts_with(&format!("{} will not be replaced: ", dir.display())),
            "{error}"
        );
        assert!(error.contains(reason), "{error}");
    }
    let left: Vec<_> = before
        .into_iter()
        .filter(|name| !name.starts_with(".a.tmp-"))
        .collect();
    assert_eq!(names(root.path()), left);
}

#[test]
fn what_is_not_ours_is_never_replaced() {
    check_occupied(
        |dir| fs::write(dir, "precious").unwrap(),
        "it is a link or a file, not a folder",
    );
    check_occupied(
        |dir| {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("thesis.tex"), "precious").unwrap();
        },
        "it holds files, and",
    );
    check_occupied(
        |dir| {
            drop(
                Draft::create(dir, Kind::Checkpoint)
                    .unwrap()
                    .commit(&stage(1.into()))
                    .unwrap(),
            )
        },
        "it is a checkpoint artifact, and a tokens is to be written",
    );
    check_occupied(
        |dir| {
            commit(dir, 1, true).unwrap();
            fs::write(dir.join("shards/notes.txt"), "precious").unwrap();
        },
        "`shards/notes.txt` in it is not in its manifest and would be lost",
    );
    check_occupied(
        |dir| {
            commit(dir, 1, true).unwrap();
            fs::write(dir.join(MANIFEST), "{}").unwrap();
        },
        "cannot be trusted: it has no `format` number",
    );
}

#[test]
fn the_result_of_another_stage_is_not_replaced() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    commit(&dir, 1, true).unwrap();
    let convert = Stage::new(
        "convert",
        &Tool::new("0.0.0", "test"),
        2.into(),
        Inputs::new(),
    );
    // Whether the name was told when the draft began, or only when it ended.
    let early = Draft::of_stage(&dir, Kind::Tokens, "convert")
        .map(drop)
        .unwrap_err();
    let late = Draft::create(&dir, Kind::Tokens).unwrap();
    for error in [early, late.commit(&convert).unwrap_err()] {
        let error = error.to_string();
        assert!(
            error.contains("`test` wrote it, and the result of `convert`"),
            "{error}"
        );
    }
    assert_eq!(check_whole(&dir), 1);
    Draft::of_stage(&dir, Kind::Tokens, "test").unwrap();
}

#[cfg(unix)]
#[test]
fn who_may_read_the_manifest_may_read_every_file() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    let draft = Draft::create(&root.path().join("a"), Kind::Tokens).unwrap();
    draft.write("private", b"x").unwrap();
    let private = fs::Permissions::from_mode(0o400); // which no umask gives
    fs::set_permissions(draft.path().join("private"), private).unwrap();
    let artifact = draft.commit(&stage(1.into())).unwrap();
    let mode = |name: &str| {
        let is = fs::metadata(artifact.dir().join(name)).unwrap();
        is.permissions().mode()
    };
    assert_eq!(mode("private"), mode(MANIFEST));
}

#[cfg(unix)]
#[test]
fn links_are_neither_replaced_nor_committed() {
    use std::os::unix::fs::symlink;
    check_occupied(
        |dir| symlink("/tmp", dir).unwrap(),
        "it is a link or a file, not a folder",
    );
    check_occupied(
        |dir| {
            commit(dir, 1, true).unwrap();
            symlink("/etc/passwd", dir.join("link")).unwrap();
        },
        "link is a link, socket, pipe or device",
    );
    let root = tempfile::tempdir().unwrap();
    let draft = Draft::create(&root.path().join("a"), Kind::Tokens).unwrap();
    symlink("/etc/passwd", draft.path().join("link")).unwrap();
    let error = draft.commit(&stage(1.into())).unwrap_err().to_string();
    assert!(
        error.contains("link is a link, socket, pipe or device"),
        "{error}"
    );
    assert!(names(root.path()).is_empty());
}

#[test]
fn an_empty_folder_is_a_place_like_any_other() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    fs::create_dir(&dir).unwrap();
    commit(&dir, 3, true).unwrap();
    assert_eq!(check_whole(&dir), 3);
}

#[test]
fn what_could_not_be_opened_is_not_committed() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a");
    commit(&dir, 1, true).unwrap();
    let deep = (0..200).fold(serde_json::Value::Null, |inner, _| {
        serde_json::json!([inner])
    });
    let long = serde_json::Value::from("x".repeat(17 << 20));
    for (recipe, reason) in [(deep, "recursion limit"), (long, "it is longer than")] {
        let error = Draft::create(&dir, Kind::Tokens)
            .unwrap()
            .commit(&stage(recipe))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("its manifest would not be readable: ") && error.contains(reason),
            "{error}"
        );
    }
    for name in [
        "",
        "/x",
        "../x",
        "a//b",
        "manifest.json",
        "a\\b",
        "./x",
        "c:x",
        "a\nb",
    ] {
        assert!(
            Draft::create(&dir, Kind::Tokens)
                .unwrap()
                .write(name, b"")
                .is_err(),
            "{name}"
        );
    }
    let draft = Draft::create(&dir, Kind::Tokens).unwrap();
    fs::write(draft.path().join(MANIFEST), "{}").unwrap();
    let error = draft.commit(&stage(1.into())).unwrap_err().to_string();
    assert!(
        error.contains("file name `manifest.json` is the manifest's own"),
        "{error}"
    );
    for dir in ["..", ".", "/", "a/.."] {
        assert!(
            Draft::create(&root.path().join(dir), Kind::Tokens).is_err(),
            "{dir}"
        );
    }
    assert_eq!(check_whole(&dir), 1);
    assert_eq!(names(root.path()), ["a"]);
}

#[test]
fn paths_between_artifacts_are_relative() {
    for (from, to, expected) in [
        ("/r/03", "/r/02", Some("../02")),
        ("/r/tiny/03", "/data/text", Some("../../../data/text")),
        ("/r/03", "/r/03/in", Some("in")),
        ("/r/03", "/r/03", None),
    ] {
        assert_eq!(
            relative(Path::new(from), Path::new(to)).as_deref(),
            expected
        );
    }
}

/// Not a test of its own: a child whose files may not grow beyond 64 KiB replaces an artifact, or whose disk is full.
#[test]
fn child_meets_a_limit() {
    let Ok(job) = std::env::var(CHILD) else {
        return;
    };
    let (what, dir) = job.split_once(':').unwrap();
    let draft = Draft::create(Path::new(dir), Kind::Tokens).unwrap();
    let result = match what {
        "file" => {
            let result = draft.write("big", &[1; 1 << 20]);
            drop(draft); // makes room for what is said below
            result
        }
        "manifest" => draft.commit(&stage("x".repeat(1 << 20).into())).map(drop),
        _ => panic!("{what}"),
    };
    fs::write(
        Path::new(dir).with_extension("said"),
        result.unwrap_err().to_string(),
    )
    .unwrap();
}

#[cfg(unix)]
fn shell(script: &str, job: &str) -> Command {
    let mut command = Command::new("sh");
    let exe = std::env::current_exe().unwrap();
    command.args(["-c", script]).arg(exe).env(CHILD, job);
    command.args([
        "--exact",
        "draft::tests::child_meets_a_limit",
        "--nocapture",
    ]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

#[cfg(unix)]
#[test]
fn a_file_size_limit_is_a_sentence_and_the_old_artifact_stays() {
    for what in ["file", "manifest"] {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a");
        commit(&dir, 1, true).unwrap();
        let job = format!("{what}:{}", dir.display());
        let status = shell("trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\"", &job)
            .status()
            .unwrap();
        assert!(status.success());
        let said = fs::read_to_string(root.path().join("a.said")).unwrap();
        assert!(
            said.starts_with("cannot write ") && said.contains("raise the file size limit"),
            "{said}"
        );
        assert_eq!(check_whole(&dir), 1);
        assert_eq!(names(root.path()), ["a", "a.said"]);
    }
}

/// A real full disk, where the system lets an ordinary user mount one in a name space of its own.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_a_sentence_and_the_old_artifact_stays() {
    let root = tempfile::tempdir().unwrap();
    let disk = root.path().join("disk");
    fs::create_dir(&disk).unwrap();
    for what in ["file", "manifest"] {
        // Inside: mount, put the old artifact there, let the child fail, put everything where it can be looked at.
        let old = root.path().join(format!("old-{what}/a"));
        commit(&old, 1, true).unwrap();
        let script = format!(
            "mount -t tmpfs -o size=256k none {disk} && cp -r {old} {disk}/ && \"$0\" \"$@\" && cp -rT {disk} {out}",
            disk = disk.display(),
            old = old.display(),
            out = root.path().join(what).display(),
        );
        let inner = shell(&script, &format!("{what}:{}", disk.join("a").display()));
        let mut command = Command::new("unshare");
        command
            .args(["-rm", "sh"])
            .args(inner.get_args())
            .env(CHILD, format!("{what}:{}", disk.join("a").display()));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        if !command.status().is_ok_and(|status| status.success()) {
            let mounts = Command::new("unshare")
                .args(["-rm", "mount", "-t", "tmpfs", "none"])
                .arg(&disk)
                .status();
            assert!(
                !mounts.is_ok_and(|status| status.success()),
                "the child failed although a disk can be mounted"
            );
            eprintln!("skipped: this system lets no ordinary user mount a small disk");
            return;
        }
        let said = fs::read_to_string(root.path().join(what).join("a.said")).unwrap();
        assert!(
            said.starts_with("cannot write ") && said.contains("; free some space and run again"),
            "{said}"
        );
        assert_eq!(check_whole(&root.path().join(what).join("a")), 1);
        assert_eq!(names(&root.path().join(what)), ["a", "a.said"]);
    }
}
