//! The matrix unit in software, so that its assembly is tested on machines without it.
//!
//! There, its instructions raise `SIGILL`; the handler decodes and executes them. They are those that the parent module
//! uses: `LDTILECFG`, `TILELOADD`, `TDPBF16PS`, `TILESTORED` and `TILERELEASE` (Intel 64 and IA-32 Architectures Software
//! Developer's Manual, volume 2). Anything else raises the signal again.

use libc::{c_int, c_void, greg_t, siginfo_t, ucontext_t};
use std::cell::UnsafeCell;
use std::mem::zeroed;
use std::ptr;

/// Bytes of a row of a tile, and rows of a tile.
const ROW: usize = 64;
const ROWS: usize = 16;

/// A thread's tiles.
struct Tiles {
    configured: bool,
    /// For each tile its rows, and the bytes of each.
    sizes: [(usize, usize); 8],
    bytes: [[[u8; ROW]; ROWS]; 8],
}

thread_local! {
    static TILES: UnsafeCell<Tiles> = const {
        UnsafeCell::new(Tiles { configured: false, sizes: [(0, 0); 8], bytes: [[[0; ROW]; ROWS]; 8] })
    };
}

/// Executes the unit's instructions in software from now on. Whether that was possible.
pub(super) fn install() -> bool {
    // SAFETY: a zeroed action is valid, and the handler only touches the thread's tiles and what the instruction names.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
        libc::sigaction(libc::SIGILL, &raw const action, ptr::null_mut()) == 0
    }
}

extern "C" fn handle(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes the thread's context, whose instruction pointer is at an instruction; those decoded here
    // have at most 10 bytes, and are followed by others.
    unsafe {
        let registers = &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs;
        let code = registers[libc::REG_RIP as usize] as *const u8;
        let code = code.cast::<[u8; 10]>().read_unaligned();
        match TILES.with(|tiles| execute(&mut *tiles.get(), &code, registers)) {
            Some(length) => registers[libc::REG_RIP as usize] += length as greg_t,
            None => {
                libc::signal(libc::SIGILL, libc::SIG_DFL);
            }
        }
    }
}

/// Executes an instruction. Gives its length, or nothing where it is another one.
unsafe fn execute(tiles: &mut Tiles, code: &[u8; 10], registers: &[greg_t; 23]) -> Option<usize> {
    // VEX with three bytes, map 0F38, W0, 128 bits.
    let [0xc4, first, second, opcode, modrm, ..] = *code else {
        return None;
    };
    if first & 0x1f != 2 || second & 0x84 != 0 {
        return None;
    }
    let (prefix, vvvv) = (second & 3, usize::from(!second >> 3 & 15));
    let (reg, rm) = (usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    match (opcode, prefix, modrm >> 6) {
        (0x49, 0, 3) if modrm == 0xc0 => {
            (tiles.configured, tiles.sizes) = (false, [(0, 0); 8]);
            Some(5)
        }
        (0x49, 0, 0..3) if reg == 0 => {
            let (address, _, length) = memory(code, registers)?;
            // SAFETY: the instruction reads 64 bytes there.
            let configuration = unsafe { (address as *const [u8; 64]).read_unaligned() };
            configure(tiles, &configuration)?;
            Some(length)
        }
        (0x4b, 2 | 3, 0..3) if tiles.configured => {
            let (address, stride, length) = memory(code, registers)?;
            let (rows, bytes) = tiles.sizes[reg];
            for (row, tile) in tiles.bytes[reg][..rows].iter_mut().enumerate() {
                let memory = (address + row as isize * stride?) as *mut u8;
                // SAFETY: the instruction reads or writes the rows of the tile there.
                unsafe {
                    match prefix {
                        3 => ptr::copy_nonoverlapping(memory, tile.as_mut_ptr(), bytes),
                        _ => ptr::copy_nonoverlapping(tile.as_ptr(), memory, bytes),
                    }
                }
            }
            Some(length)
        }
        (0x5c, 2, 3) if tiles.configured => {
            multiply(tiles, reg, rm, vvvv)?;
            Some(5)
        }
        _ => None,
    }
}

/// The address that an operand in memory names, without the index; the index, where there is one; and the length of the
/// instruction.
fn memory(code: &[u8; 10], registers: &[greg_t; 23]) -> Option<(isize, Option<isize>, usize)> {
    const NUMBERS: [c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    let register = |number: u8| registers[NUMBERS[usize::from(number)] as usize] as isize;
    let [_, first, _, _, modrm, sib, ..] = *code;
    // The fourth bits of register numbers are inverted.
    let (index_bit, base_bit) = (8 & !first >> 3, 8 & !first >> 2);
    let (mode, mut base, mut index, mut at) = (modrm >> 6, modrm & 7 | base_bit, None, 5);
    if modrm & 7 == 4 {
        base = sib & 7 | base_bit;
        let number = sib >> 3 & 7 | index_bit;
        index = (number != 4).then(|| register(number) << (sib >> 6));
        at = 6;
    }
    let displacement = match mode {
        0 if base & 7 == 5 => return None,
        0 => 0,
        1 => isize::from(code[at] as i8),
        2 => i32::from_le_bytes(code[at..at + 4].try_into().ok()?) as isize,
        _ => return None,
    };
    let length = at + [0, 1, 4][usize::from(mode)];
    Some((register(base) + displacement, index, length))
}

/// `LDTILECFG`. Tiles become zeros.
fn configure(tiles: &mut Tiles, configuration: &[u8; 64]) -> Option<()> {
    let valid = configuration[0] == 1 && configuration[1..16].iter().all(|byte| *byte == 0);
    for (tile, size) in tiles.sizes.iter_mut().enumerate() {
        let bytes =
            u16::from_le_bytes([configuration[16 + 2 * tile], configuration[17 + 2 * tile]]);
        *size = (usize::from(configuration[48 + tile]), usize::from(bytes));
    }
    let fit =
        |(rows, bytes): &(usize, usize)| (1..=ROWS).contains(rows) && (1..=ROW).contains(bytes);
    tiles.bytes = [[[0; ROW]; ROWS]; 8];
    tiles.configured = valid && tiles.sizes.iter().all(fit);
    tiles.configured.then_some(())
}

/// `TDPBF16PS`: adds the products of the tiles `left` and `right` to the tile `sums`.
fn multiply(tiles: &mut Tiles, sums: usize, left: usize, right: usize) -> Option<()> {
    let [(rows, row), (left_rows, left_row), (pairs, right_row)] =
        [sums, left, right].map(|tile| tiles.sizes[tile]);
    if rows != left_rows || row != right_row || left_row != 4 * pairs {
        return None;
    }
    let element = |bytes: &[u8; ROW], index: usize| {
        let bits = u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]);
        flushed(f32::from_bits(u32::from(bits) << 16))
    };
    for m in 0..rows {
        for n in 0..row / 4 {
            let mut parts = [0_f32; 2];
            for k in 0..pairs {
                for (odd, part) in parts.iter_mut().enumerate() {
                    let a = element(&tiles.bytes[left][m], 2 * k + odd);
                    let b = element(&tiles.bytes[right][k], 2 * n + odd);
                    *part = flushed(a.mul_add(b, *part));
                }
            }
            let to = &mut tiles.bytes[sums][m][4 * n..4 * n + 4];
            let sum = flushed(f32::from_le_bytes([to[0], to[1], to[2], to[3]]));
            let sum = flushed(sum + flushed(parts[0] + parts[1]));
            to.copy_from_slice(&sum.to_le_bytes());
        }
    }
    Some(())
}

fn flushed(value: f32) -> f32 {
    match value.is_subnormal() {
        true => 0_f32.copysign(value),
        false => value,
    }
}
