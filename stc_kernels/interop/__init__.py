"""The ops for other frameworks; each module imports its framework and nothing else."""
