//! What a reload can change, and what only a new process can.

use serde_yaml_ng::Value;

use super::Config;

impl Config {
    /// Takes over from the `running` configuration what only a new process can change; gives the
    /// keys that differ there.
    pub fn keep_cold(&mut self, running: &Self) -> Vec<&'static str> {
        let mut kept = Vec::new();
        keep("listen", &mut self.listen, &running.listen, &mut kept);
        keep("threads", &mut self.threads, &running.threads, &mut kept);
        keep("metrics.listen", &mut self.metrics, &running.metrics, &mut kept);
        match (&mut self.tls, &running.tls) {
            (Some(new), Some(old)) => keep("tls.listen", &mut new.listen, &old.listen, &mut kept),
            (None, None) => {}
            (new, old) => {
                new.clone_from(old);
                kept.push("tls");
            }
        }
        match (&mut self.reports, &running.reports) {
            (Some(new), Some(old)) => {
                keep("reports.listen", &mut new.listen, &old.listen, &mut kept);
                let queue = (&mut new.queue_batches_max, &old.queue_batches_max);
                keep("reports.queue_batches_max", queue.0, queue.1, &mut kept);
            }
            (None, None) => {}
            (new, old) => {
                new.clone_from(old);
                kept.push("reports");
            }
        }
        match (&mut self.admin, &running.admin) {
            (Some(new), Some(old)) => {
                keep("admin.listen", &mut new.listen, &old.listen, &mut kept);
            }
            (None, None) => {}
            (new, old) => {
                new.clone_from(old);
                kept.push("admin");
            }
        }
        // All that is known of the workers is named by it.
        let block_bytes = (&mut self.index.block_bytes, &running.index.block_bytes);
        keep("index.block_bytes", block_bytes.0, block_bytes.1, &mut kept);
        keep("state", &mut self.state, &running.state, &mut kept);
        keep("log.format", &mut self.log.json, &running.log.json, &mut kept);
        kept
    }
}

fn keep<T: Clone + PartialEq>(
    key: &'static str,
    new: &mut T,
    old: &T,
    kept: &mut Vec<&'static str>,
) {
    if new != old {
        new.clone_from(old);
        kept.push(key);
    }
}

/// Keys whose values differ between two files, as dotted paths; lists are told as a whole.
pub fn changed_keys(before: &Value, after: &Value) -> Vec<String> {
    let mut changed = Vec::new();
    collect(String::new(), before, after, &mut changed);
    changed
}

fn collect(path: String, before: &Value, after: &Value, changed: &mut Vec<String>) {
    if before == after {
        return;
    }
    let empty = serde_yaml_ng::Mapping::new();
    let (old, new) = match (before, after) {
        (Value::Mapping(old), Value::Mapping(new)) => (old, new),
        // A section that is new or gone: its keys are.
        (Value::Mapping(old), Value::Null) => (old, &empty),
        (Value::Null, Value::Mapping(new)) => (&empty, new),
        _ => return changed.push(path),
    };
    let names = old.keys().chain(new.keys().filter(|name| !old.contains_key(*name)));
    for name in names {
        let text = name.as_str().map_or_else(|| format!("{name:?}"), str::to_owned);
        let path = if path.is_empty() { text } else { format!("{path}.{text}") };
        let value = |mapping: &serde_yaml_ng::Mapping| mapping.get(name).cloned();
        collect(path, &value(old).unwrap_or_default(), &value(new).unwrap_or_default(), changed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn yaml(text: &str) -> Value {
        serde_yaml_ng::from_str(text).expect("YAML")
    }

    #[test]
    fn keys_that_differ_are_named() {
        let before = yaml("a: 1\nb: {c: 1, d: [1, 2]}\ne: {f: 1}");
        let after = yaml("a: 1\nb: {c: 2, d: [2, 1]}\ng: {h: 1}");
        assert_eq!(changed_keys(&before, &after), ["b.c", "b.d", "e.f", "g.h"]);
        assert!(changed_keys(&before, &before.clone()).is_empty());
        assert_eq!(changed_keys(&yaml("a: {b: 1}"), &yaml("a: 1")), ["a"]);
    }

    #[test]
    fn what_a_reload_cannot_change_is_kept_and_named() {
        let config = |text: &str| {
            let base = "workers: [{id: a, url: 'http://127.0.0.1:1'}]";
            crate::config::parse::parse_config(&format!("{text}\n{base}")).expect("valid")
        };
        let running = config(
            "listen: 127.0.0.1:8080\nthreads: 2\nreports: {listen: '127.0.0.1:8081', token: a}",
        );
        let mut new = config(
            "listen: 127.0.0.1:8090\nthreads: 3\nadmin: {listen: '127.0.0.1:8082'}\n\
             reports: {listen: '127.0.0.1:8083', token: b}\nindex: {block_bytes: 64}\n\
             log: {format: json, level: debug}\npolicy: random",
        );
        let kept = new.keep_cold(&running);
        let named =
            ["listen", "threads", "reports.listen", "admin", "index.block_bytes", "log.format"];
        assert_eq!(kept, named);
        assert_eq!((&new.listen, new.threads), (&running.listen, 2));
        assert!(new.admin.is_none());
        assert_eq!(new.index.block_bytes, running.index.block_bytes);
        // The rest is the new file's.
        assert_eq!(new.reports.as_ref().and_then(|r| r.token.as_deref()), Some("b"));
        assert_eq!(new.policies.default.0.as_str(), "random");
        assert!(new.keep_cold(&running).is_empty());
        let mut without = config("listen: 127.0.0.1:8080\nthreads: 2");
        assert_eq!(without.keep_cold(&running), ["reports"]);
        assert!(without.reports.is_some());
    }
}
