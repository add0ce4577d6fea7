//! Blocks of a matrix product on Intel's matrix unit (AMX).
//!
//! The instructions are inline assembly, because Rust's intrinsics for them are unstable.

#[cfg(test)]
mod emulator;

use super::block::{Block, COLUMNS, ROWS, Sums};
use crate::instruction_set::InstructionSet;
use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Bytes of a tile's row.
const ROW_BYTES: u16 = 64;

/// The operand of `LDTILECFG`: "Tile configuration" in Intel's manual.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

thread_local! {
    /// The rows of the thread's tiles, if they are configured.
    static CONFIGURED: Cell<Option<[usize; 2]>> = const { Cell::new(None) };
}

/// The right to use the thread's tiles. They are released at the end.
pub(crate) struct Tiles {
    /// The tiles are the thread's.
    _not_send: PhantomData<*const ()>,
}

impl Tiles {
    /// The tiles, if the machine has them, the kernel permits their use, and their instruction set is in use.
    pub(crate) fn new() -> Option<Self> {
        (InstructionSet::current() == InstructionSet::Amx).then_some(Self {
            _not_send: PhantomData,
        })
    }

    /// Adds a block of the product to `sums`.
    ///
    /// # Safety
    /// The operands must have all elements that the block names.
    pub(crate) unsafe fn add(&self, block: &Block<'_>, sums: &mut Sums) {
        if block.steps.is_empty() {
            return;
        }
        let rows = block.rows.map(|rows| rows.count);
        if CONFIGURED.get() != Some(rows) {
            configure(rows);
            CONFIGURED.set(Some(rows));
        }
        let [first, second] = block.rows;
        // SAFETY: the machine has the unit, and the tiles are configured. The instructions read the rows that the block
        // names, by the caller's promise, and `steps.len()` parts of the right operand, and read and write `sums`. They
        // change neither the stack nor flags that Rust relies on.
        unsafe {
            let left = block.left.as_ptr();
            asm!(
                "tileloadd tmm0, [{sums} + {sums_stride}*1]",
                "tileloadd tmm1, [{sums} + {sums_stride}*1 + 64]",
                "tileloadd tmm2, [{more_sums} + {sums_stride}*1]",
                "tileloadd tmm3, [{more_sums} + {sums_stride}*1 + 64]",
                "2:",
                "mov {at}, [{steps}]",
                "lea {at}, [{first} + {at}*2]",
                "tileloadd tmm6, [{right} + {right_stride}*1]",
                "tileloadd tmm4, [{at} + {stride}*1]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{right} + {right_stride}*1 + 1024]",
                "add {at}, {distance}",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{at} + {stride}*1]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {right}, 2048",
                "add {steps}, 8",
                "dec {count}",
                "jnz 2b",
                "tilestored [{sums} + {sums_stride}*1], tmm0",
                "tilestored [{sums} + {sums_stride}*1 + 64], tmm1",
                "tilestored [{more_sums} + {sums_stride}*1], tmm2",
                "tilestored [{more_sums} + {sums_stride}*1 + 64], tmm3",
                sums = in(reg) sums.0[0].as_mut_ptr(),
                more_sums = in(reg) sums.0[1].as_mut_ptr(),
                sums_stride = in(reg) COLUMNS * size_of::<f32>(),
                first = in(reg) left.add(first.start),
                distance = in(reg) (second.start as isize - first.start as isize) * 2,
                stride = in(reg) block.stride * 2,
                right = inout(reg) block.right.as_ptr() => _,
                right_stride = in(reg) usize::from(ROW_BYTES),
                steps = inout(reg) block.steps.as_ptr() => _,
                count = inout(reg) block.steps.len() => _,
                at = out(reg) _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        if CONFIGURED.take().is_some() {
            // SAFETY: the machine has the unit, and the next use of the tiles configures them again.
            unsafe {
                asm!(
                    "tilerelease",
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nomem, nostack, preserves_flags),
                );
            }
        }
    }
}

/// Tiles 0 and 1 are the first rows of the result, 2 and 3 the second ones, 4 and 5 those of the left operand, 6 and 7 the
/// right operand.
fn configure([first, second]: [usize; 2]) {
    let mut configuration = Configuration {
        palette: 1,
        start_row: 0,
        reserved: [0; 14],
        row_bytes: [0; 16],
        rows: [0; 16],
    };
    let rows = [first, first, second, second, first, second, ROWS, ROWS];
    for (tile, rows) in rows.into_iter().enumerate() {
        configuration.row_bytes[tile] = ROW_BYTES;
        configuration.rows[tile] = rows as u8;
    }
    // SAFETY: the machine has the unit, and the configuration is valid: 1 to 16 rows of 64 bytes for eight tiles.
    unsafe {
        asm!(
            "ldtilecfg [{}]",
            in(reg) &raw const configuration,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(readonly, nostack, preserves_flags),
        );
    }
}

/// Whether the machine has the unit with products of `bf16`, and the kernel permits this process to use it. In tests, other
/// machines emulate it.
pub(crate) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        let available = has_unit() && is_permitted();
        #[cfg(test)]
        let available = available || emulator::install();
        available
    })
}

/// Whether the processor has the unit, and the operating system saves its state (Intel's manual, volume 1, chapter 18).
fn has_unit() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const TILE_STATE: u64 = 0b11 << 17;
    // `xgetbv` needs OSXSAVE, and leaf 7 exists only if leaf 0 says so.
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    // SAFETY: the operating system enabled the instruction, as was just checked.
    let enabled = unsafe { extended_control_register() };
    features & AMX_BF16 != 0 && features & AMX_TILE != 0 && enabled & TILE_STATE == TILE_STATE
}

/// The states that the operating system saves.
///
/// # Safety
/// The operating system must have enabled `xgetbv`.
#[target_feature(enable = "xsave")]
unsafe fn extended_control_register() -> u64 {
    // SAFETY: the caller's promise.
    unsafe { _xgetbv(0) }
}

/// Asks the kernel for permission to use the tiles, since Linux 5.16 (`Documentation/arch/x86/xstate.rst`). Older ones
/// refuse, as do sandboxes.
fn is_permitted() -> bool {
    const ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let result: isize;
    // SAFETY: the call changes nothing but the permission. The kernel changes `rcx` and `r11`.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}
