"""How config.json says what each layer of a decoder is, by family."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from jaxrope.convert.fields import Fields
from jaxrope.decoder import DecoderConfig
from jaxrope.errors import InputError


class Layers(NamedTuple):
    """How config.json says what each layer is.

    Attributes:
      read: (config, number of layers) -> (DecoderConfig.layers, sliding_window).
      write: keys of a DecoderConfig.
    """

    read: Callable[[Fields, int], tuple[tuple[str, ...], int | None]]
    write: Callable[[DecoderConfig], dict]


_TYPES = {"full_attention": "full", "sliding_attention": "sliding"}
_NAMES = {kind: name for name, kind in _TYPES.items()}


def _no_window(config: Fields, num_layers: int):
    del config, num_layers  # transformers' class has no window, whatever the key says
    return (), None


def _window_of_all(config: Fields, num_layers: int):
    del num_layers
    return (), config.count("sliding_window", None)


def typed(default: Callable[[Fields, int, int], bool], switch: str = "") -> Layers:
    """Returns the reader and writer of `layer_types`.

    Args:
      default: (config, layer, number of layers) -> whether it slides, where the key is absent.
      switch: the key without which nothing slides.
    """

    def read(config: Fields, num_layers: int):
        window = config.count("sliding_window", None)
        if switch and not config.flag(switch, False):
            window = None
        kinds = layer_types(config, num_layers)
        if kinds is None:
            slides = (window and default(config, i, num_layers) for i in range(num_layers))
            kinds = tuple("sliding" if sliding else "full" for sliding in slides)
        if window is None or "sliding" not in kinds:
            return (), None
        return (kinds if "full" in kinds else ()), window

    def write(config: DecoderConfig) -> dict:
        slides = config.sliding_window is not None
        kinds = config.layers or (("sliding" if slides else "full"),) * config.num_layers
        keys = {"sliding_window": config.sliding_window}
        keys["layer_types"] = [_NAMES[kind] for kind in kinds]
        return keys | ({switch: slides} if switch else {})

    return Layers(read, write)


def layer_types(
    config: Fields, num_layers: int, kinds: Mapping[str, str] = _TYPES
) -> tuple[str, ...] | None:
    """Returns the kinds that `layer_types` names; None: it is absent.

    Raises:
      InputError: it is no list of so many known types.
    """
    types = config.get("layer_types")
    if types is None:
        return None
    known = isinstance(types, list) and all(isinstance(t, str) and t in kinds for t in types)
    if not known or len(types) != num_layers:
        rule = f"name {' or '.join(kinds)} for each of {num_layers} layers"
        raise config.wrong("layer_types", rule)
    return tuple(kinds[kind] for kind in types)


def _after_max_window_layers(config: Fields, layer: int, num_layers: int) -> bool:
    del num_layers
    return layer >= config.count("max_window_layers", 28, low=0)


def every(period: int) -> Callable[[Fields, int, int], bool]:
    """Every so many layers one is full."""

    def slides(config: Fields, layer: int, num_layers: int) -> bool:
        del num_layers
        return (layer + 1) % config.count("sliding_window_pattern", period) != 0

    return slides


def _with_max_window_layers(layers: Layers) -> Layers:
    def write(config: DecoderConfig) -> dict:
        keys = layers.write(config)
        first = keys["layer_types"].index("sliding_attention") if config.sliding_window else None
        return keys | {"max_window_layers": config.num_layers if first is None else first}

    return Layers(layers.read, write)


def _smollm3(config: Fields, num_layers: int):
    interval = config.count("no_rope_layer_interval", 4)
    turns = config.get("no_rope_layers")
    if turns is None or turns == []:
        turns = [int((layer + 1) % interval != 0) for layer in range(num_layers)]
    valid = isinstance(turns, list) and all(turn in (0, 1) for turn in turns)
    if not valid or len(turns) < num_layers:
        rule = f"hold 1 (with rope) or 0 (without) for each of {num_layers} layers"
        raise config.wrong("no_rope_layers", rule)
    window = config.count("sliding_window", None)
    window = window if config.flag("use_sliding_window", False) else None
    kinds = layer_types(config, num_layers)
    if kinds is None:
        kinds = tuple("full" if turn or not window else "sliding" for turn in turns[:num_layers])
    kinds = tuple(kind if window else "full" for kind in kinds)
    nope = {"full": "nope", "sliding": "sliding_nope"}
    pairs = zip(kinds, turns, strict=False)
    layers = tuple(kind if turn else nope[kind] for kind, turn in pairs)
    if "sliding" in layers and "full" not in layers:
        raise InputError(
            f"{config.path('layer_types')}: no layer with a rope sees the whole text, so that there"
            " is nothing to extend."
        )
    return (() if set(layers) == {"full"} else layers), window


def _smollm3_keys(config: DecoderConfig) -> dict:
    kinds = config.kinds
    return {
        "no_rope_layers": [int(not kind.endswith("nope")) for kind in kinds],
        "layer_types": [_NAMES["sliding" if "sliding" in kind else "full"] for kind in kinds],
        "use_sliding_window": config.sliding_window is not None,
        "sliding_window": config.sliding_window,
    }


_HYBRID_TYPES = {"linear_attention": "delta", "full_attention": "full"}


def _hybrid(config: Fields, num_layers: int):
    every = config.count("full_attention_interval", 4)
    kinds = layer_types(config, num_layers, _HYBRID_TYPES)
    if kinds is None:
        kinds = tuple("delta" if (i + 1) % every else "full" for i in range(num_layers))
    if len({*kinds}) < 2:
        raise config.wrong("layer_types", "name layers of both types")
    return kinds, None


def _hybrid_keys(config: DecoderConfig) -> dict:
    names = {kind: name for name, kind in _HYBRID_TYPES.items()}
    return {"layer_types": [names[kind] for kind in config.kinds]}


def _window_key(config: DecoderConfig) -> dict:
    return {"sliding_window": config.sliding_window}


def _window_if_used(config: Fields, num_layers: int):
    return (
        _window_of_all(config, num_layers)
        if config.flag("use_sliding_window", False)
        else ((), None)
    )


def _window_if_used_keys(config: DecoderConfig) -> dict:
    return _window_key(config) | {"use_sliding_window": config.sliding_window is not None}


NONE = Layers(_no_window, lambda config: {})
ALL = Layers(_window_of_all, _window_key)
ALL_IF_USED = Layers(_window_if_used, _window_if_used_keys)
MISTRAL = Layers(typed(lambda *_: True).read, _window_key)
MINISTRAL = typed(lambda *_: True)
QWEN = _with_max_window_layers(typed(_after_max_window_layers, "use_sliding_window"))
SMOLLM3 = Layers(_smollm3, _smollm3_keys)
HYBRID = Layers(_hybrid, _hybrid_keys)
