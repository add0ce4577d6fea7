//! How glibc treats freed memory.

/// Has glibc keep freed memory for the next allocation instead of returning it to the system. Training allocates the
/// same activations and gradients in every step; fresh pages for them cost a tenth of AlexNet's step. For the start of
/// a program, before other threads exist. It does nothing where the allocator is not glibc's.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (parameter, value) in [
        // One heap for all threads, which large blocks are also taken from, and which grows by 64 MiB and never shrinks.
        (libc::M_ARENA_MAX, 1),
        (libc::M_MMAP_MAX, 0),
        (libc::M_TOP_PAD, 64 << 20),
        (libc::M_TRIM_THRESHOLD, -1),
    ] {
        // SAFETY: it sets a parameter of the allocator. A refusal leaves the default, which is slower and as correct.
        unsafe { libc::mallopt(parameter, value) };
    }
}
