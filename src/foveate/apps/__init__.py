"""What a person runs: each module composes the rooms below into one command."""
