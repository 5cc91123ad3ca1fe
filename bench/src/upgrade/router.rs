//! The router as a process, its successors, and the file they are started from.

use std::{
    fmt,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use warmroute_engine::process::ChildProcess;

use super::{Any, answer::Body, http1, process};

const READY_WITHIN: Duration = Duration::from_secs(30);
/// Sockets of a process that was killed are closed by then.
const PORTS_FREE_WITHIN: Duration = Duration::from_secs(5);
/// A successor that hangs must be given up before that.
const ANSWER_WITHIN: Duration = Duration::from_mins(1);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What may lie where the program should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// A program that ends at once.
    Exits,
    /// One that does nothing.
    Hangs,
    /// No program.
    Garbage,
    /// The program, but a configuration it refuses.
    Configuration,
}

impl Broken {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Exits, Self::Hangs, Self::Garbage, Self::Configuration];

    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Exits => "exits",
            Self::Hangs => "hangs",
            Self::Garbage => "garbage",
            Self::Configuration => "bad file",
        }
    }
}

/// Where its own listeners are.
#[derive(Debug, Clone, Copy)]
pub struct Listeners {
    /// Admin.
    pub admin: SocketAddr,
    /// Metrics.
    pub metrics: SocketAddr,
}

/// The router. Dropping it ends all of its processes.
pub struct Router {
    /// Where the copy of the program lies.
    folder: PathBuf,
    original: PathBuf,
    conf: PathBuf,
    log: PathBuf,
    listeners: Listeners,
    /// The one we started; its successors are its children.
    child: Option<ChildProcess>,
    starts: usize,
    pid: u32,
    /// All that ever served.
    pids: Vec<u32>,
}

impl Router {
    /// Copies the program into `folder` and starts it there; what it says goes to files named `log`.
    ///
    /// # Errors
    /// It does not get ready.
    pub async fn start(
        original: &Path,
        folder: &Path,
        conf: &Path,
        log: &Path,
        listeners: Listeners,
    ) -> Result<Self, Any> {
        let mut router = Self {
            folder: folder.to_owned(),
            original: original.to_owned(),
            conf: conf.to_owned(),
            log: log.to_owned(),
            listeners,
            child: None,
            starts: 0,
            pid: 0,
            pids: Vec::new(),
        };
        router.restore_program()?;
        router.launch().await?;
        Ok(router)
    }

    /// The process that serves.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Processor time of all that serve or drain.
    pub fn cpu(&self) -> Duration {
        self.pids.iter().map(|pid| process::cpu(*pid)).sum()
    }

    /// Starts one and waits until it is ready.
    ///
    /// # Errors
    /// It is not in time.
    pub async fn launch(&mut self) -> Result<(), Any> {
        self.starts += 1;
        let log = PathBuf::from(format!("{}-{}.log", self.log.display(), self.starts));
        let arguments = ["run".as_ref(), "--conf".as_ref(), self.conf.as_os_str()];
        let mut child = ChildProcess::start(self.program(), arguments, &log)?;
        self.pid = child.id();
        self.pids.push(self.pid);
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                let said = child.last_lines(3);
                if said.contains("Address already in use") && begun.elapsed() < PORTS_FREE_WITHIN {
                    // What was killed is still being taken apart.
                    sleep(LOOK_EVERY).await;
                    child = ChildProcess::start(self.program(), arguments, &log)?;
                    self.pid = child.id();
                    self.pids.push(self.pid);
                    continue;
                }
                return Err(format!("the router ended: {status}: {said}").into());
            }
            let ready = timeout(Duration::from_secs(1), self.ask("GET", "/readyz")).await;
            if matches!(ready, Ok(Ok((200, _)))) {
                break;
            }
            if begun.elapsed() > READY_WITHIN {
                return Err(format!("the router is not ready: {}", child.last_lines(3)).into());
            }
            sleep(LOOK_EVERY).await;
        }
        self.child = Some(child);
        Ok(())
    }

    /// Sends the serving process a signal.
    ///
    /// # Errors
    /// It is gone.
    pub fn signal(&self, signal: Signal) -> std::io::Result<()> {
        process::send(self.pid, signal)
    }

    /// Waits until this process is gone.
    ///
    /// # Errors
    /// It is not after `patience`.
    pub async fn gone(&mut self, pid: u32, patience: Duration) -> Result<(), Any> {
        let begun = Instant::now();
        while process::is_alive(pid) {
            if begun.elapsed() > patience {
                return Err(format!("process {pid} is there after {patience:?}").into());
            }
            sleep(LOOK_EVERY).await;
        }
        // Takes a child of ours off the list.
        if let Some(child) = &mut self.child {
            let _ = child.try_wait();
        }
        Ok(())
    }

    /// Asks for an upgrade, by a signal or over the admin listener; gives the successor's id.
    ///
    /// # Errors
    /// It says that it failed, or nobody else serves in time.
    pub async fn upgrade(&mut self, by_signal: bool) -> Result<u32, Any> {
        let old = self.pid;
        let begun = Instant::now();
        let failed = self.metric("warmroute_upgrades_total", "\"failed\"").await;
        let told = if by_signal {
            self.signal(Signal::USR2)?;
            None
        } else {
            let (status, answer) = timeout(ANSWER_WITHIN, self.ask("POST", "/upgrade")).await??;
            let pid = answer["pid"].as_u64().filter(|_| status == 200);
            Some(pid.ok_or_else(|| format!("{status}: {answer}"))? as u32)
        };
        loop {
            if let Some(pid) = self.serving().await
                && pid != old
            {
                if told.is_some_and(|told| told != pid) {
                    return Err(format!("{told:?} was told, {pid} serves").into());
                }
                self.pid = pid;
                self.pids.push(pid);
                return Ok(pid);
            }
            if self.metric("warmroute_upgrades_total", "\"failed\"").await > failed {
                return Err("a failed upgrade is counted".into());
            }
            if begun.elapsed() > ANSWER_WITHIN {
                return Err(format!("{old} still serves after {ANSWER_WITHIN:?}").into());
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Who serves now, as the admin listener says.
    pub async fn serving(&self) -> Option<u32> {
        let asked = timeout(Duration::from_secs(1), self.ask("GET", "/livez")).await;
        let (_, answer) = asked.ok()?.ok()?;
        answer["pid"].as_u64().map(|pid| pid as u32)
    }

    /// A request to the admin listener.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn ask(&self, method: &str, path: &str) -> Result<(u16, Value), Any> {
        let (status, text) = fetch(self.listeners.admin, method, path).await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    }

    /// Sum of a metric over the label sets that contain `label`; 0 when there is none.
    pub async fn metric(&self, name: &str, label: &str) -> f64 {
        let asked =
            timeout(Duration::from_secs(2), fetch(self.listeners.metrics, "GET", "/metrics")).await;
        let Ok(Ok((200, page))) = asked else { return f64::NAN };
        let value = |line: &str| {
            let rest = line.strip_prefix(name)?;
            let (labels, value) = rest.rsplit_once(' ')?;
            let is_it = rest.starts_with(['{', ' ']) && labels.contains(label);
            is_it.then(|| value.parse::<f64>().ok())?
        };
        page.lines().filter_map(value).sum()
    }

    /// Puts something else where the program should be.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn break_program(&self, broken: Broken) -> Result<(), Any> {
        // A name of its own, as what hangs must be known when it should be gone.
        let script = match broken {
            Broken::Exits => "#!/bin/sh\nexit 3\n".to_owned(),
            Broken::Hangs => {
                format!("#!/bin/sh\necho $$ > {}\nexec sleep 600\n", self.hanging().display())
            }
            Broken::Garbage => "\u{1}\u{2}no program\n".repeat(40),
            Broken::Configuration => return Ok(()),
        };
        let new = self.folder.join("new");
        std::fs::write(&new, script)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755))?;
        Ok(std::fs::rename(&new, self.program())?)
    }

    /// Id of the successor that hung.
    pub fn hung(&self) -> Option<u32> {
        std::fs::read_to_string(self.hanging()).ok()?.trim().parse().ok()
    }

    /// Puts the program in its place, in the way the installation of a package does.
    ///
    /// # Errors
    /// It cannot be copied.
    pub fn restore_program(&self) -> Result<(), Any> {
        let copy = self.folder.join("copy");
        // Copied once: to write so much at every upgrade would disturb what is measured.
        if !copy.exists() {
            std::fs::copy(&self.original, &copy)?;
        }
        // Removed, not renamed over: two links to one file would both stay.
        match std::fs::remove_file(self.program()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(std::fs::hard_link(&copy, self.program())?),
        }
    }

    fn program(&self) -> PathBuf {
        self.folder.join("warmroute")
    }

    fn hanging(&self) -> PathBuf {
        self.folder.join("hanging")
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        for pid in &self.pids {
            if process::is_alive(*pid) && process::is_from(*pid, &self.folder) {
                let _ = process::send(*pid, Signal::KILL);
            }
        }
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "router {} of {:?}", self.pid, self.pids)
    }
}

async fn fetch(addr: SocketAddr, method: &str, path: &str) -> Result<(u16, String), Any> {
    let mut conn = http1::Conn::to(addr).await.map_err(|failure| failure.text)?;
    let head = conn.ask(method, path, b"").await.map_err(|failure| failure.text)?;
    let whole = Body::H1(&mut conn).whole().await.map_err(|failure| failure.text)?;
    Ok((head.status, String::from_utf8_lossy(&whole).into_owned()))
}
