//! The program `swell`: picks a role by its first argument.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = shim_command() {
        return code;
    }
    ExitCode::SUCCESS
}

/// `swell shim DIR`, before anything else: it must never become multi-threaded.
fn shim_command() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != "shim" {
        return None;
    }
    let dir = args.next()?;
    Some(groundswell::runner::shim::main(dir.as_ref()))
}
