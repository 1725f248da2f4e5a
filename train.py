"""Fine-tunes a model with a rope, or trains one from scratch.

  python train.py --config=configs/base.py --workdir=runs/first --config.model.path=MODEL \\
      --config.data.train_files='books/*.txt' --config.rope="{'method': 'file', 'path':
      'rope.json'}"

Started again with the same --workdir it goes on from its newest checkpoint. SIGTERM and Ctrl-C save
and stop (exit codes 143 and 130); a second one stops at once. Exit code 1: the loss was not finite
too often, or a checkpoint could not be written.
"""

from jaxrope import cli


def run(config, workdir, dry_run):
    """Trains; jax is imported only once the command line is known to be right."""
    from jaxrope import training

    return training.train(config, workdir, dry_run)


def compile_only(config, topology, workdir):
    """Compiles the step for a TPU slice that need not be here, and says what it takes."""
    from jaxrope.topology import compile_train

    compile_train(config, topology, workdir)


if __name__ == "__main__":
    cli.main(run, doc=__doc__, compile_fn=compile_only)
