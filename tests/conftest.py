"""What every test shares: eight host devices, no silent rank promotion, a tiny model, the texts."""

import os
from pathlib import Path

from tests.matrices import is_left_out, is_slow, named
from tests.processes import COMPILER_FLAGS, ROOT

# Before jax is imported: XLA reads it once. Mesh code is tested on eight devices of one machine.
os.environ["XLA_FLAGS"] = (
    f"{COMPILER_FLAGS} {os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Tests compile more than they compute: with what an earlier run compiled they need half the time.
# Processes that a test starts share it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(config, items):
    collected = {}
    for item in items:
        row = item.callspec.id if hasattr(item, "callspec") else None
        file, test = item.path.name, getattr(item, "originalname", item.name)
        collected.setdefault(file, set()).add((test, row))
        if is_left_out(file, test, row):
            item.add_marker("matrix")
        if is_slow(file, test):
            item.add_marker("slow")
    if not any("::" in argument for argument in config.args):
        for file in collected:
            unknown = named(file) - collected[file] - {(test, None) for test, _ in collected[file]}
            if unknown:
                raise pytest.UsageError(f"tests/matrices.py: {file} does not have {unknown}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of texts and models beside the checkout; a test that needs it skips without it."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"needs the folder {path.name}/ beside the checkout")
    return path


@pytest.fixture(scope="session")
def books_6m(shared) -> Path:
    """A real Llama of 6M parameters, trained at 512 tokens, in Hugging Face format."""
    path = shared / "models" / "books-6m"
    if not (path / "config.json").is_file():
        pytest.skip("needs shared/models/books-6m")
    return path


@pytest.fixture(scope="session")
def tiny_config():
    """A DecoderConfig whose forward pass takes milliseconds; words of the byte tokenizer."""
    from jaxrope.decoder import DecoderConfig

    return DecoderConfig(
        family="llama",
        vocab_size=264,  # 258 of the byte tokenizer, made a multiple of 8 devices
        num_layers=2,
        embed_dim=32,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        mlp_dim=64,
        norm_eps=1e-5,
        tie_embeddings=False,
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        sliding_window=None,
        theta=10_000.0,
        rotary_dim=8,
        original_len=64,
        max_len=64,
        rope={"method": "none"},
        bos_id=256,
        eos_id=257,
    )


@pytest.fixture(scope="session")
def tiny_params(tiny_config):
    """Random parameters for `tiny_config`."""
    from jaxrope.decoder import init_params

    return init_params(tiny_config, jax.random.key(0))


@pytest.fixture(scope="session")
def tiny_model(tiny_config, tiny_params):
    """(config, params) of the tiny model."""
    return tiny_config, tiny_params


@pytest.fixture(scope="module")
def libtpu():
    """The compiler for TPUs; a test that needs it skips without it.

    It reads XLA_FLAGS too, and ends the process at one that only CPUs have: by then XLA has read
    them.
    """
    from jaxrope.topology import slices

    if not slices.installed():
        pytest.skip("needs libtpu: make test installs it where it can")
    jax.devices()
    flags = os.environ.pop("XLA_FLAGS")
    yield
    os.environ["XLA_FLAGS"] = flags
