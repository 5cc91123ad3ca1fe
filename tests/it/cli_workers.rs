//! `warmroute workers` against a running warmroute.

use serde_json::Value;
use tokio::process::Command;

use crate::support::{Lb, echo, free_port, lb};

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

async fn run(args: &[&str], token: Option<&str>) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_warmroute"));
    command.arg("workers").args(args).env_remove("WARMROUTE_ADMIN_TOKEN");
    // A proxy of the environment must not matter.
    command.env("http_proxy", "http://127.0.0.1:9").env("ALL_PROXY", "http://127.0.0.1:9");
    if let Some(token) = token {
        command.env("WARMROUTE_ADMIN_TOKEN", token);
    }
    let output = command.output().await.expect("runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    let code = output.status.code().expect("no signal");
    Ran { code, stdout: text(output.stdout), stderr: text(output.stderr) }
}

async fn by_conf(lb: &Lb, args: &[&str]) -> Ran {
    let conf = lb.conf();
    let more = ["--conf", conf.to_str().expect("UTF-8")];
    run(&[args, &more].concat(), None).await
}

/// Fails in one line that holds all of `texts`.
fn assert_fails(ran: &Ran, code: i32, texts: &[&str]) {
    assert_eq!((ran.code, &*ran.stdout), (code, ""), "{}", ran.stderr);
    assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    for text in texts {
        assert!(ran.stderr.contains(text), "{text}: {}", ran.stderr);
    }
}

#[tokio::test]
async fn workers_are_listed_drained_and_removed() {
    let lb = lb().worker(echo().models(&["m"])).worker(echo()).start().await;
    let list = by_conf(&lb, &["list"]).await;
    assert_eq!((list.code, &*list.stderr), (0, ""));
    let lines: Vec<_> = list.stdout.lines().collect();
    assert_eq!(lines.len(), 3, "{}", list.stdout);
    for column in ["ID", "URL", "ORIGIN", "HEALTH", "BREAKER", "DRAINED", "TRUST", "MODELS"] {
        assert!(lines[0].contains(column), "{}", list.stdout);
    }
    let url = lines[1].find(lb.workers[0].url());
    assert_eq!(url, lines[0].find("URL"), "aligned: {}", list.stdout);
    assert!(lines[1].starts_with("w0 ") && lines[1].ends_with(" m"), "{}", list.stdout);

    let drained = by_conf(&lb, &["drain", "w0"]).await;
    assert_eq!((drained.code, &*drained.stdout), (0, "w0: drained, 0 requests in flight\n"));
    assert_eq!(lb.status(0).await["drained"], true);
    let json = by_conf(&lb, &["list", "--json"]).await;
    let json: Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!(json["workers"][0]["drained"], true);
    let undrained = by_conf(&lb, &["undrain", "w0"]).await;
    assert_eq!((undrained.code, &*undrained.stdout), (0, "w0: undrained\n"));
    let removed = by_conf(&lb, &["remove", "w0"]).await;
    assert_eq!((removed.code, &*removed.stdout), (0, "w0: removed, 0 requests in flight\n"));
    let list = by_conf(&lb, &["list"]).await.stdout;
    assert!(list.ends_with("removed, kept out until undrained: w0\n"), "{list}");
    assert_eq!(by_conf(&lb, &["undrain", "w0"]).await.stdout, "w0: undrained\n");
    assert_fails(&by_conf(&lb, &["drain", "w9"]).await, 1, &["no worker `w9`"]);
    assert_fails(&by_conf(&lb, &["drain", "../x"]).await, 64, &["'/'"]);
}

#[tokio::test]
async fn a_file_with_other_mistakes_still_leads_to_the_process() {
    let lb = lb().worker(echo()).config("admin: {token: secret-1}").start().await;
    let admin = format!("http://{}", lb.admin_addr());
    let file = lb.conf().with_file_name("other.yaml");
    let path = file.to_str().expect("UTF-8");
    let text = format!(
        "lisen: x\nworkers: 3\nadmin: {{listen: \"{}\", token: secret-1, what: 1}}\n",
        lb.admin_addr()
    );
    std::fs::write(&file, text).expect("writes");
    assert_eq!(run(&["list", "--conf", path], None).await.code, 0);
    // The environment's token goes before the file's.
    let refused = run(&["drain", "w0", "--conf", path], Some("wrong")).await;
    assert_fails(&refused, 1, &["WARMROUTE_ADMIN_TOKEN", "admin.token"]);
    assert_fails(&run(&["list", "--admin", &admin], None).await, 1, &["WARMROUTE_ADMIN_TOKEN"]);
    let drained = run(&["drain", "w0", "--admin", &admin], Some("secret-1")).await;
    assert_eq!(drained.code, 0, "{}", drained.stderr);
    assert!(!refused.stderr.contains("secret"), "{}", refused.stderr);
}

#[tokio::test]
async fn what_cannot_be_asked_is_said_in_one_line() {
    let lb = lb().worker(echo()).start().await;
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let refused = run(&["list", "--admin", &nobody], None).await;
    assert_fails(&refused, 1, &[&nobody, "refused", "does warmroute run"]);
    let elsewhere = format!("http://{}", lb.workers[0].addr());
    // A worker answers with an echo, which is JSON of another kind; the proxy's own list is not.
    let said = run(&["list", "--admin", &format!("http://{}", lb.metrics_addr())], None).await;
    assert_fails(&said, 1, &["no JSON", "admin.listen"]);
    for (admin, text) in [("127.0.0.1:1", "http://HOST:PORT"), ("https://h:1", "http://HOST:PORT")]
    {
        assert_fails(&run(&["list", "--admin", admin], None).await, 64, &[admin, text]);
    }
    let file = lb.conf().with_file_name("none.yaml");
    let path = file.to_str().expect("UTF-8");
    assert_fails(&run(&["list", "--conf", path], None).await, 64, &[path, "readable"]);
    std::fs::write(&file, "listen: 127.0.0.1:1\n").expect("writes");
    assert_fails(&run(&["list", "--conf", path], None).await, 64, &["admin.listen", "--admin"]);
    for usage in [&["list"][..], &["list", "--conf", path, "--admin", &elsewhere], &["drain"]] {
        let ran = run(usage, None).await;
        assert_eq!((ran.code, &*ran.stdout), (64, ""), "{usage:?}: {}", ran.stderr);
    }
}
