"""Few bits: quantisers, 1-bit and few-bit layers, their stages, their cost."""
