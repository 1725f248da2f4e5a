"""What is run: the model, its rope, the forward pass, the mesh, text and tokens."""

import dataclasses
import json
from importlib import resources
from typing import Any

from jaxrope.errors import InputError
from jaxrope.schema.rules import (
    Anything,
    Choice,
    Fixed,
    Many,
    Maybe,
    NameOrNumber,
    Number,
    OneOrMany,
    Section,
    Select,
    Switch,
    Text,
    Whole,
    field,
)

SHAPES = (
    "llama2_7b",
    "llama3_8b",
    "mistral_7b",
    "qwen3_8b",
    "qwen3_30b_a3b",
    "qwen3_next_80b_a3b",
    "olmo3_7b",
    "smollm3_3b",
    "gemma3_4b",
)
FAMILIES = (
    "llama",
    "mistral",
    "ministral",
    "ministral3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "mixtral",
    "qwen3_next",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    "phi3",
    "smollm3",
    "olmo2",
    "olmo3",
    "gemma2",
    "gemma3_text",
    "granite",
    "stablelm",
)
LAYERS = ("full", "sliding", "nope", "sliding_nope", "delta")
DTYPES = ("float32", "bfloat16", "float16", "float64")
BACKENDS = ("reference", "blockwise", "flash", "ring", "all_gather", "ulysses", "usp")
KERNELS = ("blockwise", "flash", "cudnn")
REMAT = ("none", "full", "minimal", "save_attention", "save_mlp", "offload")
MOST_KEYS = 263  # words for needles, by twos (data.words)
PLACES = "a place on the machine that runs it"


def _presets() -> tuple[str, ...]:
    text = resources.files("jaxrope").joinpath("rope", "presets.json").read_text(encoding="utf-8")
    return tuple(json.loads(text)["presets"])


class _Model(Section):
    PATH = "model"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint(_Model):
    """Start from a checkpoint."""

    source: str = field(Choice(("checkpoint",)))
    path: str = field(Text(PLACES))
    shape: str = field(Choice(("", *SHAPES)), default="")
    sliding_window: str | int = field(
        NameOrNumber(Choice(("model", "none")), Whole(1, unit="tokens")), default="model"
    )


_COUNT = Whole(1, 2**31 - 1)
_COUNT_OR_NONE = Whole(0, 2**31 - 1)
_MULTIPLIER = Number(above=0, most=1e6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scratch(_Model):
    """Start from random parameters; the fields are those of decoder.DecoderConfig."""

    source: str = field(Choice(("scratch",)))
    vocab_size: int = field(_COUNT)
    num_layers: int = field(_COUNT)
    embed_dim: int = field(_COUNT)
    num_heads: int = field(_COUNT)
    num_kv_heads: int = field(_COUNT)
    head_dim: int = field(_COUNT)
    mlp_dim: int = field(_COUNT)
    norm_eps: float = field(Number(above=0, below=1))
    theta: float = field(Number(above=1))
    original_len: int = field(Whole(2, 2**31 - 1, unit="tokens"))
    max_len: int = field(Whole(1, 2**31 - 1, unit="tokens"))
    rotary_dim: int = field(_COUNT)
    tie_embeddings: bool = field(Switch())
    family: str = field(Choice(FAMILIES), default="llama")
    qkv_bias: bool = field(Switch(), default=False)
    out_bias: bool = field(Switch(), default=False)
    mlp_bias: bool = field(Switch(), default=False)
    sliding_window: int | None = field(Maybe(Whole(1, unit="tokens")), default=None)
    rope: Any = field(Anything("rope.make, with the shape"), default=None)
    bos_id: int | None = field(Maybe(Whole(0)), default=None)
    eos_id: int | tuple[int, ...] | None = field(Maybe(OneOrMany(Whole(0))), default=None)
    pad_id: int | None = field(Maybe(Whole(-1)), default=None)
    stored_dtype: str | None = field(Maybe(Choice(DTYPES)), default=None)
    layers: tuple = field(Many(Choice(LAYERS)), default=())
    sliding_theta: float | None = field(Maybe(Number(above=1)), default=None)
    sliding_rope: Any = field(Anything("rope.make, with the shape"), default=None)
    norm_type: str = field(Choice(("rms", "layer")), default="rms")
    norms: str = field(Choice(("before", "after", "both")), default="before")
    norm_offset: float = field(Number(least=-1, most=1), default=0.0)
    qk_norm: str = field(Choice(("none", "head", "all")), default="none")
    gate: str = field(Choice(("silu", "gelu_tanh")), default="silu")
    embed_scale: float = field(_MULTIPLIER, default=1.0)
    residual_scale: float = field(_MULTIPLIER, default=1.0)
    logit_scale: float = field(_MULTIPLIER, default=1.0)
    attention_scale: float | None = field(Maybe(_MULTIPLIER), default=None)
    attention_cap: float | None = field(Maybe(_MULTIPLIER), default=None)
    logit_cap: float | None = field(Maybe(_MULTIPLIER), default=None)
    query_growth: float = field(Number(least=0, most=1e3), default=0.0)
    query_growth_len: int | None = field(Maybe(Whole(1, unit="tokens")), default=None)
    num_experts: int = field(_COUNT_OR_NONE, default=0)
    experts_per_token: int = field(_COUNT_OR_NONE, default=0)
    expert_dim: int = field(_COUNT_OR_NONE, default=0)
    dense_layers: tuple = field(Many(_COUNT_OR_NONE), default=())
    shares_sum_to_one: bool = field(Switch(), default=True)
    router_loss: float = field(Number(least=0, most=1e3), default=0.0)
    shared_dim: int = field(_COUNT_OR_NONE, default=0)
    output_gate: bool = field(Switch(), default=False)
    delta_key_heads: int = field(_COUNT_OR_NONE, default=0)
    delta_value_heads: int = field(_COUNT_OR_NONE, default=0)
    delta_key_dim: int = field(_COUNT_OR_NONE, default=0)
    delta_value_dim: int = field(_COUNT_OR_NONE, default=0)
    delta_conv: int = field(_COUNT_OR_NONE, default=0)

    def shape(self) -> dict[str, Any]:
        """Returns what decoder.DecoderConfig takes."""
        values = {k: v for k, v in self.to_dict().items() if k != "source"}
        return {k: v for k, v in values.items() if not k.endswith("rope") or v is not None}


MODEL = Select("source", {"checkpoint": Checkpoint, "scratch": Scratch})


class _Rope(Section):
    PATH = "rope"


FACTOR = Number(least=1, most=1e6, unit="target length / original length")
_TURNS = Number(least=1e-6, most=1e6, unit="turns")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfModel(_Rope):
    """rope.json of the checkpoint, else its own scaling."""

    method: str = field(Choice(("model",)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfFile(_Rope):
    """A rope.json."""

    method: str = field(Choice(("file",)))
    path: str = field(Text(PLACES))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset(_Rope):
    """Published factors."""

    method: str = field(Choice(("preset",)))
    name: str = field(Choice(_presets()))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain(_Rope):
    """Plain frequencies."""

    method: str = field(Choice(("none",)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaled(_Rope):
    """Methods with one constant."""

    method: str = field(Choice(("pi", "ntk", "dynamic_ntk")))
    factor: float = field(FACTOR)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NtkRcd(_Rope):
    """LongRoPE2's NTK up to a critical pair."""

    method: str = field(Choice(("ntk_rcd",)))
    factor: float = field(FACTOR)
    critical_pair: int = field(Whole(1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Yarn(_Rope):
    """YaRN; the defaults of beta_fast and beta_slow, turns, are those of its paper."""

    method: str = field(Choice(("yarn",)))
    factor: float = field(FACTOR)
    beta_fast: float = field(_TURNS, default=32.0)
    beta_slow: float = field(_TURNS, default=1.0)
    attention_factor: float | None = field(Maybe(Number(above=0)), default=None)
    mscale: float | None = field(Maybe(Number(least=0)), default=None)
    mscale_all_dim: float | None = field(Maybe(Number(least=0)), default=None)
    truncate: bool = field(Switch(), default=True)

    def check(self) -> None:
        """The ramp has a width."""
        wide = self.beta_fast > self.beta_slow
        self.require(wide, "beta_fast", f"be above rope.beta_slow, {self.beta_slow:g}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama3(_Rope):
    """Llama 3.1's scaling, with its own two constants by default; max_len: tokens that a checkpoint
    with it serves, which the other constants do not say.
    """

    method: str = field(Choice(("llama3",)))
    factor: float = field(FACTOR)
    low_freq_factor: float = field(Number(above=0), default=1.0)
    high_freq_factor: float = field(Number(above=0), default=4.0)
    max_len: int | None = field(Maybe(Whole(1, unit="tokens")), default=None)

    def check(self) -> None:
        """The smooth part has a width."""
        wide = self.high_freq_factor > self.low_freq_factor
        rule = f"be above rope.low_freq_factor, {self.low_freq_factor:g}"
        self.require(wide, "high_freq_factor", rule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Abf(_Rope):
    """Another base of the frequencies."""

    method: str = field(Choice(("abf",)))
    new_theta: float = field(Number(above=1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongRope(_Rope):
    """Factors by length, or one set; each is checked with the model's geometry."""

    method: str = field(Choice(("longrope",)))
    buckets: Any = field(Anything("rope.make, with the geometry"), default=())
    factors: Any = field(Anything("rope.make, with the geometry"), default=())
    start_tokens: int = field(Whole(0, unit="tokens"), default=0)
    attention_factor: str | float | None = field(
        Maybe(NameOrNumber(Choice(("su", "yarn", "none")), Number(above=0))), default=None
    )
    max_len: int | None = field(Maybe(Whole(1, unit="tokens")), default=None)

    def check(self) -> None:
        """Buckets or factors, not both."""
        if bool(self.buckets) == bool(self.factors):
            both = "both." if self.buckets else "neither."
            raise InputError(f"rope.longrope needs either buckets or factors, got {both}")


# a method of rope.make -> its constants
CONSTANTS: dict[str, type[Section]] = {
    "none": Plain,
    "pi": Scaled,
    "ntk": Scaled,
    "ntk_rcd": NtkRcd,
    "dynamic_ntk": Scaled,
    "yarn": Yarn,
    "llama3": Llama3,
    "abf": Abf,
    "longrope": LongRope,
}
METHOD = Select("method", CONSTANTS)
ROPE = Select("method", {"model": OfModel, "file": OfFile, "preset": Preset} | CONSTANTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forward(Section):
    """How the model is run."""

    PATH = "forward"

    attention: str = field(Choice(("auto", *BACKENDS)))
    attention_kernel: str = field(Choice(("auto", *KERNELS)))
    attention_block: int = field(Whole(1, unit="tokens"))
    ulysses: int = field(Whole(1, unit="devices"))
    compute_dtype: str = field(Choice(DTYPES))
    remat: str = field(Choice(REMAT))
    mlp_chunk: int = field(Whole(0, unit="tokens"))


_AXIS = Whole(1, 2**20, unit="devices", also=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh(Section):
    """Devices on each axis; one of them may be -1, the rest."""

    PATH = "mesh"

    data: int = field(_AXIS)
    fsdp: int = field(_AXIS)
    context: int = field(_AXIS)
    tensor: int = field(_AXIS)

    def check(self) -> None:
        """One axis takes the rest."""
        rest = [axis for axis, size in self.to_dict().items() if size == -1]
        if len(rest) > 1:
            raise InputError(f"mesh: only one axis may be -1, got {' and '.join(rest)}.")


_FILES = Many(Text(PLACES, least=1))
_SHARE = Number(least=0, most=1)
_HELD_OUT = Number(least=0, below=1)
_SOURCE = Fixed((Text(PLACES, least=1), Number(above=0)), '("books/*.txt", 2.0)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data(Section):
    """Text and tokens."""

    PATH = "data"

    train_files: tuple = field(_FILES)
    eval_files: tuple = field(_FILES)
    held_out: float = field(_HELD_OUT)
    exclude: tuple = field(_FILES)
    sources: tuple = field(Many(_SOURCE))
    format: str = field(Choice(("auto", "text")))
    text_field: str = field(Text("a name in the user's records"))
    skip_bad_lines: int = field(Whole(0, unit="lines"))
    tokenizer: str = field(Text(PLACES))
    cache_dir: str = field(Text(PLACES))
    mode: str = field(Choice(("chunk", "pack", "concat")))
    long_share: float = field(_SHARE)
    long_tokens: int = field(Whole(0, unit="tokens"))
    chat_share: float = field(Number(least=0, below=1))
    needle_share: float = field(_SHARE)
    needle_keys: int = field(Whole(1, MOST_KEYS, unit="needles"))
    needle_weight: float = field(Number(above=0))
    short_share: float = field(_SHARE)

    def check(self) -> None:
        """Files are named once; shares are of one batch."""
        if self.sources and self.train_files:
            raise InputError(
                "data.sources and data.train_files both name what is trained on. Set one of them."
            )
        if self.held_out and (self.eval_files or self.sources):
            other = "eval_files" if self.eval_files else "sources"
            raise InputError(
                f"data.held_out is a share of data.train_files, in place of data.eval_files, got "
                f"{self.held_out:g} beside data.{other}. Leave one of them out."
            )
        if self.chat_share and self.sources:
            raise InputError(
                "data.chat_share is of data.train_files, got "
                f"{self.chat_share:g} beside data.sources. Give the sources weights instead."
            )
        if self.needle_share + self.short_share > 1:
            raise InputError(
                "data.needle_share and data.short_share must be 1 at most together, got "
                f"{self.needle_share} and {self.short_share}."
            )
