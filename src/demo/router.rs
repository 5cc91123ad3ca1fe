//! The router of the demo: this program again, as a child process.

use std::fmt::Write;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use warmroute_engine::{EngineHandle, load, process::ChildProcess};

use super::{DemoError, worker_id};

const READY_WITHIN: Duration = Duration::from_secs(15);
const POLL_EVERY: Duration = Duration::from_millis(50);
/// Nothing is in flight when the router is stopped; one that lingers is killed.
const STOP_WITHIN: Duration = Duration::from_millis(1500);
/// Lines of the child's output in an error.
const LINES_SHOWN: usize = 3;

/// The addresses of one router's listeners.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ports([u16; 4]);

impl Ports {
    /// Ports nobody listens on, from below the range that the kernel hands out by itself: nobody who
    /// binds port 0 or connects takes one before the router does.
    pub(super) fn free() -> Result<Self, DemoError> {
        let start = 10_000 + (std::process::id() % 15_000) as u16;
        // All are bound at once, so that they differ.
        let bound = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok().map(|l| (port, l));
        let held: Vec<_> = (start..32_000).filter_map(bound).take(4).collect();
        let ports: Vec<u16> = held.iter().map(|(port, _)| *port).collect();
        ports
            .try_into()
            .map(Self)
            .map_err(|_| io::Error::from(io::ErrorKind::AddrInUse))
            .map_err(DemoError::system("cannot find free ports"))
    }

    pub(super) fn listen(self) -> String {
        self.address(0)
    }

    pub(super) fn admin(self) -> String {
        self.address(1)
    }

    pub(super) fn metrics(self) -> String {
        self.address(2)
    }

    pub(super) fn reports(self) -> String {
        self.address(3)
    }

    fn address(self, index: usize) -> String {
        format!("127.0.0.1:{}", self.0[index])
    }
}

/// A directory of the demo's own, gone with it.
#[derive(Debug)]
pub(super) struct WorkDir(PathBuf);

impl WorkDir {
    pub(super) fn create() -> Result<Self, DemoError> {
        let process = std::process::id();
        // A directory that is there already may be somebody's trap: only a fresh one will do.
        for attempt in 0..100 {
            let path = std::env::temp_dir().join(format!("warmroute-demo-{process}-{attempt}"));
            match std::fs::create_dir(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(cannot_create(source)),
            }
        }
        Err(cannot_create(io::ErrorKind::AlreadyExists.into()))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        // Nobody is left to tell if that fails.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn cannot_create(source: io::Error) -> DemoError {
    DemoError::System { what: "cannot create a temporary directory", source }
}

/// A router that takes traffic. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Router {
    child: ChildProcess,
}

impl Router {
    /// Starts a router and waits until it is ready.
    pub(super) async fn start(
        program: &Path,
        dir: &WorkDir,
        ports: Ports,
        policy: &str,
        engines: &[EngineHandle],
    ) -> Result<Self, DemoError> {
        let conf = dir.file(&format!("{policy}.yaml"));
        let urls: Vec<String> = engines.iter().map(EngineHandle::url).collect();
        std::fs::write(&conf, config_yaml(ports, policy, &urls))
            .map_err(DemoError::system("cannot write the router's configuration"))?;
        let arguments = ["run".as_ref(), "--conf".as_ref(), conf.as_os_str()];
        let log = dir.file(&format!("{policy}.log"));
        let child = ChildProcess::start(program, arguments, &log)
            .map_err(DemoError::system("cannot start the router"))?;
        let mut router = Self { child };
        match tokio::time::timeout(READY_WITHIN, router.until_ready(&ports.admin())).await {
            Ok(ready) => ready.map(|()| router),
            Err(_) => Err(DemoError::RouterNotReady {
                seconds: READY_WITHIN.as_secs(),
                said: router.said(),
            }),
        }
    }

    /// Lets it go in good order.
    pub(super) fn stop(self) -> Result<(), DemoError> {
        let stopped = self.child.stop(STOP_WITHIN);
        stopped.map(|_| ()).map_err(DemoError::system("cannot stop the router"))
    }

    async fn until_ready(&mut self, admin: &str) -> Result<(), DemoError> {
        let admin = format!("http://{admin}");
        loop {
            let failed = DemoError::system("cannot watch the router");
            if let Some(status) = self.child.try_wait().map_err(failed)? {
                return Err(DemoError::RouterEnded { status, said: self.said() });
            }
            if load::fetch(&admin, "/readyz").await.is_ok_and(|(status, _)| status == 200) {
                return Ok(());
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
    }

    /// The end of what it printed, in one line.
    fn said(&self) -> String {
        match self.child.last_lines(LINES_SHOWN).replace('\n', " | ") {
            said if said.is_empty() => "it printed nothing".to_owned(),
            said => said,
        }
    }
}

fn config_yaml(ports: Ports, policy: &str, urls: &[String]) -> String {
    let (listen, admin, metrics, reports) =
        (ports.listen(), ports.admin(), ports.metrics(), ports.reports());
    let mut yaml = format!(
        "listen: {listen}\nadmin: {{listen: \"{admin}\"}}\nmetrics: {{listen: \"{metrics}\"}}\n\
         reports: {{listen: \"{reports}\"}}\npolicy: {policy}\nworkers:\n"
    );
    for (index, url) in urls.iter().enumerate() {
        writeln!(yaml, "  - {{id: {}, url: \"{url}\"}}", worker_id(index))
            .expect("a String takes all that is written to it");
    }
    yaml
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_every_listener_and_worker() {
        let ports = Ports([1001, 1002, 1003, 1004]);
        let urls = ["http://127.0.0.1:1".to_owned(), "http://127.0.0.1:2".to_owned()];
        assert_eq!(
            config_yaml(ports, "prefix-aware", &urls),
            "listen: 127.0.0.1:1001\nadmin: {listen: \"127.0.0.1:1002\"}\n\
             metrics: {listen: \"127.0.0.1:1003\"}\nreports: {listen: \"127.0.0.1:1004\"}\n\
             policy: prefix-aware\nworkers:\n  - {id: sim0, url: \"http://127.0.0.1:1\"}\n  \
             - {id: sim1, url: \"http://127.0.0.1:2\"}\n"
        );
    }

    #[test]
    fn a_work_dir_goes_with_its_files() {
        let dir = WorkDir::create().expect("a temporary directory");
        let other = WorkDir::create().expect("another one");
        assert_ne!(dir.0, other.0);
        let file = dir.file("x");
        std::fs::write(&file, "x").expect("it is writable");
        drop(dir);
        assert!(!file.exists() && other.0.exists());
    }
}
