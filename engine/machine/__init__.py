"""What the engine needs of the machine: clock, threads, files, one task's waiting for another."""
