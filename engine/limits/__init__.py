"""Limits: who may ask when, and what of it is kept over a restart."""
