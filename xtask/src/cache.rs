//! What the chores install, and where: pinned Python packages and cargo tools, in a cache folder outside the clone.
//!
//! Nothing here is needed to build or use Russet. An install that fails (no network) is an `Err` with the reason; the caller decides
//! whether that skips a step or fails it.

use crate::shell::{Done, capture, cargo, find, run};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

/// `$RUSSET_CACHE`, else `$XDG_CACHE_HOME/russet`, else `$HOME/.cache/russet`, else a folder of the system's temporary one.
pub fn folder() -> PathBuf {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(cache) = set("RUSSET_CACHE") {
        return cache;
    }
    if let Some(cache) = set("XDG_CACHE_HOME") {
        return cache.join("russet");
    }
    match set("HOME") {
        Some(home) => home.join(".cache/russet"),
        None => std::env::temp_dir().join("russet-cache"),
    }
}

/// Packages that belong together, with the modules that prove that they work.
pub struct Packages {
    /// Folder name in the cache; carries the versions, so a new pin is a new folder.
    pub name: &'static str,
    /// As `pip install` takes them, pinned.
    pub install: &'static [&'static str],
    /// A Python statement that fails when something is missing.
    pub probe: &'static str,
}

/// Reads event files back as TensorBoard does.
pub const TENSORBOARD: Packages = Packages {
    name: "tensorboard-2.21.0",
    install: &["tensorboard==2.21.0"],
    probe: "from tensorboard.backend.event_processing.event_accumulator import EventAccumulator",
};

/// Makes the goldens and judges parity. The versions are those that golden/README.md names.
pub const TRANSFORMERS: Packages = Packages {
    name: "transformers-5.23.0",
    install: &[
        "torch==2.15.0",
        "transformers==5.23.0",
        "safetensors==0.8.0",
        "numpy==2.4.6",
    ],
    probe: "import torch, transformers, safetensors, numpy",
};

/// OpenAI's own client, which the server is to satisfy.
pub const OPENAI: Packages = Packages {
    name: "openai-3.57.0",
    install: &["openai==3.57.0"],
    probe: "import openai",
};

/// A Python that has `packages`: `$RUSSET_PYTHON` as it is, or one in the cache, installed on first use.
pub fn python(packages: &Packages) -> Done<PathBuf> {
    let works = |python: &Path| capture(Command::new(python).args(["-c", packages.probe]));
    if let Some(python) = std::env::var_os("RUSSET_PYTHON").filter(|value| !value.is_empty()) {
        let python = PathBuf::from(python);
        works(&python).map_err(|problem| {
            format!(
                "RUSSET_PYTHON lacks {}: {problem}",
                packages.install.join(", ")
            )
        })?;
        return Ok(python);
    }
    let _lock = lock()?;
    let home = folder().join("python").join(packages.name);
    let python = home.join("bin/python");
    if python.exists() && works(&python).is_ok() {
        return Ok(python);
    }
    println!(
        "installing {} into {}",
        packages.install.join(", "),
        home.display()
    );
    let mut problems = Vec::new();
    type Way = fn(&Path, &Packages) -> Done;
    let ways: [(&str, Way); 3] = [
        ("venv", by_venv),
        ("pip --target", by_target),
        ("apt, then venv", by_apt),
    ];
    for (name, way) in ways {
        let cleared = if home.exists() {
            fs::remove_dir_all(&home)
        } else {
            Ok(())
        };
        cleared.map_err(|error| format!("cannot clear {}: {error}", home.display()))?;
        match way(&home, packages).and_then(|()| works(&python)) {
            Ok(_) => return Ok(python),
            Err(problem) => problems.push(format!("{name}: {problem}")),
        }
    }
    Err(format!(
        "no Python with {}; tried {}. Set RUSSET_PYTHON to one that has them",
        packages.install.join(", "),
        problems.join("; ")
    ))
}

fn by_venv(home: &Path, packages: &Packages) -> Done {
    capture(Command::new("python3").args(["-m", "venv"]).arg(home))?;
    let pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
    ];
    capture(
        Command::new(home.join("bin/python"))
            .args(pip)
            .args(packages.install),
    )
    .map(drop)
}

/// Where the distribution splits `venv` off: packages in a plain folder, and a `bin/python` that looks there.
fn by_target(home: &Path, packages: &Packages) -> Done {
    let library = home.join("lib");
    let pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--target",
    ];
    capture(
        Command::new("python3")
            .args(pip)
            .arg(&library)
            .args(packages.install),
    )?;
    let write = || {
        use std::os::unix::fs::PermissionsExt;
        fs::create_dir_all(home.join("bin"))?;
        let wrapper = home.join("bin/python");
        fs::write(
            &wrapper,
            format!(
                "#!/bin/sh\nPYTHONPATH='{}' exec python3 \"$@\"\n",
                library.display()
            ),
        )?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))
    };
    write().map_err(|error| format!("cannot write into {}: {error}", home.display()))
}

/// Last resort, as root only: ask the distribution for `venv`.
fn by_apt(home: &Path, packages: &Packages) -> Done {
    apt(&["python3-venv"])?;
    by_venv(home, packages)
}

/// Packages of the distribution, where this is Debian's kind and we may install.
fn apt(packages: &[&str]) -> Done {
    if find("apt-get").is_none() {
        return Err("no apt-get here".to_owned());
    }
    if capture(Command::new("id").arg("-u"))?.trim() != "0" {
        let packages = packages.join(" ");
        return Err(format!(
            "not root; `sudo apt-get install {packages}` would do it"
        ));
    }
    capture(Command::new("apt-get").arg("update"))?;
    let install = ["install", "--yes", "--no-install-recommends"];
    capture(
        Command::new("apt-get")
            .args(install)
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
    .map(drop)
}

/// What a build with the feature `mpi` and its tests need: an MPI library with its launcher, and libclang, which reads its header.
pub fn mpi() -> Done {
    let there = || find("mpirun").is_some() && find("mpicc").is_some() && has_libclang();
    if there() {
        return Ok(());
    }
    let _lock = lock()?;
    apt(&["libopenmpi-dev", "openmpi-bin", "libclang-dev"])
        .map_err(|problem| format!("no Open MPI with libclang: {problem}"))?;
    match there() {
        true => Ok(()),
        false => Err("no Open MPI with libclang, although apt-get installed them".to_owned()),
    }
}

/// Where the binding generator looks too: what `LIBCLANG_PATH` says, or LLVM's and the system's library folders.
fn has_libclang() -> bool {
    let holds = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).any(|name| {
            let name = name.to_string_lossy();
            name.starts_with("libclang.so") || name.starts_with("libclang-")
        })
    };
    if std::env::var_os("LIBCLANG_PATH").is_some_and(|path| holds(Path::new(&path))) {
        return true;
    }
    let llvm = fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    let llvm = llvm.map(|entry| entry.path().join("lib"));
    let system = [
        "/usr/lib",
        "/usr/lib64",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
    ];
    llvm.chain(system.map(PathBuf::from))
        .any(|folder| holds(&folder))
}

/// A cargo tool: the one on PATH, or one built into the cache at the pinned version. Built unoptimised: on two cores `cargo-deny`
/// takes 136 s this way (72 s of CPU), once.
pub fn tool(name: &str, version: &str) -> Done<PathBuf> {
    if let Some(found) = find(name) {
        return Ok(found);
    }
    let _lock = lock()?;
    let home = folder().join("tools").join(format!("{name}-{version}"));
    let binary = home.join("bin").join(name);
    if binary.exists() {
        return Ok(binary);
    }
    println!("installing {name} {version} into {}", home.display());
    let mut install = cargo(&format!(
        "install --quiet --locked --debug --version {version} {name} --root"
    ));
    install
        .arg(&home)
        .env_remove("CARGO_TARGET_DIR")
        .env("CARGO_PROFILE_DEV_DEBUG", "false");
    run(&mut install)?;
    Ok(binary)
}

/// Two runs at once must not install into one folder; the second waits.
fn lock() -> Done<File> {
    let cache = folder();
    let open = || {
        fs::create_dir_all(&cache)?;
        let file = File::create(cache.join("lock"))?;
        file.lock()?;
        Ok(file)
    };
    open().map_err(|error: std::io::Error| {
        format!(
            "cannot use the cache folder {}: {error}. Set RUSSET_CACHE to one you may write to",
            cache.display()
        )
    })
}
