"""Two models that share a base (base and LoRA adapter) against two separate ones (base and merged).

Random weights of a 0.5B Llama in bf16 on a GPU, with a LoRA of rank 16 on all linear layers;
`--tiny` takes one of 8 M in float32 on a CPU. Visitors ask at the same time, each for one turn of
both models; no answer ends early. The two sides take turns, and the medians of the repeats are
shown: seconds until a visitor has the first token of both models, and tokens per second of all; on
a CPU also per second of CPU time, which other work on the machine does not change.

    OMP_NUM_THREADS=1 python tests/benchmarks/arena_speed.py --tiny
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

VISITORS = (1, 2, 4, 8)
PROMPT = " ".join(f"w{i}" for i in range(24))


def save_models(root: Path, tiny: bool) -> None:
    """Writes `base`, `adapter` and `merged`, with a tokenizer of words."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    hidden, layers, heads, vocabulary = (256, 8, 4, 4096) if tiny else (896, 24, 14, 151_936)
    words = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i + 2 for i in range(vocabulary - 2)}}
    inner = Tokenizer(WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 2 if tiny else 4864,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config).to(torch.float32 if tiny else torch.bfloat16).eval()
    model.save_pretrained(root / "base")
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    adapted.peft_config["default"].base_model_name_or_path = str(root / "base")
    adapted.save_pretrained(root / "adapter")
    adapted.merge_and_unload().save_pretrained(root / "merged")
    for name in ("base", "adapter", "merged"):
        tokenizer.save_pretrained(root / name)


def open_side(root: Path, other: str):
    """An arena of the base and another, whose answers never end."""
    from hf_align.arena import Arena

    arena = Arena.open([str(root / "base"), str(root / other)])
    for member in arena._members.values():
        member.end_ids = frozenset()
    return arena


def one_round(arena, visitors: int, tokens: int, seed: int) -> tuple[float, ...]:
    """Median seconds to the first token; tokens per second of all together, of CPU time too."""
    from hf_align.arena import Sampling

    first: list[float] = []
    start = threading.Barrier(visitors + 1)

    def visit(number: int) -> None:
        sampling = Sampling(1.0, 1.0, tokens, seed + number)
        start.wait()
        began = time.perf_counter()
        turn = arena.stream(PROMPT, sampling)
        next(turn)
        first.append(time.perf_counter() - began)
        for _ in turn:
            pass

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(visitors)]
    for thread in threads:
        thread.start()
    start.wait()
    began, used = time.perf_counter(), time.process_time()
    for thread in threads:
        thread.join()
    drawn = 2 * visitors * tokens
    rates = drawn / (time.perf_counter() - began), drawn / (time.process_time() - used)
    return statistics.median(first), *rates


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    import torch

    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"torch {version('torch')}, transformers {version('transformers')}, ", end="")
    print(f"peft {version('peft')}, {where}, {threads} thread(s), {options.tokens} tokens each")
    with tempfile.TemporaryDirectory() as folder:
        save_models(Path(folder), options.tiny)
        sides = {"shared": "adapter", "separate": "merged"}
        arenas = {side: open_side(Path(folder), other) for side, other in sides.items()}
        for side, arena in arenas.items():
            bodies = {id(m.voice.body): m.voice.body.num_bytes for m in arena._members.values()}
            print(f"{side}: {sum(bodies.values()) / 1e6:,.0f} MB of weights")
            one_round(arena, 1, 4, 0)
        print("\nvisitors; first token, s; tokens/s, ratio; tokens per CPU s, ratio")
        for visitors in VISITORS:
            rounds: dict[str, list[tuple[float, ...]]] = {side: [] for side in sides}
            for repeat in range(options.repeats):
                for side in sorted(sides, reverse=bool(repeat % 2)):
                    rounds[side].append(
                        one_round(arenas[side], visitors, options.tokens, 100 * repeat)
                    )
            shared, separate = (
                [statistics.median(one[i] for one in rounds[side]) for i in range(3)]
                for side in sides
            )
            line = f"{visitors:>8} {shared[0]:>8.3f} / {separate[0]:.3f}"
            for i in (1, 2):
                line += f" {shared[i]:>8.0f} / {separate[i]:.0f} {shared[i] / separate[i]:>6.2f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
