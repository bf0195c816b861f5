"""Readers of other frameworks' routing dumps, one module a format; `traces.foreign` finds the right one."""
