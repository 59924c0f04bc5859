"""A cell's tensors, read and judged: detections, clusters, metrics."""
