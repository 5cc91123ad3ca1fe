//! A service manager as the binary sees one: it hears the binary's notifications, and the listening
//! sockets it hands down outlive the processes that use them.
//!
//! It follows sd_notify(3), sd_listen_fds(3) and sd_watchdog_enabled(3). What a real systemd makes of
//! all that is tested by `make test-systemd`.

use std::{
    collections::HashMap,
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::{
    net::UnixDatagram,
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{Answer, Ask, Conn, Proto, Worker, eventually, free_port, within};

/// The first descriptor that is handed down.
const LISTEN_FDS_START: i32 = 3;
/// Longest notification; ours are far shorter.
const NOTIFICATION_BYTES_MAX: usize = 4096;
/// Variables that speak of one process; a shell puts the id it shares with the binary into them.
const FOR_PID: [&str; 2] = ["LISTEN_PID", "WATCHDOG_PID"];

/// A notification: `NAME=value` lines.
#[derive(Debug, Clone)]
pub(crate) struct Notification {
    pub(crate) at: Instant,
    text: String,
}

impl Notification {
    /// The value of a field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    }

    /// Whether it has this line.
    pub(crate) fn says(&self, line: &str) -> bool {
        self.text.lines().any(|known| known == line)
    }
}

/// A service of one binary, one worker and one listening address.
pub(crate) struct Unit {
    addr: SocketAddr,
    admin: SocketAddr,
    worker: String,
    sockets: Vec<TcpListener>,
    env: HashMap<&'static str, String>,
    child: Option<Child>,
    started: Vec<u32>,
    heard: Arc<Mutex<Vec<Notification>>>,
    hearing: JoinHandle<()>,
    folder: TempDir,
}

impl Drop for Unit {
    fn drop(&mut self) {
        self.hearing.abort();
        for pid in self.successors() {
            let _ = Command::new("kill").args(["-s", "KILL", &pid.to_string()]).status();
        }
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- heard: {:#?}", self.heard.lock());
            eprintln!("--- stderr of warmroute\n{}", self.stderr());
        }
    }
}

impl Unit {
    /// In front of this worker; not started.
    pub(crate) fn new(worker: &Worker) -> Self {
        let folder = TempDir::new().expect("a folder");
        let socket = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let hearing = tokio::spawn(hear(socket, heard.clone()));
        let [addr, admin] = [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port())));
        let mut env = HashMap::new();
        env.insert("NOTIFY_SOCKET", folder.path().join("notify").display().to_string());
        let worker = worker.url().to_owned();
        let (sockets, child, started) = (Vec::new(), None, Vec::new());
        let unit =
            Self { addr, admin, worker, sockets, env, child, started, heard, hearing, folder };
        unit.configure("");
        unit
    }

    /// With a listening socket that stays when a process ends.
    pub(crate) fn with_socket(mut self) -> Self {
        self.sockets.push(TcpListener::bind(self.addr).expect("a free port"));
        self.set("LISTEN_FDS", &self.sockets.len().to_string());
        self.set("LISTEN_PID", "its own");
        self
    }

    /// Sets a variable of the environment; one of `FOR_PID` becomes the process's own id for "its own".
    pub(crate) fn set(&mut self, name: &'static str, value: &str) {
        self.env.insert(name, value.to_owned());
    }

    /// Writes the configuration, with `more` at its end.
    pub(crate) fn configure(&self, more: &str) {
        let Self { addr, admin, worker, .. } = self;
        let yaml = format!(
            "listen: {addr}\nadmin: {{listen: {admin}}}\nthreads: 2\nkv_events: off\n\
             health: {{interval_ms: 100}}\nworkers: [{{id: w0, url: \"{worker}\"}}]\n{more}"
        );
        fs::write(self.conf(), yaml).expect("writes");
    }

    /// The file `configure` writes.
    pub(crate) fn conf(&self) -> PathBuf {
        self.folder.path().join("warmroute.yaml")
    }

    /// Starts the binary; does not wait for anything.
    pub(crate) fn start(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        let script = FOR_PID.map(|name| {
            format!("if [ \"${name}\" = 'its own' ]; then {name}=$$; export {name}; fi; ")
        });
        let mappings = self.sockets.iter().zip(LISTEN_FDS_START..).map(|(socket, child_fd)| {
            let parent_fd = socket.try_clone().expect("a descriptor").into();
            FdMapping { parent_fd, child_fd }
        });
        let log = |name| {
            let path = self.folder.path().join(name);
            File::options().create(true).append(true).open(path).expect("a log")
        };
        // The id must be known before the binary runs: the shell becomes the binary.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", &format!("{} exec \"$0\" \"$@\"", script.concat())])
            .arg(env!("CARGO_BIN_EXE_warmroute"))
            .args(["run", "--conf"])
            .arg(self.conf())
            .envs(&self.env)
            .stdin(Stdio::null())
            .stdout(log("stdout"))
            .stderr(log("stderr"))
            .fd_mappings(mappings.collect())
            .expect("descriptors of their own");
        let child = command.spawn().expect("starts");
        self.started.push(child.id());
        self.child = Some(child);
    }

    /// Starts the binary and waits until it says that it is ready.
    pub(crate) async fn start_ready(&mut self) {
        let before = self.count("READY=1");
        self.start();
        eventually("it is ready", async || self.count("READY=1") > before).await;
    }

    /// Kills what `start` started; nothing if that has gone.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Sends a signal to what `start` started.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.as_ref().expect("it runs").id().to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().expect("kill runs");
        assert!(status.success());
    }

    /// Waits until the process has ended by itself.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        let child = self.child.as_mut().expect("it runs");
        eventually("the process ends", async || {
            status = child.try_wait().expect("the child is ours");
            status.is_some()
        })
        .await;
        self.child = None;
        status.expect("it ended")
    }

    /// All notifications so far, of all processes.
    pub(crate) fn heard(&self) -> Vec<Notification> {
        self.heard.lock().clone()
    }

    /// Notifications with this line.
    pub(crate) fn count(&self, line: &str) -> usize {
        self.heard.lock().iter().filter(|notification| notification.says(line)).count()
    }

    /// The last value of a field.
    pub(crate) fn last(&self, field: &str) -> Option<String> {
        let heard = self.heard.lock();
        heard.iter().rev().find_map(|one| one.field(field).map(str::to_owned))
    }

    /// Processes that said to be the main one and were not started by `start`.
    pub(crate) fn successors(&self) -> Vec<u32> {
        let heard = self.heard.lock();
        let main = heard.iter().filter_map(|one| one.field("MAINPID")?.parse().ok());
        main.filter(|pid| !self.started.contains(pid)).collect()
    }

    /// Sends a signal to the last successor.
    pub(crate) fn signal_successor(&self, name: &str) {
        let pid = self.successors().last().expect("a successor").to_string();
        let status = Command::new("kill").args(["-s", name, &pid]).status().expect("kill runs");
        assert!(status.success(), "it has left");
    }

    /// Whether the last successor runs.
    pub(crate) fn successor_runs(&self) -> bool {
        // One that ended stays a zombie while nobody asks for its status.
        self.successor_stat().is_some_and(|(state, _)| state != "Z")
    }

    /// Whether what `start` started is the parent of the last successor.
    pub(crate) fn successor_is_a_child(&self) -> bool {
        let ours = self.started.last().map(u32::to_string);
        self.successor_stat().is_some_and(|(_, parent)| Some(parent) == ours)
    }

    /// State and parent; none once it has gone.
    fn successor_stat(&self) -> Option<(String, String)> {
        let pid = *self.successors().last().expect("a successor");
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit(") ").next()?.split(' ').map(str::to_owned);
        Some((fields.next()?, fields.next()?))
    }

    /// The listening address.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Sends on a fresh connection and reads the whole answer.
    pub(crate) async fn ask(&self, ask: &Ask) -> Answer {
        let conn = within("a connection", Conn::open(self.addr, Proto::H1)).await;
        conn.expect("connects").ask(ask).await
    }

    /// What the processes wrote to stderr.
    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default()
    }
}

async fn hear(socket: UnixDatagram, heard: Arc<Mutex<Vec<Notification>>>) {
    let mut bytes = vec![0; NOTIFICATION_BYTES_MAX];
    while let Ok(length) = socket.recv(&mut bytes).await {
        let text = String::from_utf8(bytes[..length].to_vec()).expect("UTF-8");
        heard.lock().push(Notification { at: Instant::now(), text });
    }
}

/// Whether nothing for which `holds` comes within this time.
pub(crate) async fn never(time: Duration, mut holds: impl AsyncFnMut() -> bool) -> bool {
    let watch = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(time, watch).await.is_err()
}
