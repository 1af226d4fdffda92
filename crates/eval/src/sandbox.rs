//! Programs that nobody has read, run apart: in namespaces of their own, without a network, with all file systems read-only but
//! for a folder that is thrown away, and under limits of CPU time, memory, file size and wall time.
//!
//! It is made of what every Linux has (`timeout`, `unshare`, `mount`, `setpriv`, `ulimit`), so nothing unsafe is needed here. The
//! program has no capabilities in its namespaces, else it could undo the mounts. What it can still do: read the files that the user
//! can read, and use its share of CPU and memory for its time. Each of its processes has the limits, and their number has none. Where the
//! system does not permit such namespaces, [`Sandbox::new`] says so, and [`Sandbox::limits_only`] is for those who want to run
//! the programs nevertheless.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Error, Result};

/// What a program may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Seconds until it is killed, waiting or not; at least 1.
    pub seconds: u32,
    /// Address space in MiB.
    pub memory_mib: u64,
    /// The largest file that it may write, in KiB; what it prints is one.
    pub file_kib: u64,
}

impl Default for Limits {
    /// 10 seconds, 1 GiB, 1 MiB.
    fn default() -> Limits {
        Limits {
            seconds: 10,
            memory_mib: 1024,
            file_kib: 1024,
        }
    }
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code; none where it was killed.
    pub code: Option<i32>,
    /// Whether it was killed at the end of its time.
    pub late: bool,
    /// What it printed, its last 64 KiB.
    pub stdout: String,
    /// What it complained, likewise.
    pub stderr: String,
}

/// Where programs run.
#[derive(Clone, Debug)]
pub struct Sandbox {
    limits: Limits,
    confined: bool,
}

/// Makes the read-only world within the new namespaces, then the limits. `$1` the folder, `$2`… limits, then the program. Its standard
/// input is a file that it marks just before the program: without the mark the sandbox has failed, and not the program.
const INNER: &str = r#"
box=$1 confined=$2 cpu=$3 memory=$4 size=$5
shift 5
if [ "$confined" = yes ]; then
    mount --make-rprivate / || exit 125
    mount --bind "$box" "$box" || exit 125
    while read -r _ target _; do
        target=$(printf '%b' "$target")
        if [ "$target" != "$box" ]; then
            mount -o remount,bind,ro "$target" || exit 125
        fi
    done < /proc/self/mounts
    cd / # the folder was entered before it was mounted anew
    set -- setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
fi
cd "$box" || exit 125
ulimit -c 0 && ulimit -t "$cpu" && ulimit -v "$memory" && ulimit -f "$size" || exit 125
echo started >&0 || exit 125
exec "$@" < /dev/null
"#;

impl Sandbox {
    /// A sandbox, tried out.
    ///
    /// # Errors
    /// [`Error::Sandbox`] when this system does not permit it.
    pub fn new(limits: Limits) -> Result<Sandbox> {
        let sandbox = Sandbox {
            limits,
            confined: true,
        };
        let problem = match tempfile::tempdir() {
            Err(error) => error.to_string(),
            Ok(folder) => match sandbox.run(folder.path(), "true", &[]) {
                Ok(ran) if ran.code == Some(0) => return Ok(sandbox),
                Ok(ran) => ran.stderr.trim().to_owned(),
                Err(error) => error.to_string(),
            },
        };
        Err(Error::Sandbox { problem })
    }

    /// Limits and time, but the network and all files that the user may write.
    pub fn limits_only(limits: Limits) -> Sandbox {
        Sandbox {
            limits,
            confined: false,
        }
    }

    /// Runs a program in `folder`, which it may write to.
    ///
    /// # Errors
    /// [`Error::Sandbox`] when it cannot be started at all. A program that is not there ends with code 127.
    pub fn run(&self, folder: &Path, program: &str, arguments: &[&str]) -> Result<Ran> {
        let failed = |problem: std::io::Error| Error::Sandbox {
            problem: problem.to_string(),
        };
        let folder = folder.canonicalize().map_err(failed)?;
        let mut outputs =
            [tempfile::tempfile(), tempfile::tempfile()].map(|file| file.map_err(failed));
        let [stdout, stderr] = &mut outputs;
        let (stdout, stderr) = match (stdout, stderr) {
            (Ok(stdout), Ok(stderr)) => (stdout, stderr),
            _ => {
                return Err(Error::Sandbox {
                    problem: "there is no room for a temporary file".to_owned(),
                });
            }
        };
        let mark = tempfile::tempfile().map_err(failed)?;
        let mut command = Command::new("timeout");
        command.args(["-s", "KILL", &self.limits.seconds.max(1).to_string()]);
        if self.confined {
            command.args([
                "unshare",
                "--user",
                "--map-root-user",
                "--net",
                "--ipc",
                "--uts",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
            ]);
        }
        command.args(["sh", "-c", INNER, "sh"]).arg(&folder);
        command.arg(if self.confined { "yes" } else { "no" });
        command.args([
            // A second of CPU more than of the wall, so that the wall is what a person sees.
            (u64::from(self.limits.seconds) + 1).to_string(),
            (self.limits.memory_mib * 1024).to_string(),
            (self.limits.file_kib * 2).to_string(), // in blocks of 512 bytes
        ]);
        command.arg(program).args(arguments).current_dir(&folder);
        command.env_clear().env("PATH", path()).env("HOME", &folder);
        command.env("LC_ALL", "C.UTF-8");
        command.stdin(mark.try_clone().map_err(failed)?);
        command.stdout(stdout.try_clone().map_err(failed)?);
        command.stderr(stderr.try_clone().map_err(failed)?);
        let status = command.status().map_err(failed)?;
        if mark.metadata().map_err(failed)?.len() == 0 {
            return Err(Error::Sandbox {
                problem: tail(stderr).map_err(failed)?.trim().to_owned(),
            });
        }
        // `timeout` kills itself with the rest where it may; else it ends with 128 + 9.
        let late = status.signal() == Some(9) || status.code() == Some(137);
        Ok(Ran {
            code: status.code().filter(|_| !late),
            late,
            stdout: tail(stdout).map_err(failed)?,
            stderr: tail(stderr).map_err(failed)?,
        })
    }
}

fn path() -> PathBuf {
    let path = std::env::var_os("PATH").map(PathBuf::from);
    path.unwrap_or_else(|| PathBuf::from("/usr/local/bin:/usr/bin:/bin"))
}

fn tail(file: &mut File) -> std::io::Result<String> {
    const MOST: u64 = 1 << 16;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(length.saturating_sub(MOST)))?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
