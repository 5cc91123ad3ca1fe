//! Child processes that end with us, and the CPU time they used.

use std::{
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A child that is killed when dropped.
pub struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Starts `command` without its output.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut command: Command) -> std::io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().map(Self)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// User and system time used so far.
    pub fn cpu(&self) -> Duration {
        cpu_of(self.0.id()).unwrap_or_default()
    }

    /// Resident memory, bytes.
    pub fn resident(&self) -> u64 {
        let path = format!("/proc/{}/statm", self.0.id());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
    }
}

/// From /proc/PID/stat: fields 14 and 15, in ticks of 1/100 s.
fn cpu_of(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit(')').next()?;
    let fields: Vec<_> = after_name.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * 10))
}

/// Addresses nobody listens on (any more), no two alike. Below the range from which the kernel takes
/// ports for outgoing connections, so that none of those takes one before it is bound.
///
/// # Errors
/// When there are not that many.
pub fn free_addresses(count: usize) -> std::io::Result<Vec<SocketAddr>> {
    let start = 10_000 + (std::process::id() % 15_000) as u16;
    let bound = |port| TcpListener::bind(("127.0.0.1", port)).ok();
    let held: Vec<_> = (start..32_000).filter_map(bound).take(count).collect();
    if held.len() < count {
        return Err(std::io::Error::other("too few free ports"));
    }
    held.iter().map(TcpListener::local_addr).collect()
}

/// Waits until something accepts on `addr`.
pub fn wait_for(addr: SocketAddr) {
    for _ in 0..500 {
        if TcpStream::connect(addr).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// This bench as a child, in another role.
///
/// # Errors
/// When our own path is not known.
pub fn role(name: &str, args: &[String]) -> std::io::Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(name).args(args);
    Ok(command)
}

/// The product's binary beside ours.
///
/// # Errors
/// When our own path is not known or it was not built.
pub fn warmroute(conf: &std::path::Path) -> std::io::Result<Command> {
    let mut path: PathBuf = std::env::current_exe()?;
    path.set_file_name("warmroute");
    if !path.exists() {
        let text = format!("{} is missing: cargo build --release", path.display());
        return Err(std::io::Error::other(text));
    }
    let mut command = Command::new(path);
    command.args(["run", "--conf"]).arg(conf);
    Ok(command)
}

/// Writes a configuration of warmroute in front of `workers`.
///
/// # Errors
/// When the file cannot be written.
pub fn write_conf(
    path: &std::path::Path,
    listen: SocketAddr,
    metrics: SocketAddr,
    workers: &[SocketAddr],
    threads: usize,
) -> std::io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    writeln!(file, "listen: {listen}\nthreads: {threads}\nmetrics: {{listen: \"{metrics}\"}}")?;
    writeln!(file, "log: {{level: warn, access: true}}\nhealth: {{interval_ms: 1000}}\nworkers:")?;
    for (at, worker) in workers.iter().enumerate() {
        writeln!(file, "  - {{id: w{at}, url: \"http://{worker}\"}}")?;
    }
    Ok(())
}
