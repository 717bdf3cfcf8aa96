"""Playing a policy, and what it looks like."""
