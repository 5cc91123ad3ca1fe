//! The OpenAI client for Python, as most applications use it, in front of two simulated engines.
//!
//! What is asserted stands in tests/python/openai_client.py; here is what goes on meanwhile.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::OnceLock,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{process::Command, time::timeout};
use warmroute_engine::{Engine, EngineHandle, EngineOptions};

use crate::support::{Lb, eventually, lb};

/// Of one scenario; an import of the client alone takes about a second.
const LIMIT: Duration = Duration::from_mins(1);

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A Python that has the client: `WARMROUTE_TEST_PYTHON`, or one of our own below target/.
fn python() -> &'static Path {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let python = PYTHON.get_or_init(|| match std::env::var_os("WARMROUTE_TEST_PYTHON") {
        Some(python) => {
            let python = PathBuf::from(python);
            run(&python, &["-c", "import openai"]).map(|()| python)
        }
        None => make_python(),
    });
    python.as_ref().unwrap_or_else(|why| {
        panic!(
            "no Python with the OpenAI client: {why}\nSet WARMROUTE_TEST_PYTHON to one that has \
             what tests/python/requirements.txt lists, or let `python3 -m venv` and `pip install` \
             work here."
        )
    })
}

fn run(program: &Path, args: &[&str]) -> Result<(), String> {
    let output = std::process::Command::new(program).args(args).output();
    let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{} {} ({}): {said}", program.display(), args.join(" "), output.status))
}

fn make_python() -> Result<PathBuf, String> {
    // CARGO_TARGET_TMPDIR is target/tmp.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().ok_or("no target/")?;
    let (venv, requirements) =
        (target.join("test-venv"), root().join("tests/python/requirements.txt"));
    let python = venv.join("bin/python");
    let wanted = std::fs::read_to_string(&requirements).map_err(|error| error.to_string())?;
    let marker = venv.join(".ready");
    // Another test binary may be at it.
    let lock = std::fs::File::create(target.join("test-venv.lock"));
    let lock = lock.map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;
    if std::fs::read_to_string(&marker).is_ok_and(|made| made == wanted) {
        return Ok(python);
    }
    run(Path::new("python3"), &["-m", "venv", &venv.display().to_string()])?;
    let requirements = requirements.display().to_string();
    run(
        &python,
        &["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", &requirements],
    )?;
    std::fs::write(&marker, wanted).map_err(|error| error.to_string())?;
    Ok(python)
}

/// Two engines that answer some 500 tokens a second, and the router in front of them.
async fn scene() -> (Lb, Vec<EngineHandle>) {
    let options = || EngineOptions { speed: 4.0, answer_tokens: 16, ..EngineOptions::default() };
    let engines: Vec<_> = (0..2).map(|_| Engine::start(options()).expect("an engine")).collect();
    let lb = lb()
        .external("e0", &engines[0].url(), "{}")
        .external("e1", &engines[1].url(), "{}")
        .config("index: {block_bytes: 64}\nlimits: {body_bytes_max: 200000}")
        .start()
        .await;
    (lb, engines)
}

/// A running scenario.
struct Client {
    child: tokio::process::Child,
    scenario: &'static str,
    folder: TempDir,
}

impl Client {
    fn start(lb: &Lb, scenario: &'static str) -> Self {
        let folder = TempDir::new().expect("a folder");
        let child = Command::new(python())
            .arg(root().join("tests/python/openai_client.py"))
            .args([&format!("http://{}", lb.addr()), scenario])
            .arg(folder.path().join("signal"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("Python starts");
        Self { child, scenario, folder }
    }

    /// Waits until the script says that it has come so far.
    async fn signalled(mut self) -> Self {
        let file = self.folder.path().join("signal");
        eventually("the script gives its signal", async || {
            file.exists() || self.child.try_wait().expect("it is ours").is_some()
        })
        .await;
        if !file.exists() {
            self.succeeds().await;
            panic!("it ended without a signal");
        }
        self
    }

    /// Waits for its end; it must have found nothing wrong.
    async fn succeeds(self) {
        let output = timeout(LIMIT, self.child.wait_with_output()).await;
        let output = output.unwrap_or_else(|_| panic!("{} hangs", self.scenario)).expect("output");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{}:\n{out}{err}", self.scenario);
        assert_eq!((&*out, &*err), ("", ""), "{} prints nothing but failures", self.scenario);
    }
}

#[tokio::test]
async fn what_applications_do_works() {
    let (lb, engines) = scene().await;
    Client::start(&lb, "all").succeeds().await;
    lb.idle().await;
    let asked: u64 = engines.iter().map(|engine| engine.stats().requests).sum();
    assert!(asked > 15, "{asked} requests reached the engines");
}

#[tokio::test]
async fn fifty_streams_at_once_stay_apart() {
    let (lb, engines) = scene().await;
    Client::start(&lb, "many").succeeds().await;
    lb.idle().await;
    for engine in &engines {
        let stats = engine.stats();
        assert!(stats.finished > 5, "spread over both: {stats:?}");
        assert_eq!(stats.cancelled, 0, "{stats:?}");
    }
}

#[tokio::test]
async fn a_stream_closed_early_is_cancelled_at_the_engine() {
    let (lb, engines) = scene().await;
    let client = Client::start(&lb, "leaves-early").signalled().await;
    eventually("an engine is told", async || {
        engines.iter().map(|engine| engine.stats().cancelled).sum::<u64>() == 1
    })
    .await;
    client.succeeds().await;
    lb.idle().await;
    let running: usize = engines.iter().map(|engine| engine.stats().running).sum();
    assert_eq!(running, 0);
}

#[tokio::test]
async fn a_worker_that_dies_in_a_stream_is_an_error_and_then_nobody_is_there() {
    let (lb, engines) = scene().await;
    let client = Client::start(&lb, "dies").signalled().await;
    engines.into_iter().for_each(EngineHandle::kill);
    client.succeeds().await;
    for worker in 0..2 {
        lb.health_is(worker, "unhealthy").await;
    }
    Client::start(&lb, "no-worker").succeeds().await;
}
