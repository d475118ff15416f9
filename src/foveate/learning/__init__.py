"""Training with fewer steps, labels and data: losses, optimisers, regularisers."""
