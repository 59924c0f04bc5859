"""What the first-party clusterers of glimpses share. It registers nothing."""
