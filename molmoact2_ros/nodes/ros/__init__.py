"""What the nodes share: node base, parameters, message conversion, outputs."""
