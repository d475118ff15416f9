"""Smart glasses: attention moments and their emotional context."""
