"""Many pictures at once: what is asked for is read, planned, rendered, delivered once, reported."""
