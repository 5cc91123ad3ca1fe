//! The binary; everything is in the library.

use std::process::ExitCode;

/// glibc's allocator keeps what thousands of streams have freed.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    warmroute::cli::main()
}
