"""The providers: sans-IO plug-ins, a file each, mostly tables."""
