//! The machine: its processor and its memory.

use sysinfo::{
    CGroupLimits, CpuRefreshKind, MemoryRefreshKind, Process, ProcessRefreshKind,
    ProcessesToUpdate, RefreshKind, System,
};

/// The model name of the processor, or its architecture where the system does not tell the name.
#[must_use]
pub fn processor_name() -> String {
    let system =
        System::new_with_specifics(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()));
    let mut names = system.cpus().iter().map(|cpu| cpu.brand().trim());
    let name = names.find(|name| !name.is_empty());
    name.unwrap_or(std::env::consts::ARCH).to_owned()
}

/// Bytes of memory that this process may still take: what is free in the machine, in its container or job, and of the
/// limit on its address space (`ulimit -v`). `None` where the system does not tell.
#[must_use]
pub fn available_memory() -> Option<u64> {
    let memory = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    let mut system = System::new_with_specifics(memory);
    let free = Some(system.available_memory()).filter(|free| *free > 0);
    let id = sysinfo::get_current_pid().ok();
    if let Some(id) = id {
        let processes = ProcessesToUpdate::Some(&[id]);
        let memory = ProcessRefreshKind::nothing().with_memory();
        system.refresh_processes_specifics(processes, false, memory);
    }
    let process = id.and_then(|id| system.process(id));
    let limits = process.and_then(Process::cgroup_limits);
    let limits = limits.or_else(|| system.cgroup_limits());
    let container = limits.and_then(|limits| free_in_container(&limits, system.total_memory()));
    let address_space = process.and_then(|process| free_address_space(process.virtual_memory()));
    [free, container, address_space].into_iter().flatten().min()
}

/// Bytes that are left below a control group's limit, if it has one. Files in the page cache count as free, because the
/// kernel drops them when memory is needed.
fn free_in_container(limits: &CGroupLimits, machine: u64) -> Option<u64> {
    let is_limited = limits.total_memory < machine;
    is_limited.then(|| limits.total_memory.saturating_sub(limits.rss))
}

/// Bytes of the address space that are left below the process's limit, if there is one.
#[cfg(unix)]
fn free_address_space(used: u64) -> Option<u64> {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::As).current?;
    Some(limit.saturating_sub(used))
}

#[cfg(not(unix))]
fn free_address_space(_: u64) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_cache_of_a_container_is_free() {
        let limits = |total_memory| CGroupLimits {
            total_memory,
            // The page cache takes the rest.
            free_memory: 0,
            free_swap: 0,
            rss: 100,
        };
        assert_eq!(free_in_container(&limits(2000), 8000), Some(1900));
        assert_eq!(free_in_container(&limits(50), 8000), Some(0));
        assert_eq!(free_in_container(&limits(8000), 8000), None);
    }
}
