//! Which instruction set the kernels use: found at run time, or forced by `RUSSET_ISA`.

/// An instruction set that a kernel body is written for, in rising order of width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Portable Rust; the oracle.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL, VBMI and VNNI.
    Avx512,
    /// The same with BF16, and AMX tiles: of bf16 for products and attention in bf16, of int8 for palettized weights.
    Amx,
}

/// Why `RUSSET_ISA` cannot be honoured.
#[derive(Debug, thiserror::Error)]
pub enum IsaError {
    /// The value is none of the names.
    #[error(
        "RUSSET_ISA is `{0}`; use one of scalar, avx2, avx512, amx, or unset it to let Russet choose"
    )]
    Unknown(String),
    /// The CPU lacks the instructions asked for.
    #[error(
        "RUSSET_ISA asks for {0:?}, but this CPU offers at most {1:?}; unset it or choose a lower one"
    )]
    Unsupported(Isa, Isa),
}

impl Isa {
    /// Those of this CPU, in rising order.
    pub fn available() -> impl Iterator<Item = Isa> {
        let best = Isa::best();
        [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Amx]
            .into_iter()
            .filter(move |&isa| isa <= best)
    }

    /// The widest instruction set of this CPU.
    pub fn best() -> Isa {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vbmi")
                && is_x86_feature_detected!("avx512vnni");
            if avx512 {
                let amx = is_x86_feature_detected!("avx512bf16") && may_use_tiles();
                return if amx { Isa::Amx } else { Isa::Avx512 };
            }
            if avx2 {
                return Isa::Avx2;
            }
        }
        Isa::Scalar
    }

    /// Whether this CPU multiplies pairs of bf16 numbers (AVX-512 BF16), which not all with [`Isa::Avx512`] do.
    pub fn has_bf16() -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            Isa::best() >= Isa::Avx512 && is_x86_feature_detected!("avx512bf16")
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            false
        }
    }

    /// What to use: `RUSSET_ISA` where set, else [`Isa::best`].
    ///
    /// # Errors
    /// A sentence when the variable names no instruction set or one that this CPU lacks.
    pub fn detect() -> Result<Isa, IsaError> {
        let best = Isa::best();
        let asked = match std::env::var("RUSSET_ISA") {
            Err(_) => return Ok(best),
            Ok(name) => match name.as_str() {
                "" => return Ok(best),
                "scalar" => Isa::Scalar,
                "avx2" => Isa::Avx2,
                "avx512" => Isa::Avx512,
                "amx" => Isa::Amx,
                _ => return Err(IsaError::Unknown(name)),
            },
        };
        if asked > best {
            Err(IsaError::Unsupported(asked, best))
        } else {
            Ok(asked)
        }
    }
}

/// Whether the CPU multiplies tiles of bf16 and int8 and the system lets this process do so: tiles are 8 KiB that a switch of threads has
/// to save, so Linux wants to be asked, once a process.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn may_use_tiles() -> bool {
    static MAY: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
        const AMX_BF16: u32 = 1 << 22;
        const AMX_TILE: u32 = 1 << 24;
        const AMX_INT8: u32 = 1 << 25;
        const ALL: u32 = AMX_BF16 | AMX_TILE | AMX_INT8;
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
        if features & ALL != ALL {
            return false;
        }
        // With it the least stack for signals grows, and children inherit it; where a stack is smaller the system refuses, as does
        // one that does not know the call.
        // SAFETY: the call reads and writes no memory of the process.
        unsafe {
            libc::syscall(
                libc::SYS_arch_prctl,
                ARCH_REQ_XCOMP_PERM,
                XFEATURE_XTILEDATA,
            ) == 0
        }
    });
    *MAY
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn may_use_tiles() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_say_what_to_do() {
        let unknown = IsaError::Unknown("sse9".into()).to_string();
        assert!(
            unknown.contains("`sse9`") && unknown.contains("scalar, avx2, avx512, amx"),
            "{unknown}"
        );
        let unsupported = IsaError::Unsupported(Isa::Avx512, Isa::Avx2).to_string();
        assert!(
            unsupported.contains("Avx512") && unsupported.contains("at most Avx2"),
            "{unsupported}"
        );
    }
}
