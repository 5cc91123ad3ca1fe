//! `warmroute demo`, as somebody runs it who has just built it.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// It takes some 50 s on an idle machine.
const WHOLE_DEMO: Duration = Duration::from_secs(170);
const SOON: Duration = Duration::from_secs(20);

struct Demo {
    child: Child,
    folder: TempDir,
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Demo {
    fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        let log = |name: &str| std::fs::File::create(folder.path().join(name)).expect("creates");
        let child = Command::new(env!("CARGO_BIN_EXE_warmroute"))
            .arg("demo")
            // Where it makes its own folder: what is left there is found.
            .env("TMPDIR", folder.path())
            .stdin(Stdio::null())
            .stdout(log("stdout"))
            .stderr(log("stderr"))
            .spawn()
            .expect("starts");
        Self { child, folder }
    }

    fn said(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default()
    }

    /// Processes whose command line names the demo's folder: its routers.
    fn routers(&self) -> Vec<u32> {
        let folder = self.folder.path().display().to_string();
        let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
        let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        ids.filter(|id| {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&folder)
        })
        .collect()
    }

    /// Its exit status.
    async fn ended(&mut self, within: Duration) -> Option<i32> {
        let until = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                return status.code();
            }
            let (out, err) = (self.said("stdout"), self.said("stderr"));
            assert!(Instant::now() < until, "not over within {within:?}:\n{out}\n{err}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.routers(), [] as [u32; 0], "routers are left");
        let left: Vec<_> = std::fs::read_dir(self.folder.path())
            .expect("the folder")
            .map(|entry| entry.expect("readable").file_name())
            .filter(|name| name != "stdout" && name != "stderr")
            .collect();
        assert!(left.is_empty(), "files are left: {left:?}");
    }
}

#[tokio::test]
async fn it_compares_three_policies_and_cleans_up() {
    let mut demo = Demo::start();
    let status = demo.ended(WHOLE_DEMO).await;
    let (out, err) = (demo.said("stdout"), demo.said("stderr"));
    assert_eq!(status, Some(0), "{out}\n{err}");
    assert!(out.contains("SIMULATED"), "{out}");
    let mut hit_rates = Vec::new();
    for policy in ["round-robin", "least-loaded", "prefix-aware"] {
        let row = out.lines().find(|line| line.starts_with(&format!("{policy} ")));
        let row = row.unwrap_or_else(|| panic!("no row of {policy}:\n{out}"));
        // p50 p95 p99 hit % requests-a-second errors ratio, ratio
        let words: Vec<_> = row.split_whitespace().collect();
        assert_eq!(words.len(), 10, "{row}");
        let number = |at: usize| words[at].parse::<f64>().unwrap_or_else(|_| panic!("{row}"));
        assert!(number(1) <= number(2) && number(2) <= number(3), "{row}");
        assert!(number(6) > 0.0, "{row}");
        assert_eq!(words[7], "0", "requests failed: {row}");
        hit_rates.push(number(4));
    }
    assert!(hit_rates[2] > hit_rates[0] && hit_rates[2] > hit_rates[1], "{out}");
    demo.assert_nothing_left();
}

#[tokio::test]
async fn somebody_who_loses_patience_leaves_nothing_behind() {
    for signal in ["INT", "TERM"] {
        let mut demo = Demo::start();
        let until = Instant::now() + SOON;
        while demo.routers().is_empty() {
            assert!(Instant::now() < until, "no router: {}", demo.said("stderr"));
            sleep(Duration::from_millis(10)).await;
        }
        let id = demo.child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().expect("kill").success());
        let status = demo.ended(SOON).await;
        assert_ne!(status, Some(0), "it was not run to its end");
        demo.assert_nothing_left();
    }
}
