"""Runs a plan: the recipe, the exports, the page; killed at any moment, it goes on."""

from pathlib import Path

from jaxrope import recipe, report, schema, setup
from jaxrope.extend import consumers, cost, planning
from jaxrope.extend.planning import Plan
from jaxrope.shell import cli, load


def run(plan: Plan, folder: Path) -> int:
    """Does what the plan says, or what is left of it; returns the exit code.

    Args:
      plan: stored in `folder`.
      folder: of the results.

    Raises:
      InputError: of a stage.
    """
    config = _config(folder)
    first = tuple(name for name, kind, _ in config.recipe if kind != "evaluate")
    measured = [folder / name for name, kind, _ in config.recipe if kind == "evaluate"]
    if plan.request.budget and not any(path.exists() for path in measured):
        code = recipe.run(schema.replace(config, {"stages": first}), folder)
        if code:
            return code
        shorter = planning.cut_down(plan, folder)
        if shorter != plan:
            cli.print_line(f"note: {shorter.notes[-1]}")
        plan, config = shorter, _config(folder)
    code = recipe.run(config, folder)
    if code:
        return code
    source, ropes = plan.request.model, folder / "search"
    if plan.effort.train_steps:
        source = ropes = folder / "tuned"
    if plan.effort.recovers:
        ropes = folder / "join"
    cli.print_line("")
    consumers.write(
        plan.request.programs,
        str(source),
        ropes / "rope.json",
        folder,
        plan.request.target_len,
        _texts(plan, config),
    )
    verdict = report.write([folder], folder / "report.html")
    cli.print_line(f"\n{verdict}")
    cli.print_line(f"wrote {folder}: report.html is the page")
    return 0


def _config(folder: Path) -> schema.Config:
    return schema.read(load(str(folder / "config.py")))


def _texts(plan: Plan, config: schema.Config):
    """Returns held-out text, shorter and longer than the model's own length."""
    loaded = setup.load_model(config, weights=False)
    tokenizer, place = setup.tokenizer(config, loaded.tokenizer_dir, loaded.config.vocab_size)
    documents = setup.held_out_documents(config, tokenizer, place)
    lengths = cost.compared_lengths(plan.request, plan.facts)
    return consumers.held_out(documents, tokenizer.bos_id, *lengths)
