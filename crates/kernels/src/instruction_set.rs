//! The instruction sets for which the kernels are compiled.

use pulp::Arch;
use std::sync::OnceLock;

/// The environment variable that selects an instruction set: see the crate's documentation.
const VARIABLE: &str = "KERNELS_ISA";

/// An instruction set for which the kernels are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstructionSet {
    /// AMX of x86-64 for products of `bf16`, AVX-512 for everything else.
    Amx,
    /// AVX-512 of x86-64: vectors of 512 bits.
    Avx512,
    /// AVX2 with FMA of x86-64: vectors of 256 bits.
    Avx2,
    /// NEON of ARM: vectors of 128 bits.
    Neon,
    /// No vectors.
    Scalar,
}

impl InstructionSet {
    /// All instruction sets, the best first.
    pub const ALL: [Self; 5] = [
        Self::Amx,
        Self::Avx512,
        Self::Avx2,
        Self::Neon,
        Self::Scalar,
    ];

    /// The name, as in `KERNELS_ISA`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Amx => "amx",
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::Scalar => "scalar",
        }
    }

    /// Whether the machine has it.
    #[must_use]
    pub fn is_available(self) -> bool {
        self.arch().is_some()
    }

    /// Checks that the machine has the instruction set that the environment selects.
    ///
    /// # Errors
    /// When it does not, or when there is none of this name; in words.
    pub fn check_selection() -> Result<(), String> {
        let name = std::env::var(VARIABLE).unwrap_or_default();
        let available = Self::ALL.into_iter().filter(|set| set.is_available());
        let available: Vec<_> = available.map(Self::name).collect();
        match name.is_empty() || available.contains(&name.as_str()) {
            true => Ok(()),
            false => Err(format!(
                "the environment variable {VARIABLE} selects the instruction set `{name}`, and this machine has {}",
                available.join(", ")
            )),
        }
    }

    /// The one in use: the one that the environment selects, if the machine has it, or the best.
    #[must_use]
    pub fn current() -> Self {
        static CURRENT: OnceLock<InstructionSet> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let name = std::env::var(VARIABLE).unwrap_or_default();
            let mut available = Self::ALL.into_iter().filter(|set| set.is_available());
            let best = available.clone().next().unwrap_or(Self::Scalar);
            available.find(|set| set.name() == name).unwrap_or(best)
        })
    }

    fn arch(self) -> Option<Arch> {
        match self {
            Self::Scalar => Some(Arch::Scalar),
            #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
            // Every processor with AMX has AVX-512. Where tests emulate AMX, it may be missing.
            Self::Amx if crate::bf16::has_amx() => {
                Self::Avx512.arch().or_else(|| Self::Avx2.arch())
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => pulp::x86::V4::try_new().map(Arch::V4),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => pulp::x86::V3::try_new().map(Arch::V3),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => pulp::aarch64::Neon::try_new().map(Arch::Neon),
            _ => None,
        }
    }
}

/// The instruction set in use.
///
/// What it dispatches are types that implement `WithSimd`: as closures, the loops of pooling and dropout are not
/// vectorised.
#[inline]
pub(crate) fn arch() -> Arch {
    static ARCH: OnceLock<Arch> = OnceLock::new();
    *ARCH.get_or_init(|| InstructionSet::current().arch().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// Runs the other tests of this crate on every instruction set of the machine.
    #[test]
    fn the_tests_pass_on_all_instruction_sets() {
        for set in InstructionSet::ALL {
            if !set.is_available() {
                println!("skipped: this machine has no {}", set.name());
                continue;
            }
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--skip", "the_tests_pass_on_all_instruction_sets"])
                .env(VARIABLE, set.name())
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{set:?}: {text}");
            assert!(text.contains("agrees_with_three_loops ... ok"), "{text}");
        }
    }

    #[test]
    fn the_environment_selects_the_instruction_set() {
        let selected = std::env::var(VARIABLE).unwrap_or_default();
        let mut all = InstructionSet::ALL.into_iter();
        let best = all.clone().find(|set| set.is_available());
        let set = all.find(|set| set.name() == selected && set.is_available());
        assert_eq!(Some(InstructionSet::current()), set.or(best));
    }
}
