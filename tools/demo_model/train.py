"""Train the demo model on the corpus of stories.py and save it in Hugging Face layout.

usage: train.py OUT_DIR [minutes] [seed] [layers width]      needs: pip install torch transformers tokenizers
Goes on from the weights in OUT_DIR where there are some. The shipped weights: 38 minutes with seed 1, then 28 with seed 2, on two cores.
"""

import math
import sys
import time
from pathlib import Path

import torch
from stories import as_text, documents
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
VOCAB, SEQ, BATCH = 2048, 384, 16


def train_tokenizer():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    gen = documents(0)
    texts = [" ".join(filter(None, next(gen)[1:])) for _ in range(20000)]
    tok.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCAB,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return tok


def batches(tok, seed):
    gen, buf = documents(seed), []
    while True:
        while len(buf) < BATCH * (SEQ + 1):
            docs = [as_text(*next(gen)) for _ in range(256)]
            for e in tok.encode_batch(docs):
                buf += e.ids
        chunk, buf = buf[: BATCH * (SEQ + 1)], buf[BATCH * (SEQ + 1) :]
        yield torch.tensor(chunk).view(BATCH, SEQ + 1)


def main(out, minutes=60.0, seed=1, layers=4, width=256):
    torch.manual_seed(seed)
    out = Path(out)
    saved = out / "tokenizer.json"
    tok = Tokenizer.from_file(str(saved)) if saved.exists() else train_tokenizer()
    cfg = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
        head_dim=64,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=[0, 4],
        attention_bias=False,
        mlp_bias=False,
    )
    model = (
        LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
        if (out / "model.safetensors").exists()
        else LlamaForCausalLM(cfg)
    )
    print("parameters", sum(p.numel() for p in model.parameters()), flush=True)
    opt = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    peak = 1e-3 if saved.exists() else 2e-3
    data, start, step, seen = batches(tok, seed), time.time(), 0, 0
    while (frac := (time.time() - start) / 60 / minutes) < 1:
        lr = peak * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * frac))
        for g in opt.param_groups:
            g["lr"] = lr
        x = next(data)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(x[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().reshape(-1, VOCAB), x[:, 1:].reshape(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + x.numel()
        if step % 50 == 0:
            print(
                f"step {step} loss {loss.item():.3f} tokens {seen / 1e6:.2f}M {seen / (time.time() - start):.0f} tok/s",
                flush=True,
            )
        if step % 1000 == 0:
            save(model, tok, out)
    save(model, tok, out)


def save(model, tok, out):
    out.mkdir(parents=True, exist_ok=True)
    m = LlamaForCausalLM(model.config)
    m.load_state_dict(model.state_dict())
    m.to(torch.bfloat16).save_pretrained(out)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token="<|endoftext|>", eos_token="<|end|>", clean_up_tokenization_spaces=False
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(out)


if __name__ == "__main__":
    main(sys.argv[1], *map(float, sys.argv[2:3]), *map(int, sys.argv[3:]))
