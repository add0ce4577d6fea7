//! An allocator that keeps large blocks for the next one who asks.
//!
//! Training allocates the same activations and gradients in every step. Given back to the system, their
//! pages come back as fresh ones, which the kernel has to map and to clear: at a batch of 128, a tenth of
//! AlexNet's step.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::{Mutex, PoisonError};

/// What is smaller goes to the system's allocator.
const LEAST: usize = 1 << 20;

/// A cache line: vectors that begin at one never lie across two.
const ALIGNMENT: usize = 64;

/// Free blocks that are kept.
const SLOTS: usize = 256;

/// Allocations of large blocks after which one that nobody took goes back to the system: several
/// training steps.
const PATIENCE: u64 = 1024;

/// The system's allocator, but for blocks of a megabyte and more: when they are freed they are kept, and
/// given to the next one who asks for as much. For use as `#[global_allocator]`.
#[derive(Debug, Default)]
pub struct Recycling {
    free: Mutex<Free>,
}

/// A free block.
#[derive(Clone, Copy, Debug)]
struct Block {
    address: usize,
    layout: Layout,
    /// When it was freed, counted in allocations.
    freed: u64,
}

#[derive(Debug)]
struct Free {
    blocks: [Option<Block>; SLOTS],
    /// Allocations so far.
    clock: u64,
}

impl Default for Free {
    fn default() -> Self {
        Self::new()
    }
}

impl Free {
    const fn new() -> Self {
        Self {
            blocks: [None; SLOTS],
            clock: 0,
        }
    }

    /// Takes a block of this layout, the one freed last, and a block that has waited too long.
    fn take(&mut self, layout: Layout) -> (Option<Block>, Option<Block>) {
        self.clock += 1;
        let clock = self.clock;
        let fitting = |block: &Block| block.layout == layout;
        let newest = self
            .blocks
            .iter_mut()
            .filter(|slot| slot.as_ref().is_some_and(fitting))
            .max_by_key(|slot| slot.as_ref().map(|block| block.freed));
        let found = newest.and_then(Option::take);
        let stale = |block: &Block| block.freed + PATIENCE < clock;
        let stale = self
            .blocks
            .iter_mut()
            .find(|slot| slot.as_ref().is_some_and(stale))
            .and_then(Option::take);
        (found, stale)
    }

    /// Keeps a block; whether there was a place for it.
    fn keep(&mut self, address: usize, layout: Layout) -> bool {
        let freed = self.clock;
        match self.blocks.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => {
                *slot = Some(Block {
                    address,
                    layout,
                    freed,
                });
                true
            }
            None => false,
        }
    }
}

impl Recycling {
    /// An allocator that has kept nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            free: Mutex::new(Free::new()),
        }
    }

    /// The layout of the block for what is asked, where it is large: sizes are rounded up to a
    /// power of two or one and a half times one, so that similar ones share blocks. Pages past what was asked
    /// for are never touched, so the system does not provide them.
    fn block(layout: Layout) -> Option<Layout> {
        if layout.size() < LEAST || layout.align() > ALIGNMENT {
            return None;
        }
        let step = 1_usize << (layout.size().ilog2() - 1);
        let size = layout.size().checked_next_multiple_of(step)?;
        Layout::from_size_align(size, ALIGNMENT).ok()
    }

    /// A kept block, with whatever its last user left in it.
    fn recycled(&self, block: Layout) -> Option<*mut u8> {
        let (found, stale) = self
            .free
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take(block);
        if let Some(stale) = stale {
            // SAFETY: it came from `System` with this layout, and was just removed from those kept.
            unsafe { System.dealloc(stale.address as *mut u8, stale.layout) }
        }
        found.map(|found| found.address as *mut u8)
    }
}

// SAFETY: blocks come from `System` and are at least as large and as aligned as asked. `block` is a
// function of the layout, so a block is freed with the layout it was allocated with. A kept block is in
// one slot and leaves it when it is handed out, so nobody else has it. Nothing here panics or allocates.
unsafe impl GlobalAlloc for Recycling {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match Self::block(layout) {
            // SAFETY: the caller's layout.
            None => unsafe { System.alloc(layout) },
            Some(block) => self
                .recycled(block)
                // SAFETY: a block's size is not zero.
                .unwrap_or_else(|| unsafe { System.alloc(block) }),
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match Self::block(layout) {
            // SAFETY: the caller's layout.
            None => unsafe { System.alloc_zeroed(layout) },
            Some(block) => match self.recycled(block) {
                Some(address) => {
                    // SAFETY: the block holds at least as many bytes as are asked for.
                    unsafe { address.write_bytes(0, layout.size()) };
                    address
                }
                // SAFETY: a block's size is not zero.
                None => unsafe { System.alloc_zeroed(block) },
            },
        }
    }

    unsafe fn dealloc(&self, address: *mut u8, layout: Layout) {
        match Self::block(layout) {
            // SAFETY: it was allocated with this layout by `System`.
            None => unsafe { System.dealloc(address, layout) },
            Some(block) => {
                let kept = self
                    .free
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .keep(address as usize, block);
                if !kept {
                    // SAFETY: it was allocated with the block's layout by `System`.
                    unsafe { System.dealloc(address, block) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_freed_is_handed_out_again() {
        let allocator = Recycling::new();
        let layout = Layout::from_size_align(5 * LEAST - 3, 4).unwrap();
        // SAFETY: every block is written inside its size and freed once with its layout.
        unsafe {
            let first = allocator.alloc(layout);
            assert_eq!(first as usize % ALIGNMENT, 0);
            first.write_bytes(7, layout.size());
            let second = allocator.alloc(layout);
            assert_ne!(first, second);
            allocator.dealloc(first, layout);
            // Nearly as large.
            let nearly = Layout::from_size_align(layout.size() - 1000, 8).unwrap();
            let third = allocator.alloc_zeroed(nearly);
            assert_eq!(third, first);
            let bytes = std::slice::from_raw_parts(third, nearly.size());
            assert!(bytes.iter().all(|byte| *byte == 0));
            // Much larger.
            let larger = Layout::from_size_align(layout.size() * 2, 8).unwrap();
            let fourth = allocator.alloc(larger);
            assert!(fourth != second && fourth != third);
            allocator.dealloc(second, layout);
            allocator.dealloc(third, nearly);
            allocator.dealloc(fourth, larger);
        }
        let kept = |allocator: &Recycling| {
            let free = allocator.free.lock().unwrap();
            free.blocks.iter().flatten().count()
        };
        assert_eq!(kept(&allocator), 3);
        // What nobody wants goes back, one block an allocation.
        let other = Layout::from_size_align(100 * LEAST, 8).unwrap();
        for _ in 0..PATIENCE + 10 {
            // SAFETY: freed at once with its layout.
            unsafe { allocator.dealloc(allocator.alloc(other), other) };
        }
        assert_eq!(kept(&allocator), 1);
    }

    #[test]
    fn small_and_oddly_aligned_blocks_are_the_systems() {
        for (size, alignment) in [(LEAST - 1, 64), (8 * LEAST, 128), (1, 1)] {
            let layout = Layout::from_size_align(size, alignment).unwrap();
            assert_eq!(Recycling::block(layout), None);
        }
    }
}
