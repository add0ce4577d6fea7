//! The processor.

use sysinfo::{CpuRefreshKind, RefreshKind, System};

/// The model name of the processor, or its architecture where the system does not tell the name.
#[must_use]
pub fn processor_name() -> String {
    let system =
        System::new_with_specifics(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()));
    let mut names = system.cpus().iter().map(|cpu| cpu.brand().trim());
    let name = names.find(|name| !name.is_empty());
    name.unwrap_or(std::env::consts::ARCH).to_owned()
}
