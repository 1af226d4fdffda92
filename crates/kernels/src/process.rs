//! What this process has used: processor time and memory, as the system counts them.

/// Processor seconds of all threads so far, user and system: on a shared machine sturdier than the clock on the wall.
/// `None` where the system does not say.
pub fn cpu_seconds() -> Option<f64> {
    usage().map(|(seconds, _)| seconds)
}

/// The most bytes of memory that were resident at one time. `None` where the system does not say.
pub fn peak_rss_bytes() -> Option<u64> {
    usage().map(|(_, bytes)| bytes)
}

#[cfg(unix)]
fn usage() -> Option<(f64, u64)> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: `getrusage` writes a whole `rusage` where the pointer says, unless it returns an error.
    let usage = unsafe {
        if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
            return None;
        }
        usage.assume_init()
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
    // Bytes on macOS, KiB elsewhere.
    let unit = if cfg!(target_os = "macos") { 1 } else { 1024 };
    Some((
        seconds(usage.ru_utime) + seconds(usage.ru_stime),
        u64::try_from(usage.ru_maxrss).ok()? * unit,
    ))
}

#[cfg(not(unix))]
fn usage() -> Option<(f64, u64)> {
    None
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn work_and_memory_are_counted() {
        let before = cpu_seconds().unwrap();
        let begun = std::time::Instant::now();
        let mut memory = vec![0u64; 16 << 20]; // 128 MiB
        while begun.elapsed().as_millis() < 50 {
            memory.iter_mut().for_each(|x| *x += 1);
        }
        std::hint::black_box(&memory);
        assert!(cpu_seconds().unwrap() > before + 0.01);
        assert!(peak_rss_bytes().unwrap() >= 128 << 20);
    }
}
