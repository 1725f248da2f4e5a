"""RULER's questions and answers (qa_1, qa_2): a question's documents among others.

After NVIDIA/RULER, `scripts/data/synthetic/qa.py`.
"""

from jaxrope.errors import InputError
from jaxrope.evaluate.ruler import fit
from jaxrope.evaluate.ruler.prompts import QA, Draws, Order, Sample, Unmade
from jaxrope.evaluate.ruler.sources import Questions

STEP = 10  # documents by which a prompt that is too long gets shorter


def samples(order: Order, read: Questions, setting: str) -> list[Sample]:
    """Returns a prompt for each of the first questions of a data set.

    Args:
      order: how many, how long, which seed.
      read: the questions and all documents.
      setting: the config key of the data set, for messages.

    Raises:
      InputError: there are fewer questions, or the smallest prompt does not fit.
    """
    questions, documents = read
    if len(questions) < order.count:
        raise InputError(
            f"eval.ruler.samples is {order.count}, but the file of {setting} has {len(questions)} "
            "questions with answers. Ask for fewer."
        )
    draws = Draws(order.seed)

    def make(index: int, units: int) -> tuple[str, list[str]]:
        question = questions[index]
        chosen = draws.shuffled(_chosen(question, documents, units, draws))
        context = "\n\n".join(f"Document {i}:\n{text}" for i, text in enumerate(chosen, start=1))
        return QA.whole.format(context=context, query=question.query), list(question.outputs)

    def first(units: int) -> tuple[str, list[str]]:
        return make(0, units)

    units = fit.largest(first, order, step=STEP, reserved=QA.new_tokens)
    return fit.samples(make, order, QA, units=units, step=STEP)


def _chosen(question, documents: list[str], units: int, draws: Draws) -> list[str]:
    """Returns the question's documents and others, `units` in all.

    With as many as there are or more, every document is taken, again and again.
    """
    if units >= len(documents):
        repeats = -(-units // len(documents))
        return (documents * repeats)[:units]
    missing = units - len(question.documents)
    if missing > len(question.more):
        excluded = {*question.documents, *question.more}
        others = [number for number in range(len(documents)) if number not in excluded]
        drawn = draws.random.sample(others, missing - len(question.more))
        numbers = [*question.documents, *question.more, *drawn]
    elif missing >= 0:
        numbers = [*question.documents, *draws.random.sample(question.more, missing)]
    else:
        raise Unmade
    return [documents[number] for number in numbers]
