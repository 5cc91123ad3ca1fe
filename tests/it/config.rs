//! A configuration that cannot run: one line that says why, status 64, and nothing was touched.

use std::{net::TcpListener, path::Path, process::Stdio};

use serde_json::json;
use tempfile::TempDir;
use tokio::{process::Command, time::timeout};

use crate::support::{Act, Ask, Authority, DEADLINE, eventually, free_port, lb, within};

/// How the binary ended.
#[derive(Debug)]
struct Ended {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

async fn ended(args: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmroute"));
    let command = command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(DEADLINE, command.output()).await;
    let output = output.unwrap_or_else(|_| panic!("does not end: {args:?}")).expect("starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    Ended { status: output.status.code(), stdout, stderr }
}

/// A port that is taken: whoever tries to bind or to connect to it is found out.
struct Taken(TcpListener);

impl Taken {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket option");
        Self(listener)
    }

    fn addr(&self) -> String {
        self.0.local_addr().expect("an address").to_string()
    }

    fn assert_untouched(&self, what: &str) {
        assert!(self.0.accept().is_err(), "somebody connected: {what}");
    }
}

/// Runs `check` and `run` on a file; both must refuse it in the same words. Gives what follows the
/// file's name. The addresses in it are `TAKEN`, so that nobody can have bound any before.
async fn refused(yaml: &str) -> String {
    let (taken, folder) = (Taken::new(), TempDir::new().expect("a folder"));
    let file = folder.path().join("bad.yaml");
    let yaml = yaml.replace("TAKEN", &taken.addr());
    std::fs::write(&file, &yaml).expect("writes");
    refused_file(&file, &yaml, &["check", "run"], &taken).await
}

async fn refused_file(file: &Path, yaml: &str, commands: &[&str], taken: &Taken) -> String {
    let name = file.display().to_string();
    let mut lines = Vec::new();
    for command in commands {
        let ended = ended(&[command, "--conf", &name]).await;
        assert_eq!(ended.status, Some(64), "{command}:\n{yaml}\n{ended:?}");
        assert_eq!(ended.stdout, "", "{command}:\n{yaml}");
        assert_eq!(ended.stderr.lines().count(), 1, "{command}:\n{yaml}\n{}", ended.stderr);
        let said = ended.stderr.trim_end().strip_prefix(&format!("warmroute: {name}: "));
        lines.push(said.unwrap_or_else(|| panic!("{}", ended.stderr)).to_owned());
    }
    taken.assert_untouched(yaml);
    assert!(lines.iter().all(|line| line == &lines[0]), "{lines:?}");
    lines.swap_remove(0)
}

/// A line has the form `KEY: VALUE: PROBLEM; REMEDY`.
#[track_caller]
fn assert_says(yaml: &str, line: &str, key: &str, value: &str, remedy: &str) {
    let rest = line.strip_prefix(&format!("{key}: "));
    let rest = rest.unwrap_or_else(|| panic!("not of `{key}`:\n{yaml}\n{line}"));
    assert!(rest.contains(value), "without the value {value}:\n{yaml}\n{line}");
    let (_, told) = line.rsplit_once("; ").unwrap_or_else(|| panic!("no remedy: {line}"));
    assert!(told.len() > 5 && line.contains(remedy), "without the remedy {remedy}:\n{line}");
}

/// What is in front of each case.
const LISTEN: &str = "listen: TAKEN\n";
const FINE: &str = "listen: TAKEN\nworkers: [{id: w0, url: \"http://TAKEN\"}]\n";

/// (what follows the fine part, key, value, remedy)
async fn assert_all_refused(before: &str, cases: &[(&str, &str, &str, &str)]) {
    let all = cases.iter().map(|(more, key, value, remedy)| async move {
        let yaml = format!("{before}{more}");
        let line = refused(&yaml).await;
        assert_says(&yaml, &line, key, value, remedy);
    });
    futures_util::future::join_all(all).await;
}

#[tokio::test]
async fn unknown_keys_are_refused_at_every_level() {
    assert_all_refused(
        FINE,
        &[
            ("polcy: random", "polcy", "`random`", "did you mean `policy`?"),
            ("zzz: 7", "zzz", "7", "known keys"),
            ("tls: {listen: TAKEN, cert: c, key: k, ca: x}", "tls.ca", "`x`", "known keys"),
            ("admin: {listn: TAKEN}", "admin.listn", "`127", "did you mean `listen`?"),
            ("metrics: {path: /m}", "metrics.path", "`/m`", "listen"),
            ("reports: {tokn: x}", "reports.tokn", "`x`", "did you mean `token`?"),
            ("policy_params: {hit_wieght: 1}", "policy_params.hit_wieght", "1", "hit_weight"),
            ("shadow: {policy: random, smple: 1}", "shadow.smple", "1", "known keys"),
            ("models: {m: {polcy: random}}", "models.m.polcy", "`random`", "policy"),
            ("models: {m: {policy_params: {zzz: 1}}}", "models.m.policy_params.zzz", "1", "known"),
            ("limits: {inflight: 9}", "limits.inflight", "9", "inflight_max"),
            ("timeouts: {conect_ms: 9}", "timeouts.conect_ms", "9", "connect_ms"),
            ("health: {pth: /x}", "health.pth", "`/x`", "path"),
            ("breaker: {zzz: []}", "breaker.zzz", "[]", "known keys"),
            ("index: {block_byte: 16}", "index.block_byte", "16", "block_bytes"),
            ("upstream_tls: {verfy: false}", "upstream_tls.verfy", "false", "verify"),
            ("log: {fromat: json}", "log.fromat", "`json`", "format"),
        ],
    )
    .await;
    assert_all_refused(
        LISTEN,
        &[
            ("workers: [{id: a, url: \"http://TAKEN\", weigth: 2}]", "workers[0].weigth", "2",
                "did you mean `weight`?"),
            ("workers: [{id: a, url: \"http://TAKEN\"}, {id: b, url: \"http://127.0.0.1:9\", x: {}}]",
                "workers[1].x", "{}", "known keys"),
        ],
    )
    .await;
}

#[tokio::test]
async fn wrong_types_are_refused() {
    assert_all_refused(
        FINE,
        &[
            ("threads: many", "threads", "`many`", "conf/example.yaml"),
            ("threads: -1", "threads", "-1", "conf/example.yaml"),
            ("policy: 7", "policy", "7", "conf/example.yaml"),
            ("policy: [random]", "policy", "[\"random\"]", "conf/example.yaml"),
            ("policy_override: maybe", "policy_override", "`maybe`", "conf/example.yaml"),
            ("admin: 127.0.0.1:9", "admin", "`127.0.0.1:9`", "conf/example.yaml"),
            ("tls: yes", "tls", "yes", "conf/example.yaml"),
            ("shadow: random", "shadow", "`random`", "conf/example.yaml"),
            ("shadow: {}", "shadow.policy", "absent", "add it"),
            ("models: [m]", "models", "[\"m\"]", "conf/example.yaml"),
            ("limits: {inflight_max: 1.5}", "limits.inflight_max", "1.5", "conf/example.yaml"),
            (
                "limits: {inflight_max: 5000000000}",
                "limits.inflight_max",
                "5000000000",
                "conf/example.yaml",
            ),
            (
                "limits: {ejected_share_max: half}",
                "limits.ejected_share_max",
                "`half`",
                "conf/example.yaml",
            ),
            ("timeouts: {silence_s: 10s}", "timeouts.silence_s", "`10s`", "conf/example.yaml"),
            ("health: []", "health", "[]", "conf/example.yaml"),
            ("log: {access: 1}", "log.access", "1", "conf/example.yaml"),
            ("upstream_tls: {ca: [x]}", "upstream_tls.ca", "[\"x\"]", "conf/example.yaml"),
            ("reports: {join: {a: 1}}", "reports.join", "{\"a\":1}", "conf/example.yaml"),
        ],
    )
    .await;
    assert_all_refused(
        LISTEN,
        &[
            ("workers: 7", "workers", "7", "conf/example.yaml"),
            ("workers: {id: a}", "workers", "{\"id\":\"a\"}", "conf/example.yaml"),
            ("workers: [\"http://TAKEN\"]", "workers[0]", "`http://", "conf/example.yaml"),
            ("workers: [{id: 7, url: \"http://TAKEN\"}]", "workers[0].id", "7", ""),
            ("workers: [{id: a, url: 7}]", "workers[0].url", "7", "conf/example.yaml"),
            ("workers: [{id: a}]", "workers[0].url", "absent", "add it"),
            ("workers: [{url: \"http://TAKEN\"}]", "workers[0].id", "absent", "add it"),
            (
                "workers: [{id: a, url: \"http://TAKEN\", weight: big}]",
                "workers[0].weight",
                "`big`",
                "conf/example.yaml",
            ),
            (
                "workers: [{id: a, url: \"http://TAKEN\", models: m}]",
                "workers[0].models",
                "`m`",
                "conf/example.yaml",
            ),
        ],
    )
    .await;
    assert_all_refused(
        "",
        &[
            ("listen: 8080\nworkers: [{id: a, url: \"http://TAKEN\"}]", "listen", "8080", ""),
            (
                "listen: {a: 1}\nworkers: [{id: a, url: \"http://TAKEN\"}]",
                "listen",
                "{\"a\":1}",
                "",
            ),
            ("tls: {listen: TAKEN, cert: c}\nworkers: []", "tls.key", "absent", "add it"),
        ],
    )
    .await;
}

#[tokio::test]
async fn workers_that_cannot_be_are_refused() {
    let worker = |text: &str| format!("workers: [{{{text}}}]");
    let two = |a: &str, b: &str| format!("workers: [{{{a}}}, {{{b}}}]");
    let cases = [
        (
            two("id: a, url: \"http://TAKEN\"", "id: a, url: \"http://127.0.0.1:9\""),
            "workers[1].id",
            "`a`",
            "own id",
        ),
        (
            two("id: a, url: \"http://TAKEN\"", "id: b, url: \"http://TAKEN/\""),
            "workers[1].url",
            "`http://",
            "once",
        ),
        (
            two("id: a, url: \"http://127.0.0.1:9\"", "id: b, url: \"http://localhost:9\""),
            "workers[1].url",
            "`http://localhost:9`",
            "once",
        ),
        (worker("id: \"\", url: \"http://TAKEN\""), "workers[0].id", "``", "letters"),
        (worker("id: \"a b\", url: \"http://TAKEN\""), "workers[0].id", "`a b`", "letters"),
        (worker("id: a, url: \"\""), "workers[0].url", "``", "http://HOST:PORT"),
        (worker("id: a, url: \"127.0.0.1:9\""), "workers[0].url", "`127.0.0.1:9`", "http://HOST"),
        (worker("id: a, url: \"localhost:9\""), "workers[0].url", "`localhost:9`", "http://HOST"),
        (worker("id: a, url: \"ftp://127.0.0.1:9\""), "workers[0].url", "`ftp://", "http://HOST"),
        (worker("id: a, url: \"http://\""), "workers[0].url", "`http://`", "http://HOST:PORT"),
        (
            worker("id: a, url: \"http://127.0.0.1:99999\""),
            "workers[0].url",
            "99999",
            "http://HOST",
        ),
        (worker("id: a, url: \"http://127.0.0.1:9/v1\""), "workers[0].url", "/v1`", "http://HOST"),
        (worker("id: a, url: \"http://127.0.0.1:9?x=1\""), "workers[0].url", "x=1", "http://HOST"),
        (worker("id: a, url: \"http://u:p@127.0.0.1:9\""), "workers[0].url", "`http://u", "HOST"),
        (
            worker("id: a, url: \"http://no-such-host.invalid:9\""),
            "workers[0].url",
            "no-such-host",
            "check the name",
        ),
        (worker("id: a, url: \"https://127.0.0.1:9\""), "workers[0].url", "https://", "tls_name"),
        (worker("id: a, url: \"https://[::1]:9\""), "workers[0].url", "https://", "tls_name"),
        (
            worker("id: a, url: \"http://TAKEN\", tls_name: x"),
            "workers[0].tls_name",
            "`x`",
            "https",
        ),
        (
            worker("id: a, url: \"https://localhost:9\", tls_name: \"\""),
            "workers[0].tls_name",
            "``",
            "https",
        ),
        (worker("id: a, url: \"http://TAKEN\", models: []"), "workers[0].models", "[]", "[\"*\"]"),
        (worker("id: a, url: \"http://TAKEN\", weight: 0"), "workers[0].weight", "0", "0.001"),
        (worker("id: a, url: \"http://TAKEN\", weight: -1"), "workers[0].weight", "-1", "0.001"),
        (worker("id: a, url: \"http://TAKEN\", weight: .nan"), "workers[0].weight", "", "0.001"),
        (worker("id: a, url: \"http://TAKEN\", weight: .inf"), "workers[0].weight", "", "1000"),
        (
            worker("id: a, url: \"http://TAKEN\", inflight_max: 0"),
            "workers[0].inflight_max",
            "0",
            "1",
        ),
        (
            worker("id: a, url: \"http://TAKEN\", cache_tokens: 0"),
            "workers[0].cache_tokens",
            "0",
            "1",
        ),
        (
            worker("id: a, url: \"http://TAKEN\", health_path: health"),
            "workers[0].health_path",
            "`health`",
            "/health",
        ),
        ("workers: []".to_owned(), "workers", "[]", "join: true"),
        (String::new(), "workers", "[]", "name a worker"),
        ("reports: {listen: \"127.0.0.1:9\"}".to_owned(), "workers", "[]", "join: true"),
    ];
    let cases: Vec<_> =
        cases.iter().map(|(yaml, key, value, remedy)| (&**yaml, *key, *value, *remedy)).collect();
    assert_all_refused(LISTEN, &cases).await;
}

#[tokio::test]
async fn values_out_of_range_are_refused() {
    assert_all_refused(
        FINE,
        &[
            ("threads: 1025", "threads", "1025", "one per core"),
            ("policy: best", "policy", "`best`", "one of prefix-aware, round-robin"),
            ("policy: \"\"", "policy", "``", "one of"),
            ("models: {m: {policy: Random}}", "models.m.policy", "`Random`", "one of"),
            ("policy_params: {decode_tokens: -1}", "policy_params.decode_tokens", "-1", "write"),
            ("policy_params: {decode_tokens: .nan}", "policy_params.decode_tokens", "", "write"),
            (
                "policy_params: {request_tokens: 9}",
                "policy_params.request_tokens",
                "9",
                "take it out",
            ),
            ("policy_params: {bounded_load: 0.5}", "policy_params.bounded_load", "0.5", "write"),
            ("policy_params: {hit_weight: -0.1}", "policy_params.hit_weight", "-0.1", "write"),
            ("policy_params: {load_weight: .inf}", "policy_params.load_weight", "inf", "write"),
            (
                "models: {m: {policy_params: {bounded_load: 0}}}",
                "models.m.policy_params.bounded_load",
                "0",
                "write",
            ),
            ("shadow: {policy: best}", "shadow.policy", "`best`", "one of prefix-aware"),
            (
                "shadow: {policy: random, policy_params: {decode_tokens: -1}}",
                "shadow.policy_params.decode_tokens",
                "-1",
                "write",
            ),
            ("session_header: \"a b\"", "session_header", "`a b`", "x-session-id"),
            ("session_header: \"\"", "session_header", "``", "x-session-id"),
            ("tenant_header: \"x:\"", "tenant_header", "`x:`", "a name"),
            ("limits: {body_bytes_max: 1023}", "limits.body_bytes_max", "1023", "1024 or more"),
            ("limits: {buffered_bytes_max: 1024}", "limits.buffered_bytes_max", "1024", "or more"),
            ("limits: {inflight_max: 0}", "limits.inflight_max", "0", "1 or more"),
            ("limits: {retries_max: 16}", "limits.retries_max", "16", "0 to 15"),
            ("limits: {ejected_share_max: 1.5}", "limits.ejected_share_max", "1.5", "0 to 1"),
            ("limits: {ejected_share_max: -0.5}", "limits.ejected_share_max", "-0.5", "0 to 1"),
            ("timeouts: {connect_ms: 0}", "timeouts.connect_ms", "0", "1 or more"),
            ("timeouts: {silence_s: 0}", "timeouts.silence_s", "0", "1 or more"),
            ("timeouts: {pool_idle_ms: 0}", "timeouts.pool_idle_ms", "0", "1 or more"),
            ("timeouts: {body_silence_s: 0}", "timeouts.body_silence_s", "0", "1 or more"),
            ("timeouts: {body_total_s: 0}", "timeouts.body_total_s", "0", "1 or more"),
            ("timeouts: {client_write_s: 0}", "timeouts.client_write_s", "0", "1 or more"),
            ("health: {kind: icmp}", "health.kind", "`icmp`", "http or tcp"),
            ("health: {path: health}", "health.path", "`health`", "/health"),
            ("health: {path: \"/a b\"}", "health.path", "`/a b`", "/health"),
            ("health: {interval_ms: 9}", "health.interval_ms", "9", "10 or more"),
            ("health: {timeout_ms: 0}", "health.timeout_ms", "0", "10 or more"),
            ("health: {healthy_after: 0}", "health.healthy_after", "0", "1 or more"),
            ("health: {unhealthy_after: 0}", "health.unhealthy_after", "0", "1 or more"),
            ("health: {models_interval_ms: 99}", "health.models_interval_ms", "99", "100 or more"),
            ("breaker: {failures_in_row_max: 0}", "breaker.failures_in_row_max", "0", "write"),
            ("breaker: {success_share_min: 1.1}", "breaker.success_share_min", "1.1", "write"),
            ("breaker: {window_ms: 0}", "breaker.window_ms", "0", "write"),
            ("breaker: {cool_down_first_ms: 0}", "breaker.cool_down_first_ms", "0", "write"),
            ("breaker: {cool_down_max_ms: 1}", "breaker.cool_down_max_ms", "1", "write"),
            ("index: {block_bytes: 15}", "index.block_bytes", "15", "16 to 65536"),
            ("index: {block_bytes: 65537}", "index.block_bytes", "65537", "16 to 65536"),
            ("index: {bytes_max: 1000}", "index.bytes_max", "1000", "or more"),
            ("index: {cache_tokens: 0}", "index.cache_tokens", "0", "1 or more"),
            ("log: {format: xml}", "log.format", "`xml`", "text or json"),
            ("log: {level: loud}", "log.level", "`loud`", "debug"),
        ],
    )
    .await;
}

#[tokio::test]
async fn the_report_listener_s_values_are_checked() {
    assert_all_refused(
        FINE,
        &[
            ("reports: {listen: \"127.0.0.1:9\", token: \"\"}", "reports.token", "``", "remove"),
            ("reports: {listen: \"127.0.0.1:9\", lease_s: 0}", "reports.lease_s", "0", "1 or more"),
            (
                "reports: {listen: \"127.0.0.1:9\", queue_batches_max: 0}",
                "reports.queue_batches_max",
                "0",
                "1 or more",
            ),
            (
                "reports: {listen: \"127.0.0.1:9\", body_bytes_max: 9}",
                "reports.body_bytes_max",
                "9",
                "1024 or more",
            ),
        ],
    )
    .await;
}

/// Where KV events come from, and names of models in aligned mode.
#[tokio::test]
async fn what_the_router_knows_caches_by_is_checked() {
    let worker = "{id: w0, url: \"http://TAKEN\", kv_events: ";
    let cases = [
        ("atuo", "`atuo`", "auto, off"),
        ("{endpoint: \"ipc:///tmp/x\"}", "`ipc:///tmp/x`", "tcp://HOST:PORT"),
        ("{endpoint: \"tcp://10.0.0.1\"}", "`tcp://10.0.0.1`", "tcp://HOST:PORT"),
        ("{endpoint: \"tcp://*:5557\"}", "`tcp://*:5557`", "tcp://HOST:PORT"),
        ("{endpoint: \"tcp://h:0\"}", "`tcp://h:0`", "tcp://HOST:PORT"),
        ("{endpoint: \"tcp://h:70000\"}", "`tcp://h:70000`", "tcp://HOST:PORT"),
        ("{endpoint: \"tcp://h:1\", replay_endpoint: \"h:2\"}", "`h:2`", "tcp://HOST:PORT"),
        ("{endpoint: \"tcp://h:1\", bind: \"tcp://0.0.0.0:2\"}", "both", "tcp://HOST:PORT"),
        ("{bind: \"tcp://router:2\"}", "`tcp://router:2`", "tcp://ADDRESS:PORT"),
        ("{topic: x}", "neither", "tcp://HOST:PORT"),
        ("[]", "0", "1 to 64"),
        ("[{endpoint: \"tcp://h:1\"}, {endpoint: \"h\"}]", "`h`", "tcp://HOST:PORT"),
    ];
    let cases = cases.map(|(mode, value, remedy)| {
        (format!("workers: [{worker}{mode}}}]"), "workers[0].kv_events", value, remedy)
    });
    let cases: Vec<_> = cases.iter().map(|(yaml, key, v, r)| (&**yaml, *key, *v, *r)).collect();
    assert_all_refused(LISTEN, &cases).await;
    let folder = root().join("tests/fixtures/tokenizer-qwen3-subset");
    let with = |more: &str| format!("{{tokenizer: {}, {more}}}", folder.display());
    let hash = |fields: &str| format!("models: {{m: {}}}", with(&format!("block_hash: {fields}")));
    let cases = [
        ("kv_events: atuo".to_owned(), "kv_events", "`atuo`", "auto, off"),
        ("models: {m: {aliases: [n]}}".to_owned(), "models.m.aliases", "n", "`tokenizer`"),
        (
            "models: {m: {block_hash: {algorithm: sha256, block_tokens: 16}}}".to_owned(),
            "models.m.block_hash",
            "`sha256`",
            "`tokenizer`",
        ),
        (
            format!("models: {{a: {}, b: {}}}", with("aliases: [x]"), with("aliases: [x]")),
            "models.b.aliases",
            "x",
            "one model",
        ),
        (
            format!("models: {{a: {}, b: {{policy: random}}}}", with("aliases: [b]")),
            "models.a.aliases",
            "b",
            "one model",
        ),
        (
            hash("{algorithm: md5, block_tokens: 16}"),
            "models.m.block_hash.algorithm",
            "`md5`",
            "sha256 or sha256_cbor",
        ),
        (
            hash("{algorithm: sha256, block_tokens: 0}"),
            "models.m.block_hash.block_tokens",
            "0",
            "1 to 4096",
        ),
        ("aligned: {body_bytes_max: 3}".to_owned(), "aligned.body_bytes_max", "3", "1024"),
        ("feedback: {include_usag: true}".to_owned(), "feedback.include_usag", "true", "include"),
    ];
    let cases: Vec<_> = cases.iter().map(|(yaml, key, v, r)| (&**yaml, *key, *v, *r)).collect();
    assert_all_refused(FINE, &cases).await;
}

#[tokio::test]
async fn a_tokenizer_that_cannot_be_used_is_refused() {
    let subset = root().join("tests/fixtures/tokenizer-qwen3-subset");
    let json = |text: &[u8]| {
        let folder = TempDir::new().expect("a folder");
        std::fs::write(folder.path().join("tokenizer.json"), text).expect("writes");
        std::fs::copy(
            subset.join("tokenizer_config.json"),
            folder.path().join("tokenizer_config.json"),
        )
        .expect("copies");
        folder
    };
    let empty = TempDir::new().expect("a folder");
    let whole = std::fs::read(subset.join("tokenizer.json")).expect("reads");
    let alone = TempDir::new().expect("a folder");
    std::fs::write(alone.path().join("tokenizer.json"), &whole).expect("writes");
    let bad_template = json(&whole);
    let config = json!({"chat_template": "{% for %}", "tokenizer_class": "x"}).to_string();
    std::fs::write(bad_template.path().join("tokenizer_config.json"), config).expect("writes");
    let (garbage, cut, other) =
        (json(b"\xff\xfe garbage"), json(&whole[..whole.len() / 2]), json(b"{\"model\": 7}"));
    let cases = [
        (Path::new("/nowhere/at/all"), "/nowhere/at/all"),
        (&root().join("Cargo.toml"), "Cargo.toml"),
        (empty.path(), "tokenizer.json"),
        (garbage.path(), "tokenizer.json"),
        (cut.path(), "tokenizer.json"),
        (other.path(), "tokenizer.json"),
        (bad_template.path(), "chat template"),
    ];
    for (folder, problem) in cases {
        let more = format!("models: {{m: {{tokenizer: {}}}}}", folder.display());
        let line = refused(&format!("{FINE}{more}")).await;
        assert_says(&more, &line, "models.m.tokenizer", problem, "");
        assert!(line.contains(&folder.display().to_string()), "{line}");
    }
    // Without a configuration of its own it has no chat template, and serves prompts of text.
    let more = format!("models: {{m: {{tokenizer: {}}}}}", alone.path().display());
    let fine = TempDir::new().expect("a folder");
    let file = fine.path().join("fine.yaml");
    let port = free_port();
    let yaml = format!(
        "listen: \"127.0.0.1:{port}\"\nworkers: [{{id: w0, url: \"http://127.0.0.1:9\"}}]\n{more}"
    );
    std::fs::write(&file, yaml).expect("writes");
    let ended = ended(&["check", "--conf", &file.display().to_string()]).await;
    assert_eq!(ended.status, Some(0), "{ended:?}");
}

#[tokio::test]
async fn addresses_are_checked() {
    let cases = [
        ("listen", ""),
        ("admin.listen", "listen: TAKEN\nadmin: "),
        ("metrics.listen", "listen: TAKEN\nmetrics: "),
        ("reports.listen", "listen: TAKEN\nreports: "),
    ];
    let all = cases.iter().map(|(key, before)| async move {
        for (text, remedy) in [
            ("127.0.0.1:0", "name a fixed port"),
            ("127.0.0.1", "ADDRESS:PORT"),
            ("localhost:9", "ADDRESS:PORT"),
            (":9", "ADDRESS:PORT"),
            ("", "ADDRESS:PORT"),
            ("127.0.0.1:65536", "ADDRESS:PORT"),
            ("http://127.0.0.1:9", "ADDRESS:PORT"),
        ] {
            let address = format!("{{listen: \"{text}\"}}");
            let address = if before.is_empty() { format!("listen: \"{text}\"") } else { address };
            let yaml =
                format!("{before}{address}\nworkers: [{{id: w0, url: \"http://127.0.0.1:9\"}}]");
            let line = refused(&yaml).await;
            assert_says(&yaml, &line, key, &format!("`{text}`"), remedy);
        }
    });
    futures_util::future::join_all(all).await;
    assert_all_refused(
        "workers: [{id: w0, url: \"http://127.0.0.1:9\"}]\n",
        &[
            ("", "listen", "absent", "listen: 127.0.0.1:8080"),
            ("listen: []", "listen", "absent", "listen: 127.0.0.1:8080"),
            ("listen: [\"127.0.0.1:0\"]", "listen", "`127.0.0.1:0`", "fixed port"),
        ],
    )
    .await;
}

#[tokio::test]
async fn two_listeners_cannot_share_an_address() {
    assert_all_refused(
        "workers: [{id: w0, url: \"http://127.0.0.1:9\"}]\n",
        &[
            ("listen: [TAKEN, TAKEN]", "listen", "127.0.0.1", "own port"),
            ("listen: TAKEN\nadmin: {listen: TAKEN}", "admin.listen", "127.0.0.1", "own port"),
            ("listen: TAKEN\nmetrics: {listen: TAKEN}", "metrics.listen", "127.0.0.1", "own port"),
            ("listen: TAKEN\nreports: {listen: TAKEN}", "reports.listen", "127.0.0.1", "own port"),
            (
                "listen: 127.0.0.1:9\nadmin: {listen: \"0.0.0.0:9\"}",
                "admin.listen",
                "0.0.0.0:9",
                "own port",
            ),
            ("listen: \"[::]:9\"\nadmin: {listen: \"[::1]:9\"}", "admin.listen", "[::1]:9", "own"),
        ],
    )
    .await;
}

#[tokio::test]
async fn files_that_are_no_configuration_are_refused() {
    for (text, value) in [
        ("", "empty"),
        ("\n\n", "empty"),
        ("# a comment\n", "empty"),
        ("---\n", "empty"),
        ("listen: [\n", "not YAML"),
        ("{{{{", "not YAML"),
        ("a: b: c", "not YAML"),
        ("\tlisten: x", "not YAML"),
        ("listen: a\nlisten: b\n", ""),
        ("\u{0}", ""),
        ("just words", ""),
        ("- 1\n- 2\n", ""),
        ("7", ""),
        ("listen: &a [*a]", ""),
        ("--- 1\n--- 2\n", ""),
    ] {
        let line = refused(text).await;
        assert!(line.contains(value), "{text:?}: {line}");
        let (_, remedy) = line.rsplit_once("; ").unwrap_or_else(|| panic!("no remedy: {line}"));
        assert!(remedy.len() > 5, "{line}");
    }
    let (taken, folder) = (Taken::new(), TempDir::new().expect("a folder"));
    for (name, bytes) in
        [("latin1.yaml", &b"listen: \xe9"[..]), ("binary.yaml", b"\x00\xff\x7fELF")]
    {
        let file = folder.path().join(name);
        std::fs::write(&file, bytes).expect("writes");
        let line = refused_file(&file, name, &["check", "run"], &taken).await;
        assert!(line.contains("; "), "{line}");
    }
    let missing = folder.path().join("missing.yaml");
    let line = refused_file(&missing, "a missing file", &["check", "run"], &taken).await;
    assert_says("", &line, "--conf", "missing.yaml", "readable file");
    let line = refused_file(folder.path(), "a folder", &["check", "run"], &taken).await;
    assert_says("", &line, "--conf", "", "readable file");
}

#[tokio::test]
async fn certificates_are_checked() {
    let folder = TempDir::new().expect("a folder");
    let authority = Authority::new("test");
    let (cert, key) = authority.issue().write(folder.path());
    let others = folder.path().join("others");
    std::fs::create_dir(&others).expect("a folder");
    let (_, other_key) = authority.issue().write(&others);
    let junk = folder.path().join("junk.pem");
    std::fs::write(&junk, "junk").expect("writes");
    let missing = folder.path().join("missing.pem");
    let tls = |cert: &Path, key: &Path| {
        let (cert, key) = (cert.display(), key.display());
        format!("{FINE}tls: {{listen: \"127.0.0.1:9\", cert: \"{cert}\", key: \"{key}\"}}")
    };
    let ca = |path: &Path| format!("{FINE}upstream_tls: {{ca: \"{}\"}}", path.display());
    for (yaml, at, file, remedy) in [
        (tls(&missing, &key), "tls.cert", "missing.pem", "can read"),
        (tls(&cert, &missing), "tls.key", "missing.pem", "can read"),
        (tls(&junk, &key), "tls.cert", "junk.pem", "PEM chain"),
        (tls(&cert, &junk), "tls.key", "junk.pem", "PEM key"),
        (tls(&key, &cert), "tls.cert", "key.pem", "PEM chain"),
        (tls(&cert, &other_key), "tls.key", "key.pem", "made for"),
        (ca(&missing), "upstream_tls.ca", "missing.pem", "can read"),
        (ca(&junk), "upstream_tls.ca", "junk.pem", "PEM file"),
    ] {
        let line = refused(&yaml).await;
        let (key, rest) = line.split_once(": ").expect("a key");
        assert_eq!(key, at, "{line}");
        // Long paths are shortened at their end.
        let shown = rest.contains(file) || rest.contains("...");
        assert!(shown && line.contains(remedy), "{line}");
    }
}

#[tokio::test]
async fn a_port_that_is_in_use_is_named() {
    let folder = TempDir::new().expect("a folder");
    let (cert, key) = Authority::new("test").issue().write(folder.path());
    let (cert, key) = (cert.display(), key.display());
    for (name, yaml) in [
        ("listen", "listen: TAKEN".to_owned()),
        ("listen", "listen: [\"127.0.0.1:FREE\", TAKEN]".to_owned()),
        ("admin.listen", "listen: 127.0.0.1:FREE\nadmin: {listen: TAKEN}".to_owned()),
        ("metrics.listen", "listen: 127.0.0.1:FREE\nmetrics: {listen: TAKEN}".to_owned()),
        ("reports.listen", "listen: 127.0.0.1:FREE\nreports: {listen: TAKEN}".to_owned()),
        ("tls.listen", format!("tls: {{listen: TAKEN, cert: \"{cert}\", key: \"{key}\"}}")),
    ] {
        let (taken, worker, free) = (Taken::new(), Taken::new(), free_port());
        let yaml = format!("{yaml}\nworkers: [{{id: w0, url: \"http://{}\"}}]", worker.addr());
        let yaml = yaml.replace("TAKEN", &taken.addr()).replace("FREE", &free.to_string());
        let file = folder.path().join("bad.yaml");
        std::fs::write(&file, &yaml).expect("writes");
        let path = file.display().to_string();
        let fine = ended(&["check", "--conf", &path]).await;
        assert_eq!(fine.status, Some(0), "check touches no socket: {fine:?}");
        let line = refused_file(&file, &yaml, &["run"], &taken).await;
        assert_says(&yaml, &line, name, &taken.addr(), "another port");
        worker.assert_untouched("a worker was asked for its health");
    }
    let yaml = "listen: 203.0.113.7:9\nworkers: [{id: w0, url: \"http://127.0.0.1:9\"}]";
    let file = folder.path().join("foreign.yaml");
    std::fs::write(&file, yaml).expect("writes");
    let line = refused_file(&file, yaml, &["run"], &Taken::new()).await;
    assert_says(yaml, &line, "listen", "203.0.113.7:9", "");
}

#[tokio::test]
async fn a_secret_is_not_printed() {
    // Somebody forgot the quotes.
    let line =
        refused(&format!("{FINE}reports: {{listen: \"127.0.0.1:9\", token: 8675309}}")).await;
    assert!(line.starts_with("reports.token: "), "{line}");
    assert!(!line.contains("8675309"), "{line}");
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[tokio::test]
async fn the_configurations_we_ship_are_fine() {
    let mut shipped: Vec<_> = std::fs::read_dir(root().join("conf"))
        .expect("conf/")
        .map(|entry| entry.expect("readable").path())
        .collect();
    shipped.sort();
    assert!(shipped.len() >= 2, "{shipped:?}");
    for file in shipped {
        let ended = ended(&["check", "--conf", &file.display().to_string()]).await;
        assert_eq!((ended.status, &*ended.stderr), (Some(0), ""), "{ended:?}");
        assert!(ended.stdout.contains(": ok, "), "{ended:?}");
        assert_eq!(ended.stdout.lines().count(), 1, "{ended:?}");
    }
}

#[tokio::test]
async fn the_configurations_in_the_documentation_are_fine() {
    let folder = TempDir::new().expect("a folder");
    let mut pages = vec![root().join("README.md")];
    let docs = std::fs::read_dir(root().join("docs")).expect("docs/");
    pages.extend(docs.map(|entry| entry.expect("readable").path()));
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap_or_default();
        for block in text.split("```yaml\n").skip(1) {
            let yaml = block.split("```").next().unwrap_or_default();
            if !yaml.contains("workers:") {
                continue;
            }
            let file = folder.path().join("shown.yaml");
            std::fs::write(&file, yaml).expect("writes");
            let ended = ended(&["check", "--conf", &file.display().to_string()]).await;
            assert_eq!(ended.status, Some(0), "{}: {ended:?}\n{yaml}", page.display());
        }
    }
}

/// conf/minimal.yaml, with other ports: it runs, and serves.
#[tokio::test]
async fn the_smallest_configuration_serves() {
    let worker = crate::support::echo().start("w0".to_owned()).await;
    let minimal = std::fs::read_to_string(root().join("conf/minimal.yaml")).expect("minimal.yaml");
    let addr = format!("127.0.0.1:{}", free_port());
    assert!(minimal.contains("127.0.0.1:8080") && minimal.contains("http://127.0.0.1:8001"));
    let yaml =
        minimal.replace("127.0.0.1:8080", &addr).replace("http://127.0.0.1:8001", worker.url());
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("minimal.yaml");
    std::fs::write(&file, yaml).expect("writes");
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmroute"));
    let command = command.args(["run", "--conf"]).arg(&file).kill_on_drop(true);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    let addr: std::net::SocketAddr = addr.parse().expect("an address");
    eventually("it serves", async || {
        let conn = crate::support::Conn::open(addr, crate::support::Proto::H1).await;
        let Ok(mut conn) = conn else { return false };
        conn.ask(&Ask::get("/health")).await.status == 200
    })
    .await;
    let mut conn =
        crate::support::Conn::open(addr, crate::support::Proto::H1).await.expect("connects");
    let answer = conn.ask(&Ask::chat("hello")).await;
    answer.assert_stamped();
    assert_eq!(answer.header("x-router-backend"), "w0");
    let status = std::process::Command::new("kill")
        .args(["-s", "INT", &child.id().expect("it runs").to_string()])
        .status();
    assert!(status.expect("kill runs").success());
    let status = within("the end after SIGINT", child.wait()).await.expect("it is ours");
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn help_is_there_for_every_command() {
    let help = ended(&["--help"]).await;
    assert_eq!((help.status, &*help.stderr), (Some(0), ""), "{help:?}");
    let mut commands = vec!["run", "check"];
    if cfg!(feature = "demo") {
        commands.push("demo");
    }
    for command in commands {
        assert!(help.stdout.contains(command), "{}", help.stdout);
        let help = ended(&[command, "--help"]).await;
        assert_eq!((help.status, &*help.stderr), (Some(0), ""), "{help:?}");
        let option = if command == "demo" { "--stay" } else { "--conf <FILE>" };
        assert!(help.stdout.contains("Usage:") && help.stdout.contains(option), "{}", help.stdout);
    }
    let version = ended(&["--version"]).await;
    assert_eq!(version.status, Some(0));
    assert_eq!(version.stdout, format!("warmroute {}\n", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn a_wrong_command_line_is_status_64() {
    for args in [
        &[][..],
        &["serve"],
        &["run"],
        &["check"],
        &["run", "--conf"],
        &["check", "--config", "x"],
        &["run", "--conf", "x", "--verbose"],
        &["run", "x.yaml"],
        &["--port", "9"],
    ] {
        let ended = ended(args).await;
        assert_eq!(ended.status, Some(64), "{args:?}: {ended:?}");
        assert_eq!(ended.stdout, "", "{args:?}");
        assert!(
            ended.stderr.contains("--help") || ended.stderr.contains("Usage:"),
            "{args:?}: {}",
            ended.stderr
        );
    }
}

/// What is in effect is what is in the file.
#[tokio::test]
async fn a_model_s_policy_and_a_worker_s_own_values_are_in_effect() {
    let lb = lb()
        .worker(crate::support::echo().yaml("weight: 2.5").yaml("inflight_max: 7"))
        .worker(crate::support::echo().yaml("models: [\"*\"]"))
        .config("models: {special: {policy: round-robin}}")
        .start()
        .await;
    let status = lb.status(0).await;
    assert_eq!((status["weight"].as_f64(), status["inflight_max"].as_u64()), (Some(2.5), Some(7)));
    assert_eq!(lb.status(1).await["inflight_max"], 1024);
    lb.workers[0].set_act(Act::Echo);
    let answer = lb.ask(&Ask::chat_with("special", "hello")).await;
    assert_eq!(answer.header("x-router-reason"), "round-robin");
    let answer = lb.ask(&Ask::chat_with("other", "hello")).await;
    assert_eq!(answer.header("x-router-reason"), "no-match");
}
