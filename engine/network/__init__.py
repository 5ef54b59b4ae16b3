"""The HTTP client, and how what lies behind a wire fails: in our own words, without a secret."""
