"""Runs GGUF files in the llama.cpp of the package xllamacpp, by its C interface, on float32 caches.

python llama_cpp.py REQUESTS.json OUT.npz, in an environment that has xllamacpp and numpy.

REQUESTS is a list of objects: "model"; "texts", of which the ids are wanted; or "ids" with
"context", of which the logits after each token are wanted, and "greedy", how many tokens more;
"borders" are --yarn-beta-fast and --yarn-beta-slow.
"""

import ctypes
import json
import sys

import numpy as np

_CONTEXT_BYTES, _CACHE_TYPES = 1024, 104  # more than the structure has; where its two types lie
_F16, _F32 = 1, 0


class _Params(ctypes.Structure):
    """Of a model or a context; the fields that matter here are at the beginning."""

    _fields_ = [("words", ctypes.c_int32 * (_CONTEXT_BYTES // 4))]


class _Batch(ctypes.Structure):
    _fields_ = [("num_tokens", ctypes.c_int32), ("token", ctypes.POINTER(ctypes.c_int32))]
    _fields_ += [("embd", ctypes.c_void_p), ("pos", ctypes.POINTER(ctypes.c_int32))]
    _fields_ += [("n_seq_id", ctypes.POINTER(ctypes.c_int32))]
    _fields_ += [("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32)))]
    _fields_ += [("logits", ctypes.POINTER(ctypes.c_int8))]


def _library():
    from xllamacpp import xllamacpp

    lib = ctypes.CDLL(xllamacpp.__file__)
    pointers = ("llama_model_load_from_file", "llama_init_from_model", "llama_model_get_vocab")
    for name in (*pointers, "llama_get_memory"):
        getattr(lib, name).restype = ctypes.c_void_p
    for name in ("llama_model_default_params", "llama_context_default_params"):
        getattr(lib, name).restype = _Params
    lib.llama_batch_init.restype = _Batch
    lib.llama_get_logits_ith.restype = ctypes.POINTER(ctypes.c_float)
    lib.llama_version.restype = ctypes.c_char_p
    lib.silent = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_log)
    lib.llama_log_set(lib.silent, None)
    lib.llama_backend_init()
    return lib


def _log(level: int, text: bytes, data) -> None:
    if level >= 4:  # errors
        sys.stderr.write(text.decode("utf-8", "replace"))


def _load(lib, path: str):
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    if not model:
        sys.exit(f"llama.cpp does not load {path}")
    return ctypes.c_void_p(model)


def _context(lib, model, length: int, borders: list[float] | None):
    params = lib.llama_context_default_params()
    words, at = params.words, _CACHE_TYPES // 4
    if list(words[at : at + 2]) != [_F16, _F16] or words[3] != 1:
        sys.exit("this build of llama.cpp has another structure of parameters; see llama.h")
    words[0] = words[1] = words[6] = length  # n_ctx, n_batch, n_outputs_max_per_seq
    words[13] = 0  # flash attention, which rounds to float16
    words[at], words[at + 1] = _F32, _F32
    if borders:
        numbers = ctypes.cast(words, ctypes.POINTER(ctypes.c_float))
        numbers[18], numbers[19] = borders  # yarn_beta_fast, yarn_beta_slow
    context = lib.llama_init_from_model(model, params)
    if not context:
        sys.exit("llama.cpp makes no context")
    return ctypes.c_void_p(context)


def _decode(lib, context, ids: list[int], start: int, vocab_size: int) -> np.ndarray:
    """Returns the logits after each token, float32 [T, V]."""
    batch = lib.llama_batch_init(len(ids), 0, 1)
    batch.num_tokens = len(ids)
    for place, number in enumerate(ids):
        batch.token[place], batch.pos[place] = number, start + place
        batch.n_seq_id[place], batch.seq_id[place][0], batch.logits[place] = 1, 0, 1
    if code := lib.llama_decode(context, batch):
        sys.exit(f"llama_decode: {code}")
    rows = [lib.llama_get_logits_ith(context, place) for place in range(len(ids))]
    logits = np.stack([np.ctypeslib.as_array(row, (vocab_size,)).copy() for row in rows])
    lib.llama_batch_free(batch)
    return logits


def _run(lib, model, request: dict) -> dict[str, np.ndarray]:
    vocab = ctypes.c_void_p(lib.llama_model_get_vocab(model))
    vocab_size = lib.llama_vocab_n_tokens(vocab)
    if "texts" in request:
        return {f"ids_{i}": _ids(lib, vocab, text) for i, text in enumerate(request["texts"])}
    ids, context = (
        list(request["ids"]),
        _context(lib, model, request["context"], request.get("borders")),
    )
    logits = _decode(lib, context, ids, 0, vocab_size)
    last, greedy = logits[-1], []
    for _ in range(request.get("greedy", 0)):
        greedy.append(int(last.argmax()))
        last = _decode(lib, context, greedy[-1:], len(ids) + len(greedy) - 1, vocab_size)[0]
    lib.llama_free(context)
    return {"logits": logits, "greedy": np.array(greedy, np.int32)}


def _ids(lib, vocab, text: str) -> np.ndarray:
    raw, room = text.encode(), len(text.encode()) + 16
    ids = (ctypes.c_int32 * room)()
    flags = (ctypes.c_bool(True), ctypes.c_bool(True))  # begin and end; markup is parsed
    count = lib.llama_tokenize(vocab, raw, len(raw), ids, room, *flags)
    return np.array(ids[:count], np.int32)


def main() -> None:
    """Answers the requests of a file."""
    lib, results, model, path = _library(), {}, None, None
    requests = json.load(open(sys.argv[1], encoding="utf-8"))
    for number, request in enumerate(requests):
        if request["model"] != path:
            if model:
                lib.llama_model_free(model)
            path, model = request["model"], _load(lib, request["model"])
        for key, value in _run(lib, model, request).items():
            results[f"{number}_{key}"] = value
    version = lib.llama_version()
    np.savez(sys.argv[2], version=np.array(version.decode() if version else "?"), **results)


if __name__ == "__main__":
    main()
