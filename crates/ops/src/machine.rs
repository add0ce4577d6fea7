//! The machine: its processor and its memory.

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// The model name of the processor, or its architecture where the system does not tell the name.
#[must_use]
pub fn processor_name() -> String {
    let system =
        System::new_with_specifics(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()));
    let mut names = system.cpus().iter().map(|cpu| cpu.brand().trim());
    let name = names.find(|name| !name.is_empty());
    name.unwrap_or(std::env::consts::ARCH).to_owned()
}

/// Bytes of memory that this process may still take: what is free in the machine, in its container, and of the limit on
/// its address space (`ulimit -v`). `None` where the system does not tell.
#[must_use]
pub fn available_memory() -> Option<u64> {
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(memory);
    let free = Some(system.available_memory()).filter(|free| *free > 0);
    let container = system.cgroup_limits().map(|limits| limits.free_memory);
    [free, container, free_address_space()]
        .into_iter()
        .flatten()
        .min()
}

/// Bytes of the address space that are left below the process's limit, if there is one.
#[cfg(unix)]
fn free_address_space() -> Option<u64> {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::As).current?;
    let id = sysinfo::get_current_pid().ok()?;
    let mut system = System::new();
    let processes = sysinfo::ProcessesToUpdate::Some(&[id]);
    let memory = sysinfo::ProcessRefreshKind::nothing().with_memory();
    system.refresh_processes_specifics(processes, false, memory);
    Some(limit.saturating_sub(system.process(id)?.virtual_memory()))
}

#[cfg(not(unix))]
fn free_address_space() -> Option<u64> {
    None
}
