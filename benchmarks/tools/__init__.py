"""Programs that write sources."""
