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
}

/// Why `RUSSET_ISA` cannot be honoured.
#[derive(Debug, thiserror::Error)]
pub enum IsaError {
    /// The value is none of the three names.
    #[error(
        "RUSSET_ISA is `{0}`; use one of scalar, avx2, avx512, or unset it to let Russet choose"
    )]
    Unknown(String),
    /// The CPU lacks the instructions asked for.
    #[error(
        "RUSSET_ISA asks for {0:?}, but this CPU offers at most {1:?}; unset it or choose a lower one"
    )]
    Unsupported(Isa, Isa),
}

impl Isa {
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
                return Isa::Avx512;
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
            Isa::best() == Isa::Avx512 && is_x86_feature_detected!("avx512bf16")
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Every instruction set that this CPU has.
    pub(crate) fn every_isa() -> impl Iterator<Item = Isa> {
        [Isa::Scalar, Isa::Avx2, Isa::Avx512]
            .into_iter()
            .filter(|&isa| isa <= Isa::best())
    }

    #[test]
    fn errors_say_what_to_do() {
        let unknown = IsaError::Unknown("sse9".into()).to_string();
        assert!(
            unknown.contains("`sse9`") && unknown.contains("scalar, avx2, avx512"),
            "{unknown}"
        );
        let unsupported = IsaError::Unsupported(Isa::Avx512, Isa::Avx2).to_string();
        assert!(
            unsupported.contains("Avx512") && unsupported.contains("at most Avx2"),
            "{unsupported}"
        );
    }
}
