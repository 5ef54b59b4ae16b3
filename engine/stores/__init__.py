"""Durable state: one set of rules (`ledger`, `settling`, `tracked`) over drivers of rows."""
