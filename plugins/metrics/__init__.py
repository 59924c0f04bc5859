"""The metrics of the paper and of the field."""
