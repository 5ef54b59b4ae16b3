"""What sinks write to: a connection, a producer, a file. A sink says what, these say how."""
