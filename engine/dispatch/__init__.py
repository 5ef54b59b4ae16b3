"""From the log to whoever wants the records: sinks, dead letters, the embedding program."""
