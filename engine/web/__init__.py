"""The HTTP surface: health, metrics, what was sent, messages, pushed reports, the live page."""
