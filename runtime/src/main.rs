//! The `ramjet` binary: the command line of [`ramjet::cli`] and the allocator.

use std::process::ExitCode;

/// Workers allocate only while they warm up; the registry, the control thread and the command line
/// allocate many small strings, for which mimalloc is faster than the allocator of the C library.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ramjet::cli::run(std::env::args_os())
}
