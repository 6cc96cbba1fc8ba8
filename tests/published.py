"""The keys of published `config.json` files, in the spelling of their time.

Values that two files of a family share are said once; what a file adds or
changes stands at its name.
"""

# The library's defaults, which its versions 2 to 4 wrote into many files.
OLD_DEFAULTS = {
    "return_dict": True, "output_hidden_states": False,
    "output_attentions": False, "torchscript": False, "torch_dtype": None,
    "use_bfloat16": False, "tf_legacy_loss": False, "pruned_heads": {},
    "tie_word_embeddings": True, "chunk_size_feed_forward": 0,
    "is_encoder_decoder": False, "is_decoder": False,
    "cross_attention_hidden_size": None, "add_cross_attention": False,
    "tie_encoder_decoder": False, "max_length": 20, "min_length": 0,
    "do_sample": False, "early_stopping": False, "num_beams": 1,
    "num_beam_groups": 1, "diversity_penalty": 0.0, "temperature": 1.0,
    "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0,
    "length_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None,
    "num_return_sequences": 1, "output_scores": False,
    "return_dict_in_generate": False, "forced_bos_token_id": None,
    "forced_eos_token_id": None, "remove_invalid_values": False,
    "exponential_decay_length_penalty": None, "suppress_tokens": None,
    "begin_suppress_tokens": None, "architectures": None,
    "finetuning_task": None, "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "tokenizer_class": None,
    "prefix": None, "bos_token_id": None, "pad_token_id": None,
    "eos_token_id": None, "sep_token_id": None,
    "decoder_start_token_id": None, "task_specific_params": None,
    "problem_type": None, "_name_or_path": "", "num_labels": 2,
    "_attn_implementation_autoset": True, "use_cache": True,
    "keys_to_ignore_at_inference": ["past_key_values"],
    "_attn_implementation": "sdpa", "attn_implementation": "eager"}


def _sizes(names):
    """A function that puts numbers under the names."""
    names = names.split()
    return lambda text: dict(zip(names, map(int, text.split()), strict=True))


# GPT: V, max_length, D, L, H

_gpt_sizes = _sizes("vocab_size n_positions n_embd n_layer n_head")
_SUMMARY = {"summary_activation": None, "summary_first_dropout": 0.1,
            "summary_proj_to_labels": True, "summary_type": "cls_index",
            "summary_use_proj": True}
_NOISE = {"attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1,
          "initializer_range": 0.02, "layer_norm_epsilon": 1e-5}
_OF_2018 = {"n_special": 0, "predict_special_tokens": True}
_LONG = {"text-generation": {"do_sample": True, "max_length": 50}}
_CHAT = {"conversational": {"max_length": 1000}}


def _gpt2(sizes, **more):
    sizes = _gpt_sizes(sizes)
    return sizes | _SUMMARY | _NOISE | {
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
        "activation_function": "gelu_new", "n_ctx": sizes["n_positions"],
        "bos_token_id": 50256, "eos_token_id": 50256,
        "task_specific_params": _LONG} | more


_GPTS = {
    "openai-gpt": _gpt_sizes("40478 512 768 12 12") | _SUMMARY | _NOISE
    | _OF_2018 | {
        "model_type": "openai-gpt", "afn": "gelu", "n_ctx": 512,
        "architectures": ["OpenAIGPTLMHeadModel"],
        "task_specific_params": _LONG},
    "cdial-gpt": _gpt_sizes("13088 513 768 12 12") | _SUMMARY | _NOISE
    | _OF_2018 | {
        "model_type": "openai-gpt", "afn": "gelu", "n_ctx": 512,
        "finetuning_task": None, "is_decoder": False, "num_labels": 2,
        "output_past": True, "pruned_heads": {}, "torchscript": False,
        "use_bfloat16": False},
    "gpt2": _gpt2("50257 1024 768 12 12"),
    "gpt2-medium": _gpt2("50257 1024 1024 24 16", **_OF_2018),
    "gpt2-large": _gpt2("50257 1024 1280 36 20"),
    "gpt2-xl": _gpt2("50257 1024 1600 48 25", output_past=True),
    "distilgpt2": _gpt2("50257 1024 768 6 12", _num_labels=1,
                        id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}),
    "DialoGPT-small": _gpt2("50257 1024 768 12 12",
                            task_specific_params=_CHAT),
    "DialoGPT-medium": _gpt2("50257 1024 1024 24 16",
                             task_specific_params=_CHAT),
    "DialoGPT-large": _gpt2("50257 1024 1280 36 20",
                            task_specific_params=_CHAT),
    "german-gpt2": _gpt2("50265 1024 768 12 12", gradient_checkpointing=False,
                         resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                         _name_or_path="german-gpt2", use_cache=True,
                         transformers_version="4.6.0.dev0"),
    "tiny-gpt2": _gpt2("50257 1024 2 2 2"),
    "cerebras-gpt-111m": _gpt2(
        "50257 2048 768 10 12", activation_function="gelu", n_inner=3072,
        scale_attn_weights=True, reorder_and_upcast_attn=False,
        scale_attn_by_inverse_layer_idx=False, use_cache=True),
}

# The others: V, max_length, D, L, H, G, F

_decoder_sizes = _sizes(
    "vocab_size max_position_embeddings hidden_size num_hidden_layers "
    "num_attention_heads num_key_value_heads intermediate_size")


def _decoder(kind, name, sizes, shared, more):
    return _decoder_sizes(sizes) | {
        "model_type": kind, "architectures": [f"{name}ForCausalLM"],
        "initializer_range": 0.02, "torch_dtype": "bfloat16",
        "transformers_version": "4.40.0", "use_cache": True} | shared | more


def _llama(sizes, **more):
    return _decoder("llama", "Llama", sizes, {
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "bos_token_id": 1,
        "eos_token_id": 2, "tie_word_embeddings": False}, more)


_2 = {"pretraining_tp": 1, "rope_scaling": None}
_3 = _2 | {"rope_theta": 500000.0, "attention_bias": False,
           "attention_dropout": 0.0, "bos_token_id": 128000,
           "eos_token_id": 128001}
_31 = _3 | {"mlp_bias": False, "eos_token_id": [128001, 128008, 128009],
            "rope_scaling": {
                "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "rope_type": "llama3",
                "original_max_position_embeddings": 8192}}
_32 = _31 | {"tie_word_embeddings": True,
             "rope_scaling": _31["rope_scaling"] | {"factor": 32.0}}
_SMOL = _3 | {"is_llama_config": True, "rope_interleaved": False,
              "tie_word_embeddings": True, "bos_token_id": 0,
              "eos_token_id": 0, "rope_theta": 10000.0}
_LLAMAS = {
    "llama-1-7b": _llama("32000 2048 4096 32 32 32 11008", rms_norm_eps=1e-6,
                         max_sequence_length=2048, pad_token_id=0),
    "llama-1-65b": _llama("32000 2048 8192 80 64 64 22016",
                          rms_norm_eps=1e-6, pad_token_id=-1),
    "llama-2-7b": _llama("32000 4096 4096 32 32 32 11008", **_2),
    "llama-2-7b-chat": _llama(
        "32000 4096 4096 32 32 32 11008", **_2, temperature=0.9, top_p=0.6,
        max_length=4096, pad_token_id=0, do_sample=True),
    "llama-2-13b": _llama("32000 4096 5120 40 40 40 13824", **_2),
    "llama-2-70b": _llama("32000 4096 8192 80 64 8 28672", **_2),
    "vicuna-7b": _llama("32000 4096 4096 32 32 32 11008", **_2,
                        max_sequence_length=4096),
    "vicuna-7b-16k": _llama(
        "32000 4096 4096 32 32 32 11008", max_sequence_length=16384,
        **_2 | {"rope_scaling": {"factor": 4.0, "type": "linear"}}),
    "codellama-7b": _llama("32016 16384 4096 32 32 32 11008", **_2,
                           rope_theta=1000000),
    "codellama-34b": _llama("32000 16384 8192 48 64 8 22016", **_2,
                            rope_theta=1000000, attention_bias=False),
    "tinyllama": _llama("32000 2048 2048 22 32 4 5632", **_2,
                        attention_bias=False, rope_theta=10000.0),
    "llama-3-8b": _llama("128256 8192 4096 32 32 8 14336", **_3),
    "llama-3-70b": _llama("128256 8192 8192 80 64 8 28672", **_3),
    "llama-3.1-8b": _llama("128256 131072 4096 32 32 8 14336", **_31),
    "llama-3.1-8b-unsloth": _llama(
        "128256 131072 4096 32 32 8 14336", **_31, head_dim=128,
        unsloth_fixed=True, unsloth_version="2024.11"),
    "llama-3.1-70b": _llama("128256 131072 8192 80 64 8 28672", **_31),
    "llama-3.2-1b": _llama("128256 131072 2048 16 32 8 8192", **_32,
                           head_dim=64),
    "llama-3.2-3b": _llama("128256 131072 3072 28 24 8 8192", **_32,
                           head_dim=128),
    "smollm-135m": _llama("49152 2048 576 30 9 3 1536", **_SMOL),
    "smollm-360m": _llama("49152 2048 960 32 15 5 2560", **_SMOL),
    "smollm2-135m": _llama("49152 8192 576 30 9 3 1536",
                           **_SMOL | {"rope_theta": 100000}),
    "smollm2-1.7b": _llama(
        "49152 8192 2048 24 32 32 8192", **_SMOL | {
            "rope_theta": 130000, "transformers.js_config": {
                "kv_cache_dtype": {"fp16": "float16"}}}),
    "yi-6b": _llama("64000 4096 4096 32 32 4 11008", **_2,
                    rope_theta=5000000.0, pad_token_id=0),
    "deepseek-coder-1.3b": _llama(
        "32256 16384 2048 24 16 16 5504", rms_norm_eps=1e-6,
        rope_theta=100000, rope_scaling={"factor": 4.0, "type": "linear"},
        bos_token_id=32013, eos_token_id=32014, pretraining_tp=1),
}


def _mistral(sizes, **more):
    return _decoder("mistral", "Mistral", sizes, {
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "sliding_window": 4096, "bos_token_id": 1, "eos_token_id": 2,
        "tie_word_embeddings": False}, more)


_FAR = {"sliding_window": None, "rope_theta": 1000000.0,
        "attention_dropout": 0.0}
_MISTRALS = {
    "mistral-7b": _mistral("32000 32768 4096 32 32 8 14336"),
    "mistral-7b-v0.2": _mistral("32000 32768 4096 32 32 8 14336", **_FAR),
    "mistral-7b-v0.3": _mistral("32768 32768 4096 32 32 8 14336", **_FAR),
    "mistral-nemo": _mistral("131072 131072 5120 40 32 8 14336", **_FAR,
                             head_dim=128),
    "zephyr-7b": _mistral("32000 32768 4096 32 32 8 14336", pad_token_id=2,
                          _name_or_path="mistralai/Mistral-7B-v0.1"),
}


def _qwen(kind, name, sizes, **more):
    return _decoder(kind, name, sizes, {
        "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_dropout": 0.0,
        "rope_theta": 1000000.0, "use_sliding_window": False,
        "bos_token_id": 151643, "eos_token_id": 151645,
        "sliding_window": 131072, "max_window_layers": 28,
        "tie_word_embeddings": False}, more)


_3_QWEN = {"attention_bias": False, "head_dim": 128, "rope_scaling": None,
           "sliding_window": None}
_EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8,
            "moe_intermediate_size": 768, "decoder_sparse_step": 1,
            "mlp_only_layers": [], "norm_topk_prob": True,
            "output_router_logits": False, "router_aux_loss_coef": 0.001}
_QWENS = {
    "qwen1.5-0.5b": _qwen("qwen2", "Qwen2",
                          "151936 32768 1024 24 16 16 2816",
                          tie_word_embeddings=True, sliding_window=32768,
                          max_window_layers=21),
    "qwen2-0.5b": _qwen("qwen2", "Qwen2", "151936 131072 896 24 14 2 4864",
                        tie_word_embeddings=True, max_window_layers=24),
    "qwen2-1.5b": _qwen("qwen2", "Qwen2", "151936 131072 1536 28 12 2 8960",
                        tie_word_embeddings=True),
    "qwen2-7b": _qwen("qwen2", "Qwen2", "152064 131072 3584 28 28 4 18944"),
    "qwen2-72b": _qwen("qwen2", "Qwen2", "152064 131072 8192 80 64 8 29568",
                       rms_norm_eps=1e-5, max_window_layers=80),
    "qwen2.5-0.5b": _qwen("qwen2", "Qwen2", "151936 32768 896 24 14 2 4864",
                          tie_word_embeddings=True, use_mrope=False,
                          sliding_window=32768, max_window_layers=24),
    "qwen2.5-7b-instruct": _qwen("qwen2", "Qwen2",
                                 "152064 32768 3584 28 28 4 18944"),
    "qwen2.5-coder-yarn": _qwen(
        "qwen2", "Qwen2", "152064 32768 5120 64 40 8 27648",
        rope_scaling={"factor": 4.0, "type": "yarn",
                      "original_max_position_embeddings": 32768}),
    "deepseek-r1-distill-qwen-1.5b": _qwen(
        "qwen2", "Qwen2", "151936 131072 1536 28 12 2 8960", use_mrope=False,
        rope_theta=10000, sliding_window=4096, max_window_layers=21),
    "qwen3-0.6b": _qwen("qwen3", "Qwen3", "151936 40960 1024 28 16 8 3072",
                        **_3_QWEN, tie_word_embeddings=True),
    "qwen3-4b": _qwen("qwen3", "Qwen3", "151936 40960 2560 36 32 8 9728",
                      **_3_QWEN, tie_word_embeddings=True,
                      max_window_layers=36),
    "qwen3-8b": _qwen("qwen3", "Qwen3", "151936 40960 4096 36 32 8 12288",
                      **_3_QWEN, max_window_layers=36),
    "qwen3-32b": _qwen("qwen3", "Qwen3", "151936 40960 5120 64 64 8 25600",
                       **_3_QWEN, max_window_layers=64),
    "qwen3-30b-a3b": _qwen("qwen3_moe", "Qwen3Moe",
                           "151936 40960 2048 48 32 4 6144", **_3_QWEN,
                           **_EXPERTS, max_window_layers=48),
    "qwen3-235b-a22b": _qwen(
        "qwen3_moe", "Qwen3Moe", "151936 40960 4096 94 64 4 12288",
        **_3_QWEN, **_EXPERTS | {"moe_intermediate_size": 1536},
        max_window_layers=94),
    "qwen3-coder-30b-a3b": _qwen(
        "qwen3_moe", "Qwen3Moe", "151936 262144 2048 48 32 4 5472",
        **_3_QWEN, **_EXPERTS, rope_theta=10000000, qkv_bias=False,
        use_qk_norm=True, shared_expert_intermediate_size=0),
}


def _gemma(generation, sizes, **more):
    name = {"": "Gemma", "2": "Gemma2", "3_text": "Gemma3"}[generation]
    return _decoder(f"gemma{generation}", name, sizes, {
        "attention_bias": False, "attention_dropout": 0.0, "head_dim": 256,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "bos_token_id": 2,
        "eos_token_id": 1, "pad_token_id": 0}, more)


_ONE = {"hidden_act": "gelu", "hidden_activation": None,
        "rope_scaling": None}
_TWO = {"hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "cache_implementation": "hybrid", "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256,
        "sliding_window": 4096}
_THREE = {"hidden_activation": "gelu_pytorch_tanh", "rope_scaling": None,
          "attn_logit_softcapping": None, "final_logit_softcapping": None,
          "cache_implementation": "hybrid", "query_pre_attn_scalar": 256,
          "rope_local_base_freq": 10000, "rope_theta": 1000000,
          "sliding_window": 512}
_GEMMAS = {
    "gemma-2b": _gemma("", "256000 8192 2048 18 8 1 16384", **_ONE),
    "gemma-2b-it": _gemma(
        "", "256000 8192 2048 18 8 1 16384",
        **_ONE | {"hidden_activation": "gelu_pytorch_tanh"}),
    "gemma-7b": _gemma("", "256000 8192 3072 28 16 16 24576",
                       hidden_act="gelu_pytorch_tanh"),
    "gemma-2-2b": _gemma("2", "256000 8192 2304 26 8 4 9216", **_TWO),
    "gemma-2-9b": _gemma("2", "256000 8192 3584 42 16 8 14336", **_TWO,
                         sliding_window_size=4096),
    "gemma-2-27b": _gemma("2", "256000 8192 4608 46 32 16 36864",
                          **_TWO | {"query_pre_attn_scalar": 144},
                          **{"head_dim": 128, "_attn_implementation": "eager",
                             "use_cache": True}),
    "gemma-3-1b": _gemma("3_text", "262144 32768 1152 26 4 1 6912", **_THREE,
                         sliding_window_pattern=6),
    "gemma-3-270m": _gemma(
        "3_text", "262144 32768 640 18 4 1 2048", **_THREE,
        _sliding_window_pattern=6, use_bidirectional_attention=False,
        layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 3),
}

_MIXTRALS = {
    name: _decoder("mixtral", "Mixtral", sizes, {
        "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
        "attention_dropout": 0.0, "num_experts_per_tok": 2,
        "num_local_experts": 8, "output_router_logits": False,
        "sliding_window": None, "bos_token_id": 1, "eos_token_id": 2,
        "tie_word_embeddings": False}, more)
    for name, sizes, more in [
        ("mixtral-8x7b", "32000 32768 4096 32 32 8 14336",
         {"router_aux_loss_coef": 0.02}),
        ("mixtral-8x22b", "32768 65536 6144 56 48 8 16384",
         {"router_aux_loss_coef": 0.001, "router_jitter_noise": 0.0})]}

PUBLISHED = _GPTS | _LLAMAS | _MISTRALS | _QWENS | _GEMMAS | _MIXTRALS
