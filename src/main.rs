//! The binary; everything is in the library.

use std::process::ExitCode;

/// Gives back what thousands of streams have freed: docs/adr/0018.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    warmroute::cli::main()
}
