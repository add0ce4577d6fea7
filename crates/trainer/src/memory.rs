//! Free memory, before it is needed: an allocation that fails would end the program without a message.

use anyhow::ensure;

/// Bytes of a mebibyte.
pub(crate) const MIB: u64 = 1 << 20;

/// Fails where fewer than `needed` bytes of memory are free for `what`, if the system tells.
pub(crate) fn require(needed: u64, what: &str) -> anyhow::Result<()> {
    let free = ops::available_memory().unwrap_or(u64::MAX);
    ensure!(
        needed <= free,
        "{what}: about {} MiB of memory are needed, and {} MiB are free; free some, or use a machine with more",
        needed.div_ceil(MIB),
        free / MIB
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_memory_than_there_is_is_refused() {
        require(1, "a byte").unwrap();
        let error = require(u64::MAX - 1, "the images").unwrap_err().to_string();
        assert!(
            error.starts_with("the images: about 17592186044416 MiB"),
            "{error}"
        );
    }
}
