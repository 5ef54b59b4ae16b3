"""The vocabulary: reports, states, polls, schedules and the contracts of the plug-ins.

Pure: no input or output, no clock, no randomness. Whatever needs time or chance takes it as an
argument, so that five days of ladder can be tested in milliseconds.
"""
