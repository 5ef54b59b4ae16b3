"""The sinks: plug-ins that records are given to, a file each."""
