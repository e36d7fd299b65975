"""Small random models of transformers, with a tokenizer, in folders that tests share."""

from pathlib import Path
from typing import Any

SAID = (
    "The river ran past the mill, and the mill ground the corn of three villages.\n"
    "In winter the wheel froze; in summer, when the water was low, it stood still.\n\n"
    "Its keeper wrote every sack down: 12 of rye, 7 of wheat, 1 of oats - and who had paid.\n"
)
"""Text that the tokenizer is trained on."""
VOCAB, CONTEXT = 320, 64
LAYERS: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**LAYERS, "tie_word_embeddings": True},
    "mistral": {**LAYERS, "head_dim": 16, "sliding_window": 32},
    "qwen2": {**LAYERS, "tie_word_embeddings": True},
    "qwen3": {**LAYERS, "head_dim": 16, "tie_word_embeddings": True},
    "gemma2": {**LAYERS, "head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": {**LAYERS, "head_dim": 16, "query_pre_attn_scalar": 16},
    "gpt2": {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": CONTEXT},
    "gpt_neox": {k: v for k, v in LAYERS.items() if k != "num_key_value_heads"},
    "olmo2": LAYERS,
    "phi3": LAYERS,
    "smollm3": LAYERS,
}
"""Configuration of each family by its name in transformers."""


def tokenizer(template: str | None = None) -> Any:
    """A byte-level BPE tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([SAID], trainer)
    found = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>")
    found.chat_template = template
    return found


def make_folder(folder: Path, family: str, template: str | None = None, **more: Any) -> Path:
    """A folder as `save_pretrained` writes it, of a random model of the family."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    tokens = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "vocab_size": VOCAB}
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **tokens, **more})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        # a random model says next to nothing; this one has a will of its own
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0)
    model.save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return folder


def train_folder(folder: Path, steps: int = 120) -> Path:
    """The folder, its model trained on `SAID` until it knows it, so that all layers have effect."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.tensor(AutoTokenizer.from_pretrained(folder).encode(SAID * 4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.div_(3.0 if parameter.ndim > 1 else 1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        starts = torch.randint(0, len(tokens) - CONTEXT, (8, 1), generator=generator)
        windows = tokens[starts + torch.arange(CONTEXT)]
        model(windows, labels=windows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def with_spaces_as_llama_has_them(made: Any) -> None:
    """A space before the text, spaces as U+2581, and characters that are no token as bytes."""
    from tokenizers import decoders, normalizers

    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def sentencepiece_tokenizer(kind: str, folder: Path) -> tuple[Any, Any]:
    """A SentencePiece model, ``bpe`` or ``unigram``, and what Llama's ``tokenizer.json`` makes of
    one."""
    import sentencepiece
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    text = folder / "text.txt"
    text.write_text(SAID * 5, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / kind),
        model_type=kind,
        vocab_size=VOCAB + 60,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(str(folder / f"{kind}.model"))
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    scores = {piece: pieces.get_score(i) for piece, i in vocab.items()}
    if kind == "bpe":
        cuts = [(p[:at], p[at:]) for p in vocab for at in range(1, len(p))]
        merges = [cut for cut in cuts if cut[0] in vocab and cut[1] in vocab]
        merges.sort(key=lambda cut: -scores["".join(cut)])
        model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    else:
        model = models.Unigram(list(scores.items()), unk_id=0, byte_fallback=True)
    made = Tokenizer(model)
    with_spaces_as_llama_has_them(made)
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return pieces, PreTrainedTokenizerFast(tokenizer_object=made, **special)


def make_gguf(path: Path, folder: Path) -> Path:
    """A GGUF file, in float32, of the Llama in a folder."""
    import json

    import gguf
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    config, state = model.config, model.state_dict()
    words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    tokens = sorted(words["vocab"], key=words["vocab"].get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == "<|end|>" else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in words["merges"]])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, value in state.items():
        if name == "lm_head.weight":
            continue  # tied
        rows = value.numpy()
        if (count := heads.get(name.split(".")[-2])) is not None:
            # llama.cpp has the two halves of a head's rotation side by side
            halves = rows.reshape(count, 2, len(rows) // count // 2, rows.shape[1])
            rows = halves.swapaxes(1, 2).reshape(rows.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), rows.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
