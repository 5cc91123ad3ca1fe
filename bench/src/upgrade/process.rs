//! Processes that are not our children: successors of the router, and theirs.

use std::{path::Path, time::Duration};

use rustix::process::{Pid, Signal, kill_process};

/// Whether it is there and not just a name nobody has taken off the list.
pub fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    !matches!(state, Some('Z' | 'X') | None)
}

/// Sends a signal.
///
/// # Errors
/// There is no such process.
pub fn send(pid: u32, signal: Signal) -> std::io::Result<()> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| std::io::Error::other("no process id"))?;
    Ok(kill_process(pid, signal)?)
}

/// Whether its program lies, or lay, in this folder: an id may have gone to somebody else.
pub fn is_from(pid: u32, folder: &Path) -> bool {
    std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path.starts_with(folder))
}

/// User and system time it has used.
pub fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let mut fields = after_name.split_whitespace().skip(11);
    let mut ticks = || fields.next().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks() + ticks()) * 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_living_from_the_dead() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        assert!(is_alive(child.id()));
        send(child.id(), Signal::KILL).expect("it is ours");
        // A zombie, until somebody waits for it.
        for _ in 0..500 {
            if !is_alive(child.id()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!is_alive(child.id()));
        child.wait().expect("it is ours");
        assert!(!is_alive(child.id()));
    }

    #[test]
    fn our_own_time_goes_up() {
        let me = std::process::id();
        let before = cpu(me);
        let mut sum = 0_u64;
        while cpu(me) <= before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(is_from(me, Path::new("/")));
    }
}
