"""Networks of few bits: quantisers, binary layers, mixed precision and their search."""
