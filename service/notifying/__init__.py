"""Webhooks' messages on their way: `sender` empties the outbox, `signing` signs, `posting` makes one attempt."""
