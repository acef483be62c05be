"""Models whose scores are known, a byte tokenizer, and rows of every benchmark."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

ROWS = {
    "gsm8k": [
        {"question": f"What is {a} + 1000?", "answer": f"<<{a}+1000>>\n#### 1,{a:03}"}
        for a in range(1, 5)
    ],
    "math500": [{"problem": f"Halve {a}.", "answer": rf"\frac{{{a}}}{{2}}"} for a in (1, 3)],
    "math": [{"problem": f"Twice {a}.", "solution": rf"It is \boxed{{{2 * a}}}."} for a in (1, 3)],
    "omega": [
        {"messages": [{"role": "user", "content": f"Double {a}."}], "ground_truth": str(2 * a)}
        for a in (1, 3)
    ],
    "mmlu": [
        {
            "question": f"Which is {a}?",
            "choices": ["0", "1", "2", "3"],
            "answer": a,
            "subject": "arithmetic",
        }
        for a in (0, 2, 3)
    ],
    "mbpp": [
        {
            "text": f"Add {a}.",
            "code": "",
            "test_list": [f"assert f(1) == {a + 1}"],
            "test_setup_code": "",
        }
        for a in (1, 2)
    ],
}
GOLD = {
    "gsm8k": lambda row: f" so\n{row['answer']}",
    "math500": lambda row: rf" \boxed{{{row['answer']}}}.",
    "omega": lambda row: rf" \boxed{{{row['ground_truth']}.0}}",
    "math": lambda row: " " + row["solution"],
    "mbpp": lambda row: f"def f(x):\n    return x + {row['text'][4:-1]}\n",
    "mmlu": lambda row: " " + "ABCD"[row["answer"]],
}


def byte_tokenizer():
    """A token a byte, and two special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(
        models.BPE(
            vocab={letter: at for at, letter in enumerate(["<pad>", "<eos>", *letters])}, merges=[]
        )
    )
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def tiny_model(seed=0, positions=1024):
    """Random Qwen2 weights over the bytes; what it writes is noise, but always the same."""
    import torch

    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=272,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return AutoModelForCausalLM.from_config(config).eval()
