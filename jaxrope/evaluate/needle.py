"""Multi-key needles, teacher-forced, with other numbers of the same form in the text.

The documents are those of `jaxrope.data.needles` (RULER's wording), the reading is that of
`forced`. RULER counts a number anywhere in the next 128 tokens; this is stricter. Each number of
keys K is a suite "needle-K".
"""

from jaxrope.data import NeedleDocument, needles
from jaxrope.evaluate.forced import Forced, Trial
from jaxrope.evaluate.scoring import Bench, EvalModel


def make_documents(model: EvalModel, bench: Bench, length: int) -> dict[int, list[NeedleDocument]]:
    """Returns the documents of one length by number of keys: the same for every model with the same
    tokenizer.

    Of n documents the one of index i has the needle that is asked for at depth (i + 0.5) / n of the
    text, the others anywhere. What is drawn depends on the seed and i only: lengths and numbers of
    keys share it.

    Raises:
      InputError: `length` has no room, or the text is too short.
    """
    options, count = bench.options, bench.options.needle_trials
    if options.needle_filler == "text":
        haystack = needles.text(bench.text("eval.needle_filler is 'text'"))
    else:
        haystack = needles.grass(model.tokenizer)
    source = needles.Source(model.tokenizer, haystack, "evaluation", "eval.lengths")
    return {
        keys: [
            needles.make_document(
                source,
                length=length,
                num_keys=keys,
                seed=bench.seed,
                index=i,
                depth=(i + 0.5) / count,
            )
            for i in range(count)
        ]
        for keys in options.needle_keys
    }


def _trials(model: EvalModel, bench: Bench, length: int) -> dict[str, list[Trial]]:
    documents = make_documents(model, bench, length)
    return {f"needle-{keys}": list(map(_trial, group)) for keys, group in documents.items()}


def _trial(document: NeedleDocument) -> Trial:
    about = dict(word=document.words[0], number=document.numbers[0], depth=document.depths[0])
    return Trial(document.tokens, tuple(document.answers[0]), about)


FORCED = Forced(
    make=_trials,
    count=lambda options: len(options.needle_keys) * options.needle_trials,
    filler="needle_filler",
)
