"""The soak: a worker at load for an hour, killed and lied to; then the balance, from outside."""
