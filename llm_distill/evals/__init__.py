"""How good an answer is, and how the arms compare: pure functions on values."""
