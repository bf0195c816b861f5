"""Workloads that nobody measured: loads of a known shape, drawn from a seed, to test predictors and planners on."""
