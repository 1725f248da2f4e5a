"""Text and tokens: from files to windows that are evaluated and batches that are trained on.

    tokenizer = load_tokenizer("checkpoints/base")
    documents = load_documents(["books/**/*.txt"], tokenizer)
    windows = eval_windows(documents, length=4096, num_windows=16, bos_id=tokenizer.bos_id)
    loader = TrainLoader(documents, seq_len=4096, batch_size=8, seed=0, mode="chunk",
                         bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)
    loader.batch(0)["tokens_BT"]

What a batch of `TrainLoader` means
-----------------------------------
A document's sequence is BOS, its tokens, EOS. It is cut into pieces of `seq_len` targets, so that
every token of every document, and every EOS, is a target once in an epoch. A piece that starts in
the middle of a document also begins with BOS, in place of the token that was the last target of the
piece before: models rely on a first token that is always the same, and evaluation windows begin
with it too. LongRoPE's own data also ends each piece with EOS. Here EOS stands only where a
document ends: in mid text it would teach a model to stop at exactly `seq_len` tokens.

Mode "chunk": a row is one piece. Mode "pack": a row is one or more whole pieces. Nothing is cut to
fill a row; what is left of it is padding. With BOS = 1, EOS = 2, seq_len = 4 and the documents
[10, 11, 12, 13, 14] and [20], "chunk" gives (in the order of the documents, before the shuffle)

    tokens         1 10 11 12 |  1 14  0  0 |  1 20  0  0
    targets       10 11 12 13 | 14  2  0  0 | 20  2  0  0
    positions      0  1  2  3 |  0  1  0  0 |  0  1  0  0
    segment_ids    1  1  1  1 |  1  1  0  0 |  1  1  0  0
    loss_weights   1  1  1  1 |  1  1  0  0 |  1  1  0  0

"pack" puts the last two pieces into one row:

    tokens         1 10 11 12 |  1 14  1 20
    targets       10 11 12 13 | 14  2 20  2
    positions      0  1  2  3 |  0  1  0  1
    segment_ids    1  1  1  1 |  1  1  2  2
    loss_weights   1  1  1  1 |  1  1  1  1

and "concat" joins the documents in a random order and cuts the joined text; a row's tokens attend
to all before them, across documents:

    tokens         1 10 11 12 |  1 14  2  1 |  1  0  0  0
    targets       10 11 12 13 | 14  2  1 20 |  2  0  0  0
    positions      0  1  2  3 |  0  1  2  3 |  0  0  0  0
    segment_ids    1  1  1  1 |  1  1  1  1 |  1  0  0  0
    loss_weights   1  1  1  1 |  1  1  0  1 |  1  0  0  0

A conversation has the begin and end tokens of its template and no others. It is one piece: where it
is longer than a row it loses its end ("concat" cuts it as any text). Its answers alone are targets
that count.

- `tokens_BT` is what the model sees; `targets_BT` the token it has to predict at that place,
  already shifted, so that the sequence axis may be cut or permuted afterwards.
- `positions_BT` count from 0 in each piece.
- `segment_ids_BT` number a row's pieces from 1; 0 is padding. A token attends to earlier tokens of
  its own piece only.
- `loss_weights_BT` is 1.0 for a target that counts and 0.0 for padding, for what is no answer of a
  conversation, and for a begin token. But in "concat" no target belongs to another document than
  its token.
"""

from jaxrope.data import chat, needles, sliding, tokenizer_spec
from jaxrope.data.cache import default_cache_dir
from jaxrope.data.corpus import TokenDocuments, load_documents, overlap, split
from jaxrope.data.documents import ReadCounts, ReadSettings, check_bad_lines, read_documents
from jaxrope.data.groups import Group, make_groups
from jaxrope.data.loader import TrainLoader
from jaxrope.data.mixture import MixtureLoader, Shares, check_shares
from jaxrope.data.needles import GRASS, NeedleDocument
from jaxrope.data.sources import find_files
from jaxrope.data.tokenizer import (
    BytesTokenizer,
    Tokenizer,
    backend_of,
    continuation,
    load_tokenizer,
    with_bos,
)
from jaxrope.data.windows import Windows, eval_windows, fresh_windows, search_windows
from jaxrope.data.words import ADJECTIVES, NOUNS

__all__ = [
    "ADJECTIVES",
    "BytesTokenizer",
    "GRASS",
    "Group",
    "MixtureLoader",
    "NOUNS",
    "NeedleDocument",
    "ReadCounts",
    "ReadSettings",
    "Shares",
    "TokenDocuments",
    "Tokenizer",
    "TrainLoader",
    "Windows",
    "backend_of",
    "chat",
    "check_bad_lines",
    "check_shares",
    "continuation",
    "default_cache_dir",
    "eval_windows",
    "find_files",
    "fresh_windows",
    "load_documents",
    "load_tokenizer",
    "make_groups",
    "needles",
    "overlap",
    "read_documents",
    "search_windows",
    "sliding",
    "split",
    "tokenizer_spec",
    "with_bos",
]
