"""From consumers and counts to instruments."""
