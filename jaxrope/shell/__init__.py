"""The shell around the programs: command line, experiment files, sweeps, progress, signals.

Nothing here imports jax before the command line has been checked.
"""
