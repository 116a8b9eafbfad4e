"""The converter, on a tiny random Llama of transformers that the test writes as GGUF, as llama.cpp would."""

import json

import gguf
import pytest
import torch
from gguf_to_hf import ConversionError, convert
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, FFN = 2, 24, 3, 1, 8, 40
TOKENS = ["<|end|>", *sorted(ByteLevel.alphabet()), "Ġa", "nd"]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tiny_llama(tied=True):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        intermediate_size=FFN,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_theta=50000.0,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def permute(weight, num_heads):
    """llama.cpp's row order of q and k."""
    return weight.reshape(num_heads, 2, HEAD_DIM // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, llama, *, pre="smollm", extra=()):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(50000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] + [1] * (len(TOKENS) - 1))
    writer.add_token_merges(["Ġ a", "n d"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, parameter in llama.named_parameters():
        weight = parameter.detach().numpy()
        if "q_proj" in name:
            weight = permute(weight, HEADS)
        if "k_proj" in name:
            weight = permute(weight, KV_HEADS)
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        writer.add_tensor(name, weight)
    for name in extra:
        writer.add_tensor(name, torch.zeros(4, HIDDEN).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model):
    with torch.inference_mode():
        return model(torch.arange(40)[None] * 5).logits


@pytest.fixture
def source(tmp_path):
    return write_gguf(tmp_path / "tiny.gguf", tiny_llama())


@pytest.mark.parametrize("heads", [None, (6, 2), (12, 4)])
def test_same_logits_with_or_without_padding(source, tmp_path, heads):
    convert(source, tmp_path, "float32", heads)
    config = json.loads((tmp_path / "config.json").read_text())
    wanted = heads or (HEADS, KV_HEADS)
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (*wanted, HEAD_DIM)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(converted), logits(tiny_llama()), rtol=1e-5, atol=1e-5)


def test_a_head_of_its_own_and_another_dtype(tmp_path):
    llama = tiny_llama(tied=False)
    convert(write_gguf(tmp_path / "x.gguf", llama), tmp_path, "bfloat16")
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not model.config.tie_word_embeddings
    torch.testing.assert_close(model.lm_head.weight, llama.lm_head.weight.bfloat16(), rtol=0, atol=0)


def test_the_tokenizer(source, tmp_path):
    convert(source, tmp_path, "float32")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "sand and 42 é\n"
    ids = tokenizer.encode(text + "<|end|>")
    assert tokenizer.decode(ids) == text + "<|end|>"
    assert ids[-1] == tokenizer.eos_token_id == 0
    assert [TOKENS[i] for i in ids[:4]] == ["s", "a", "nd", "Ġa"]


@pytest.mark.parametrize("heads", [(4, 2), (3, 2), (2, 1)])
def test_heads_that_change_the_grouping_are_refused(source, tmp_path, heads):
    with pytest.raises(ConversionError, match="cannot pad 3/1 heads"):
        convert(source, tmp_path, "float32", heads)


def test_unknown_parts_are_refused(tmp_path):
    with pytest.raises(ConversionError, match="pre-tokenizer 'other' is not known"):
        convert(write_gguf(tmp_path / "a.gguf", tiny_llama(), pre="other"), tmp_path, "float32")
    with pytest.raises(ConversionError, match=r"'blk.0.ffn_gate_inp.weight' is not part of a Llama"):
        convert(write_gguf(tmp_path / "b.gguf", tiny_llama(), extra=["blk.0.ffn_gate_inp.weight"]), tmp_path, "float32")
