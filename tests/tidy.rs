//! Reads the sources and holds them to the rules no compiler knows (after TigerBeetle's tidy.zig).

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Lines a source file may have, tests aside.
const LINES_MAX: usize = 450;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    collect(&root().join(folder), &mut found);
    assert!(!found.is_empty(), "no sources below {folder}");
    found
}

fn collect(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).expect("folder of the repository") {
        let path = entry.expect("readable").path();
        if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
            collect(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).expect("sources are UTF-8");
            found.push((path, text));
        }
    }
}

fn is_test(path: &Path) -> bool {
    let name = path.to_string_lossy();
    name.contains("tests") || name.ends_with("simulation.rs") || name.ends_with("model.rs")
}

/// The part of a file before its `mod tests`.
fn without_tests(text: &str) -> &str {
    text.find("\n#[cfg(test)]\n").map_or(text, |at| &text[..at])
}

#[test]
fn routing_is_pure() {
    let banned = [
        "pingora",
        "tokio",
        "tracing",
        "prometheus",
        "parking_lot",
        "Instant::now",
        "SystemTime",
        "std::sync::Mutex",
        "std::sync::atomic",
        "std::net",
        "std::fs",
        "rand::rng",
        "thread_rng",
        "crate::proxy",
        "crate::fleet",
        "crate::telemetry",
        "crate::config",
        "crate::wire",
        "crate::state",
        "unsafe ",
    ];
    for (path, text) in sources("src/routing") {
        if is_test(&path) {
            continue;
        }
        for line in without_tests(&text).lines().filter(|line| !line.trim_start().starts_with("//"))
        {
            for word in banned {
                assert!(!line.contains(word), "{}: `{word}` in: {line}", path.display());
            }
        }
    }
}

/// What is believed of DNS answers is decided by pure code too.
#[test]
fn decisions_of_discovery_are_pure() {
    for name in ["question.rs", "names.rs"] {
        let text = fs::read_to_string(root().join("src/discovery").join(name)).expect(name);
        let code = without_tests(&text).lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            for word in ["tokio", "hickory", "tracing", "rand::", "crate::", "Mutex"] {
                assert!(!line.contains(word), "{name}: `{word}` in: {line}");
            }
        }
    }
}

#[test]
fn arrows_point_one_way() {
    for (folder, banned) in [
        (
            "src/fleet",
            &[
                "crate::proxy",
                "crate::reports",
                "crate::admin",
                "crate::peers",
                "crate::lifecycle",
                "crate::server",
            ][..],
        ),
        ("src/discovery", &["crate::fleet", "crate::proxy", "crate::server"][..]),
        ("src/wire", &["crate::fleet", "crate::proxy", "pingora::", "crate::server"][..]),
        (
            "src/state",
            &[
                "crate::fleet",
                "crate::wire",
                "crate::kv_events",
                "crate::config",
                "crate::telemetry",
                "crate::clock",
                "crate::proxy",
                "crate::server",
                "pingora",
                "tokio",
                "tracing",
                "Instant",
                "std::fs",
                "std::net",
                "std::os",
            ],
        ),
        ("src/config", &["crate::fleet", "crate::proxy", "crate::server"][..]),
        ("src/peers", &["crate::proxy", "crate::reports", "crate::admin", "crate::server"]),
        ("src/lifecycle", &["crate::admin", "crate::cli", "crate::server"][..]),
        ("src/telemetry", &["crate::fleet", "crate::proxy", "crate::server"][..]),
    ] {
        for (path, text) in sources(folder) {
            for word in banned {
                let clean = !without_tests(&text).contains(word);
                assert!(clean, "{} uses {word}", path.display());
            }
        }
    }
}

#[test]
fn files_can_be_read_in_one_sitting() {
    for folder in ["src", "bench"] {
        for (path, text) in sources(folder) {
            if is_test(&path) {
                continue;
            }
            let lines = without_tests(&text).lines().count();
            assert!(lines <= LINES_MAX, "{} has {lines} lines", path.display());
        }
    }
}

#[test]
fn every_module_says_what_it_is() {
    for folder in ["src", "bench"] {
        for (path, text) in sources(folder) {
            assert!(text.starts_with("//!"), "{} has no module doc", path.display());
        }
    }
}

#[test]
fn one_term_per_concept() {
    // Words STYLE.md retired, where they would name a thing of ours.
    for retired in ["backend_id", "BackendId", "fn get_", "evict_own", "struct Endpoint2"] {
        for (path, text) in sources("src") {
            assert!(!text.contains(retired), "{} says {retired}", path.display());
        }
    }
}

#[test]
fn every_key_of_the_configuration_is_in_the_example() {
    let read = |name: &str| fs::read_to_string(root().join("src/config").join(name)).expect(name);
    let keys = read("file.rs") + &read("discovery_file.rs") + &read("shadow_file.rs");
    let example = fs::read_to_string(root().join("conf/example.yaml")).expect("example.yaml");
    let fields = keys.lines().filter_map(|line| {
        let line = line.trim().trim_start_matches("pub ");
        let (name, rest) = line.split_once(':')?;
        let is_field =
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        (is_field && !rest.starts_with(':')).then(|| name.to_owned())
    });
    let mut count = 0;
    for field in fields {
        assert!(example.contains(&format!("{field}:")), "conf/example.yaml lacks {field}");
        count += 1;
    }
    assert!(count > 60, "only {count} keys found: has file.rs changed its form?");
}

#[test]
fn every_metric_is_documented() {
    let metrics: String = sources("src/telemetry").into_iter().map(|(_, text)| text).collect();
    let docs = fs::read_to_string(root().join("docs/metrics.md")).expect("docs/metrics.md");
    let names: Vec<_> = metrics
        .split('"')
        .filter(|part| part.starts_with("warmroute_") && !part.contains(' '))
        .collect();
    assert!(names.len() > 25, "only {} metrics found", names.len());
    for name in names {
        assert!(docs.contains(name), "docs/metrics.md lacks {name}");
    }
}
