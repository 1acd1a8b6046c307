"""Which nodes a robot needs, as launch actions or as processes."""
