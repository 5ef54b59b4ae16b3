"""From bytes to the books: what came or was sent becomes durable here, whatever way it took."""
