//! The recorded hashes of vLLM.

use serde_json::Value;

use super::*;

fn vectors() -> Value {
    let path = "tests/fixtures/vllm-0.32.0-vectors/block_hash_vectors.json";
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    serde_json::from_slice(&std::fs::read(path).expect("vectors")).expect("JSON")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[test]
fn equals_every_vector_recorded_from_vllm() {
    let all = vectors();
    let mut passed = 0;
    for vector in all["vectors"].as_array().expect("a list") {
        let algorithm = match vector["algo"].as_str() {
            Some("sha256") => HashAlgorithm::Sha256,
            Some("sha256_cbor") => HashAlgorithm::Sha256Cbor,
            _ => continue,
        };
        let prompt = all["prompts"][vector["prompt"].as_str().expect("a name")].clone();
        let tokens: Vec<u32> = serde_json::from_value(prompt).expect("ids");
        let block_tokens = vector["block_size"].as_u64().expect("a size") as usize;
        let block_tokens = NonZeroUsize::new(block_tokens).expect("not zero");
        let kind = vector["extra"].as_str().expect("a kind");
        let lora = Lora { name: "adapter1", path: "/models/adapter1" };
        let extra = ExtraKeys {
            lora: kind.contains("lora").then_some(lora),
            salt: kind.contains("salt").then_some("tenant-a"),
        };
        let root = none_hash(algorithm, vector["PYTHONHASHSEED"].as_str());
        assert_eq!(hex(&root), vector["none_hash_hex"], "{vector}");
        let digests: Vec<String> = block_digests(&tokens, block_tokens, algorithm, &root, &extra)
            .map(|d| hex(&d))
            .collect();
        assert_eq!(serde_json::json!(digests), vector["hashes_hex"]);
        let hashes = block_hashes(&tokens, block_tokens, algorithm, &root, &extra);
        assert_eq!(serde_json::json!(hashes), vector["hashes_u64"]);
        passed += 1;
    }
    assert_eq!(passed, 84);
}

#[test]
fn only_full_blocks_have_a_name() {
    let root = none_hash(HashAlgorithm::Sha256, None);
    let size = NonZeroUsize::new(16).expect("not zero");
    let count = |tokens: &[u32]| {
        block_hashes(tokens, size, HashAlgorithm::Sha256, &root, &ExtraKeys::default()).len()
    };
    assert_eq!([count(&[]), count(&[1; 15]), count(&[1; 16]), count(&[1; 47])], [0, 0, 1, 2]);
}

#[test]
fn writes_what_python_pickles() {
    // python -c 'import pickle; print(pickle.dumps((b"\1\2", (2**31, 2**32 - 1), None), 5).hex())'
    let mut body = Vec::new();
    pickle::block(&[1, 2], &[1 << 31, u32::MAX], None, None, &mut body);
    let mut bytes = Vec::new();
    pickle::close(&body, &mut bytes);
    assert_eq!(hex(&bytes), PICKLED);
}

const PICKLED: &str = "800595190000000000000043020102948a0500000080008a05ffffffff0086944e87942e";
