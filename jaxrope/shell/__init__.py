"""What stands between a person and a program: command line, experiment files, progress, signals.

Nothing here imports jax before the command line is known to be right.
"""
