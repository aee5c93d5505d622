//! The programs of the kernel tests, for a machine that has no compiler.

use profiler_tests::Workload;

/// Every program that a kernel test runs. A test in a virtual machine fails where one is missing here.
fn workloads() -> Vec<Workload> {
    let mut all: Vec<_> = [
        "burn", "bursts", "calls", "disk", "ends", "family", "faults", "files", "halves", "heir", "inlined", "jit",
        "locks", "many", "mappings", "opens", "phases", "sockets", "split", "switches", "syscalls", "waits",
    ]
    .map(Workload::c)
    .into();
    all.extend(["burn-one", "burn-two", "wanted-name"].map(|name| Workload::c("burn").called(name)));
    all.extend([
        Workload::c("burn").called("burn-stripped").flag("-s"),
        Workload::c("plugin").called("libplugin.so").flag("-shared").flag("-fPIC"),
        Workload::c("seeded"),
        Workload::c("threads"),
        Workload::cpp("split").called("split-cpp"),
        Workload::c("inlined").flag("-Wl,--build-id"),
        Workload::rust("awaits").flag("-C").flag("symbol-mangling-version=v0"),
        Workload::rust("awaits").flag("-C").flag("debuginfo=2"),
        Workload::rust("awaits").flag("-C").flag("debuginfo=line-tables-only"),
        Workload::rust("split").called("split-rs"),
        Workload::rust("split").called("split-rs-nofp").flag("-Cforce-frame-pointers=no"),
    ]);
    all.extend(crate::record_go::workloads());
    all.extend(crate::record_go::switches());
    all.extend(crate::record_go_servers::workloads());
    let frames = |name| Workload::c("frames").called(name);
    let mut without = vec![
        Workload::c("split").called("split-nofp"),
        Workload::cpp("split").called("split-cpp-nofp"),
        Workload::c("burn").called("burn-nofp"),
        Workload::c("many").called("many-nofp"),
        Workload::c("syscalls").called("syscalls-nofp"),
        Workload::c("reopens"),
        Workload::c("churn"),
        Workload::c("plugin").called("libplugin.so").flag("-shared").flag("-fPIC").flag("-Wl,--build-id=none"),
        frames("noreturn").flag("-fno-toplevel-reorder"),
        frames("noreturn").flag("-fno-toplevel-reorder").flag("-fno-align-functions"),
    ];
    all.extend([crate::record_alloc::allocs(), crate::record_alloc::allocs_cpp(), crate::record_alloc::allocs_rust()]);
    all.extend(crate::record_alloc::allocs_go());
    all.extend(crate::record_alloc::allocs_go_sampled());
    all.extend(crate::record_allocators::workloads());
    all.push(crate::record_leaks::leaks());
    all.push(crate::record_function::latency());
    all.extend(crate::record_function::latency_go());
    without.extend(["raised", "timer", "alternate", "deep"].map(frames));
    for name in ["realigned", "restless"] {
        without.push(frames(name));
        without.push(frames(name).flag("-mstackrealign").flag("-mincoming-stack-boundary=3"));
    }
    all.extend(without.into_iter().map(crate::record_unwinding::without_frame_pointers));
    all
}

#[test]
#[ignore = "`cargo xtask vm` runs it, to build before the machine starts what tests would build in it"]
fn every_workload_builds() {
    for workload in workloads() {
        println!("workload: {}", workload.build().display());
    }
}
