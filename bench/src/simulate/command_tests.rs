//! Whole simulations.

use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Flags {
    #[command(flatten)]
    options: SimulateOptions,
}

/// What is said, and the results.
fn play(flags: &str) -> (String, serde_json::Value) {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("results.json");
    let mut words: Vec<&str> =
        std::iter::once("simulate").chain(flags.split_whitespace()).collect();
    words.extend(["--out", out.to_str().unwrap()]);
    let mut said = String::new();
    let options = Flags::try_parse_from(words).unwrap().options;
    simulate(&options, None, &mut |text| said.push_str(text)).unwrap();
    (said, serde_json::from_str(&std::fs::read_to_string(&out).unwrap()).unwrap())
}

fn number(results: &serde_json::Value, path: &str) -> f64 {
    results.pointer(path).and_then(serde_json::Value::as_f64).unwrap_or_else(|| panic!("{path}"))
}

#[test]
fn every_policy_runs_and_a_seed_repeats_exactly() {
    let flags = "--policies prefix-aware,cost,lmetric,llm-d --redraws 3 --engine fifo,batching --silent 0.2";
    let (said, results) = play(flags);
    assert_eq!(results["format"], FORMAT);
    assert_eq!(results["cells"].as_array().unwrap().len(), 2);
    for (at, policy) in ["shared", "prefix-aware", "cost", "lmetric", "llm-d"].iter().enumerate() {
        assert!(said.contains(policy));
        for cell in 0..2 {
            let of = format!("/cells/{cell}/policies/{at}");
            assert_eq!(results.pointer(&format!("{of}/policy")).unwrap(), policy);
            assert!(number(&results, &format!("{of}/mean/value/p50")) > 0.0);
            assert!(number(&results, &format!("{of}/to_shared/error/p95")) >= 0.0);
            let redraws = results.pointer(&format!("{of}/redraws")).unwrap();
            assert_eq!(redraws.as_array().unwrap().len(), 3);
        }
    }
    // However many run at a time.
    assert_eq!(play(&format!("{flags} --threads 3")).1, results);
    assert_ne!(play(&format!("{flags} --seed 2")).1["cells"], results["cells"]);
}

/// The order that makes the numbers worth anything: an endless common cache is best, a common one
/// next, and who knows nothing of prefixes is worst.
#[test]
fn bounds_bound() {
    let (_, results) = play("--policies infinite,prefix-aware,round-robin --redraws 4 --cache 8k");
    let mean = |at: usize| number(&results, &format!("/cells/0/policies/{at}/mean/value/mean"));
    let hit = |at: usize| number(&results, &format!("/cells/0/policies/{at}/mean/value/hit"));
    let [shared, infinite, aware, blind] = [0, 1, 2, 3].map(mean);
    assert!(
        infinite <= shared && shared < aware && aware < blind,
        "{infinite} {shared} {aware} {blind}"
    );
    assert!(hit(1) >= hit(0) && hit(0) > hit(2) && hit(2) > hit(3));
    let to_shared = number(&results, "/cells/0/policies/2/to_shared/value/mean");
    assert!((to_shared - aware / shared).abs() < 1e-9);
}

#[test]
fn less_knowledge_predicts_otherwise() {
    let stale = |knowledge: &str| {
        let (_, results) = play(&format!(
            "--policies prefix-aware --redraws 2 --cache 4k --knowledge {knowledge}"
        ));
        assert_eq!(results["settings"]["knowledge"], knowledge);
        number(&results, "/cells/0/policies/1/mean/value/stale")
    };
    let (exact, late) = (stale("exact"), stale("late:30"));
    let (lossy, blind) = (stale("lossy:0.5"), stale("presumed:16,no-feedback"));
    // What was taken for 16 times its size holds much that is gone.
    assert!(exact < blind, "{exact} {blind}");
    for other in [late, lossy] {
        assert!((exact - other).abs() > 0.0, "{exact} {other}");
    }
}

#[test]
fn a_matrix_is_summed_up() {
    let (said, results) = play(
        "--matrix --redraws 2 --limit 80 --workers 2,4 --cache 1x --load 0.5,1.1 --engine fifo \
         --policies prefix-aware,round-robin",
    );
    assert_eq!(results["cells"].as_array().unwrap().len(), 2 * 2 * 2);
    let summary = &results["summary"];
    assert_eq!(summary["means"][0]["cells"], 8);
    let policies: Vec<_> =
        summary["harm"].as_array().unwrap().iter().map(|harm| &harm["policy"]).collect();
    assert_eq!(policies, ["prefix-aware", "round-robin"]);
    for harm in summary["harm"].as_array().unwrap() {
        assert_eq!(harm["comparisons"], 16);
        let ratios =
            harm["worst"].as_array().unwrap().iter().map(|one| one["ratio"].as_f64().unwrap());
        assert!(ratios.clone().is_sorted_by(|a, b| a >= b));
        let over = ratios.filter(|ratio| *ratio > matrix::HARM).count() as u64;
        assert!(over <= harm["over"].as_u64().unwrap());
    }
    assert!(said.contains("Geometric means") && said.contains("one 3x slower"));
}

#[test]
fn capacity_falls_with_the_objective() {
    let capacity = |slo: &str| {
        let (said, results) = play(&format!("--slo {slo} --policies prefix-aware --redraws 2"));
        assert!(said.contains(&format!("within {slo} s")) && !said.contains("NaN"));
        assert!(results.pointer("/cells/0/load").unwrap().is_null());
        number(&results, "/cells/0/policies/1/capacities/0")
    };
    let (strict, lax) = (capacity("0.15"), capacity("1"));
    assert!(0.0 < strict && strict < lax, "{strict} {lax}");
    // Sooner than a step takes no first token comes.
    assert!(capacity("0.01") <= 0.0);
}

#[test]
fn what_cannot_be_read_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.jsonl");
    let line = |blocks: &str| {
        format!(
            "{{\"t\":0,\"session\":1,\"turn\":0,\"max_tokens\":1,\"in\":2,\"bt\":1,\"blocks\":{blocks}}}\n"
        )
    };
    for (text, named) in [
        (String::new(), "t.jsonl"),
        ("{}".to_owned(), "t.jsonl:1"),
        (line("[1,1]"), "request 1 has a block"),
        (line("[1,2,3,4]"), "request 1 has more or fewer"),
    ] {
        std::fs::write(&path, text).unwrap();
        let words = ["simulate", "--trace", path.to_str().unwrap()];
        let options = Flags::try_parse_from(words).unwrap().options;
        let error = simulate(&options, None, &mut |_| {}).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}
