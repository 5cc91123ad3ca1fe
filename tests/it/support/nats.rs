//! A real broker, `nats-server`, as a child process.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use super::{eventually, ports::free_port};

/// A broker; killed when dropped.
pub(crate) struct Nats {
    port: u16,
    args: Vec<String>,
    child: Option<Child>,
    folder: TempDir,
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Nats {
    /// Takes anybody.
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With these arguments too.
    pub(crate) async fn start_with(args: &[&str]) -> Self {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let folder = TempDir::new().expect("a folder");
        let mut nats = Self { port: free_port(), args, child: None, folder };
        nats.revive().await;
        nats
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it, on the port it had.
    pub(crate) async fn revive(&mut self) {
        // Debian's place for it is not in everybody's path.
        let program = ["/usr/sbin/nats-server", "/usr/bin/nats-server"];
        let program = program.into_iter().find(|path| Path::new(path).exists());
        let child = Command::new(program.unwrap_or("nats-server"))
            .args(["--addr", "127.0.0.1", "--port", &self.port.to_string()])
            .args(&self.args)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server is installed: scripts/setup.sh");
        self.child = Some(child);
        let addr = ("127.0.0.1", self.port);
        eventually("the broker accepts", async || {
            tokio::net::TcpStream::connect(addr).await.is_ok()
        })
        .await;
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.as_ref().expect("it runs").id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().expect("kill runs");
        assert!(status.success());
    }

    /// A client of it.
    pub(crate) async fn client(&self) -> async_nats::Client {
        async_nats::connect(format!("127.0.0.1:{}", self.port)).await.expect("connects")
    }
}
