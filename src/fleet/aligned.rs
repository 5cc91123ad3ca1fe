//! The models in aligned mode: their tokenizers, names, and whether workers agree with them.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsString,
    num::NonZeroUsize,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::SystemTime,
};

use rand::Rng;

use crate::{
    aligned::{
        AlignedModel, Options, Unaligned,
        engine_hash::{self, BlockDigest, ExtraKeys, HashAlgorithm},
    },
    config::{AlignedConfig, BlockHashConfig, Config, ConfigError},
    routing::block::{BlockHash, BlockHasher, Root},
    wire::{
        endpoint::PromptForm,
        prompt::{Facts, Hashing, PROMPTS_MAX, RootFields, TOKENS_A_BLOCK},
    },
};

use super::{Live, apply::BARE_BLOCK_BYTES};

/// How engines name a model's blocks.
#[derive(Debug)]
pub struct EngineHash {
    algorithm: HashAlgorithm,
    block_tokens: NonZeroUsize,
    none_hash: BlockDigest,
}

impl EngineHash {
    fn of(config: &BlockHashConfig) -> Self {
        let algorithm = if config.cbor { HashAlgorithm::Sha256Cbor } else { HashAlgorithm::Sha256 };
        let none_hash = engine_hash::none_hash(algorithm, config.seed.as_deref());
        Self { algorithm, block_tokens: config.block_tokens, none_hash }
    }

    fn blocks(&self, tokens: &[u32], salt: Option<&str>) -> Vec<u64> {
        let extra = ExtraKeys { salt, ..ExtraKeys::default() };
        let Self { algorithm, block_tokens, none_hash } = self;
        engine_hash::block_hashes(tokens, *block_tokens, *algorithm, none_hash, &extra)
    }
}

/// One model.
#[derive(Debug)]
pub struct AlignedEntry {
    /// Its name in the configuration.
    pub name: String,
    /// Renders and tokenizes.
    pub model: Arc<AlignedModel>,
    /// What the model was read from.
    source: ModelSource,
    /// How engines name its blocks, where that is configured.
    pub block_hash: Option<EngineHash>,
    /// Whether a worker tokenizes otherwise: then its prompts are matched as text.
    mismatch: AtomicBool,
}

/// What a model was read from: while it is the same, so is the model.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ModelSource {
    /// Size and age of every file in its folder, by name.
    files: BTreeMap<OsString, (u64, Option<SystemTime>)>,
    folder: PathBuf,
    segment_cache_bytes: usize,
    bytes_max: usize,
}

impl ModelSource {
    fn of(config: &AlignedConfig, options: &Options) -> Self {
        let folder = config.tokenizer.clone();
        // What cannot be read is told by the one who needs it.
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let files = entries.filter_map(|entry| {
            // Of the file, not of a link to it.
            let data = std::fs::metadata(entry.path()).ok()?;
            Some((entry.file_name(), (data.len(), data.modified().ok())))
        });
        Self {
            files: files.collect(),
            folder,
            segment_cache_bytes: options.segment_cache_bytes,
            bytes_max: options.bytes_max,
        }
    }
}

/// All of them, by every name they have.
#[derive(Debug, Default)]
pub struct AlignedModels {
    by_name: HashMap<String, Arc<AlignedEntry>>,
}

impl AlignedModels {
    /// Reads the tokenizers that `config` names, but for those that `before` has as they are now.
    ///
    /// # Errors
    /// When one of them cannot be used; names its key.
    pub fn load(config: &Config, before: Option<&Self>) -> Result<Self, ConfigError> {
        let options = Options {
            segment_cache_bytes: config.aligned.segment_cache_bytes,
            bytes_max: config.aligned.body_bytes_max,
            ..Options::new(rand::rng().random())
        };
        let mut by_name = HashMap::new();
        for aligned in config.aligned_models.values() {
            let known = before.and_then(|before| before.by_name.get(&aligned.name));
            let entry = Arc::new(AlignedEntry::load(aligned, &options, known)?);
            for name in std::iter::once(&aligned.name).chain(&aligned.aliases) {
                by_name.insert(name.clone(), entry.clone());
            }
        }
        Ok(Self { by_name })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// The model of this name.
    pub fn of(&self, name: &str) -> Option<Arc<AlignedEntry>> {
        self.by_name.get(name).cloned()
    }

    /// Each further name and the one it stands for.
    pub fn aliases(&self) -> Arc<HashMap<String, String>> {
        let further = self.by_name.iter().filter(|(name, entry)| **name != entry.name);
        Arc::new(further.map(|(name, entry)| (name.clone(), entry.name.clone())).collect())
    }
}

impl AlignedEntry {
    fn load(
        config: &AlignedConfig,
        options: &Options,
        known: Option<&Arc<Self>>,
    ) -> Result<Self, ConfigError> {
        let block_hash = config.block_hash.as_ref().map(EngineHash::of);
        let (name, source) = (config.name.clone(), ModelSource::of(config, options));
        if let Some(known) = known.filter(|known| known.source == source) {
            let mismatch = AtomicBool::new(known.is_mismatched());
            return Ok(Self { name, model: known.model.clone(), source, block_hash, mismatch });
        }
        let model = AlignedModel::load(&config.tokenizer, options).map_err(|error| {
            let key = format!("models.{}.tokenizer", config.name);
            let value = format!("`{}`", config.tokenizer.display());
            let remedy = "name a folder with the model's tokenizer.json and tokenizer_config.json";
            ConfigError::new(key, value, error.to_string(), remedy)
        })?;
        let (model, mismatch) = (Arc::new(model), AtomicBool::new(false));
        Ok(Self { name, model, source, block_hash, mismatch })
    }

    /// Whether workers are known to tokenize otherwise.
    pub fn is_mismatched(&self) -> bool {
        self.mismatch.load(Relaxed)
    }

    /// Takes in what the workers' tokenizers said.
    pub fn set_mismatched(&self, mismatch: bool) {
        self.mismatch.store(mismatch, Relaxed);
    }

    /// Tokens of every prompt in a body.
    ///
    /// # Errors
    /// Why they cannot be told.
    pub fn tokens(&self, form: PromptForm, body: &[u8]) -> Result<Vec<Vec<u32>>, Unaligned> {
        match form {
            PromptForm::Chat => self.model.chat(body).map(|tokens| vec![tokens]),
            PromptForm::Responses => self.model.responses(body).map(|tokens| vec![tokens]),
            PromptForm::Messages => self.model.messages(body).map(|tokens| vec![tokens]),
            PromptForm::Completion => self.model.completion(body),
        }
    }

    /// Puts blocks of tokens in the place of the blocks of text in `facts`.
    ///
    /// # Errors
    /// Why the prompt cannot be aligned; `facts` is as before.
    pub fn align(
        &self,
        form: PromptForm,
        body: &[u8],
        tenant: &[u8],
        hashing: &Hashing,
        facts: &mut Facts,
    ) -> Result<(), Unaligned> {
        let prompts = self.tokens(form, body)?;
        let asked = facts.model.as_deref().unwrap_or("");
        let model = if facts.lora.is_empty() { asked } else { &facts.lora };
        let looked_at = prompts.iter().take(PROMPTS_MAX);
        facts.prompts = match &self.block_hash {
            None => {
                let root = hashing.token_root(model, tenant, &facts.cache_salt);
                looked_at.map(|tokens| hashing.token_blocks(root, tokens)).collect()
            }
            Some(_) if model != asked || hashing.canonical(asked) != self.name => {
                // An adapter's path is part of the engine's hash, and known to nobody here.
                return Err(Unaligned::Shape("adapter"));
            }
            Some(hash) => {
                let salt = Some(&*facts.cache_salt).filter(|salt| !salt.is_empty());
                let root = bare_root(hashing, &self.name);
                looked_at.map(|tokens| bare_blocks(hash, root, tokens, salt)).collect()
            }
        };
        facts.block_tokens =
            self.block_hash.as_ref().map_or(TOKENS_A_BLOCK, |hash| hash.block_tokens.get());
        let tokens: usize = prompts.iter().map(Vec::len).sum();
        facts.tokens = Some(tokens as u64);
        facts.readable = true;
        Ok(())
    }
}

impl Live {
    /// The root of blocks that engines name by their own hash.
    pub(super) fn bare_root(&self, model: &str) -> Root {
        bare_root(&self.hashing, self.hashing.canonical(model))
    }
}

/// The engine's hash commits to all but the model.
fn bare_root(hashing: &Hashing, model: &str) -> Root {
    let fields = RootFields { model, lora: "\u{1}bare", ..RootFields::default() };
    fields.root(&hashing.secret)
}

fn bare_blocks(
    hash: &EngineHash,
    root: Root,
    tokens: &[u32],
    salt: Option<&str>,
) -> Vec<BlockHash> {
    let mut hasher = BlockHasher::new(root, BARE_BLOCK_BYTES);
    for id in hash.blocks(tokens, salt) {
        hasher.push(&id.to_le_bytes());
    }
    hasher.finish()
}
