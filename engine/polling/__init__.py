"""Asking a provider: what is due, its place in the limits, the answer, and what comes next."""
