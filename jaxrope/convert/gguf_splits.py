"""How byte-level tokenizers split a text before BPE, by the name that a GGUF gives.

llama.cpp splits by one expression after the other; a piece that none matches stays whole.
"""

_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
# Of tekken and gpt-4o. As llama.cpp has it: only a-z and A-Z have a case, and a mark is no letter.
_UPPER, _LOWER = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
    rf"|\p{{N}}%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}"
)
_WORDS = (
    rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}%s| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
)

# Group -> the expressions, in turn.
SPLITS = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "digits": (r"\p{N}", _GPT2),
    "llama3": (_WORDS % "{1,3}",),
    "smaug": (_WORDS % "{1,3}",),
    "qwen2": (_WORDS % "",),
    "tekken": (_CASED % ("", "", ""),),
    "gpt-4o": (_CASED % (f"{_SUFFIX}?", f"{_SUFFIX}?", "{1,3}"),),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+", r"\p{N}"),
    "deepseek-v3": (
        r"\p{N}{1,3}",
        r"[一-龥぀-ゟ゠-ヿ]+",
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_REST}",
    ),
    "qwen35": (
        rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+"
        rf"[\r\n]*|{_REST}",
    ),
}
FLAGGED = (
    "llama3",
    "tekken",
)  # a word that is a token is not split; a bos unless the file denies it

_NAMES = {
    "default": "default",
    "gpt-2": "gpt-2 phi-2 mpt olmo jais jina-es jina-de jina-v2-es jina-v2-de a.x-4.0 mellum",
    "digits": "smollm starcoder refact command-r codeshell exaone minerva-7b",
    "llama3": "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    "smaug": "smaug-bpe dbrx chatglm-bpe",
    "qwen2": "qwen2 deepseek-r1-qwen kormo stablelm2 hunyuan megrez",
    "tekken": "tekken",
    "gpt-4o": "gpt-4o llama4 kanana2",
    "deepseek-coder": "deepseek-coder",
    "deepseek-v3": "deepseek-v3 hunyuan-dense joyai-llm",
    "qwen35": "qwen35",
}
NAMES = {group: names.split()[0] for group, names in _NAMES.items()}  # one for each
GROUPS = {name: group for group, names in _NAMES.items() for name in names.split()}
