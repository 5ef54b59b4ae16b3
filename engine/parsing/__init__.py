"""Parsers: bytes in, records out, chunk by chunk and in bounded memory; no input or output."""
