"""Tiny random encoders with a WordPiece vocabulary: in transformers, as sentence-transformers uses them, and in GGUF."""

import functools
import json
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, normalizers, pre_tokenizers, processors

from archs.models import Case, reference
from qtransformers.convert import convert

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Café, naïve; Übermut!",
    "dog",
    "the dog sleeps in the sun while the fox runs on and on, " * 9,
    "",
    "Sleeping foxes: 12 zebras quiz 7 jumping dogs (vex!)",
]
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:!?()"
ENDINGS = ("##ing", "##ed", "##es", "##er")
WORDS = ("the", "quick", "brown", "fox", "jump", "over", "lazy", "dog", "sleep", "sun", "while", "run", "on", "and")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONFIG = {"max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None, "num_key_value_heads": 4, "type_vocab_size": 2, "initializer_range": 1.0}  # fmt: skip
ENCODERS = {
    "bert": Case("bert", "Bert", CONFIG, gains={"query.bias": 5.0}, class_name="BertModel"),
    "nomic-bert": Case("nomic-bert", "NomicBert", CONFIG, class_name="NomicBertModel"),
}
POOLINGS = {"bert": "cls", "nomic-bert": "mean"}
MODES = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}


@functools.cache
def wordpiece() -> tokenizers.Tokenizer:
    """BERT's kind of vocabulary: characters that begin a word or go on with it, some endings, some words."""
    pieces = sorted({*CHARACTERS, *("##" + c for c in CHARACTERS[:36]), *ENDINGS, *WORDS})
    vocab = {t: i for i, t in enumerate([*SPECIAL, *pieces])}
    t = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab=vocab, unk_token="[UNK]", max_input_chars_per_word=1000))
    t.normalizer = normalizers.BertNormalizer(lowercase=True)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    t.add_special_tokens(list(SPECIAL))
    t.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return t


def encoder(name: str):
    """The model in transformers and its tokenizer."""
    case = ENCODERS[name]
    return case, reference(case, name), wordpiece()


def gguf(model, folder: Path, name: str, pooling: str | None = None) -> Path:
    """The model in a GGUF file of our own writing, with a module of sentence-transformers beside the checkpoint."""
    source = folder / f"{name}-{pooling}"
    model.save_pretrained(source)
    wordpiece().save(str(source / "tokenizer.json"))
    names = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
    (source / "tokenizer_config.json").write_text(json.dumps(names))
    if pooling is not None:
        modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}, {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]  # fmt: skip
        (source / "modules.json").write_text(json.dumps(modules))
        (source / "1_Pooling").mkdir()
        modes = {key: mode == pooling for mode, key in MODES.items()}
        (source / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **modes}))
    return convert(source, folder / f"{name}-{pooling}.gguf", "F32")


def sentence_vectors(model, texts: list[str], pooling: str, normalize: bool = True) -> np.ndarray:
    """What sentence-transformers computes: texts padded to one length, pooled under the attention mask."""
    encoded = [wordpiece().encode(t) for t in texts]
    longest = max(len(e.ids) for e in encoded)
    ids = torch.tensor([e.ids + [0] * (longest - len(e.ids)) for e in encoded])
    mask = torch.tensor([[1] * len(e.ids) + [0] * (longest - len(e.ids)) for e in encoded])
    with torch.inference_mode():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    if pooling == "cls":
        found = hidden[:, 0]
    elif pooling == "last":
        found = hidden[torch.arange(len(texts)), mask.sum(1) - 1]
    else:
        found = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return (torch.nn.functional.normalize(found, dim=1) if normalize else found).numpy()
