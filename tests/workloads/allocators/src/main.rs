//! The program of allocs.rs, with the allocator that the feature names.

#[path = "../../allocs.rs"]
mod allocs;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(feature = "sampled")]
#[global_allocator]
static ALLOCATOR: profiler_alloc::Sampled = profiler_alloc::Sampled(std::alloc::System);

fn main() {
    allocs::main();
}
