"""The leaves of a tree as a checkpoint's `meta` lists them: name, shape, dtype, digest."""

from pathlib import Path

import jax
import jax.numpy as jnp

from jaxrope.errors import InputError
from jaxrope.mesh.digest import digest


def describe(tree) -> dict[str, dict]:
    """Returns {name: {"shape", "dtype", "digest"}}."""
    return {
        name: {
            "shape": list(leaf.shape),
            "dtype": jnp.dtype(leaf.dtype).name,
            "digest": digest(leaf),
        }
        for name, leaf in named(tree).items()
    }


def named(tree) -> dict:
    """Returns {name: leaf}, names like "layers/q_LDNH"."""
    pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in pairs}


def nested(leaves: dict) -> dict:
    """Returns nested dicts of {name: leaf}."""
    tree: dict = {}
    for name, leaf in leaves.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = leaf
    return tree


def compare(folder: Path, item: str, saved: dict, abstract) -> None:
    """Refuses a target whose leaves differ from those saved.

    Args:
      folder: of the step, for the message.
      item: which of its items, for the message.
      saved: of `describe`.
      abstract: tree of the expected leaves.

    Raises:
      InputError: names, shapes or dtypes differ.
    """
    expected = named(abstract)
    extra, missing = sorted(saved.keys() - expected.keys()), sorted(expected.keys() - saved.keys())
    if extra or missing:
        raise InputError(
            f"{folder}, item {item}: the checkpoint has {_list(extra)} that the config does not "
            f"ask for, and lacks {_list(missing)}. Use the config it was saved with."
        )
    for what, of in (
        ("shape", lambda leaf: list(leaf.shape)),
        ("dtype", lambda leaf: jnp.dtype(leaf.dtype).name),
    ):
        wrong = [
            f"{name} {saved[name][what]} in the checkpoint, {of(leaf)} in the config"
            for name, leaf in expected.items()
            if saved[name][what] != of(leaf)
        ]
        if wrong:
            more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
            remedy = (
                "Nothing is cast silently: ask for the saved dtype."
                if what == "dtype"
                else "Use the config it was saved with."
            )
            raise InputError(
                f"{folder}, item {item}: {what} differs: {'; '.join(wrong[:3])}{more}. {remedy}"
            )


def _list(names: list[str]) -> str:
    return (
        ", ".join(names[:5]) + (f" (and {len(names) - 5} more)" if len(names) > 5 else "")
    ) or "nothing"
