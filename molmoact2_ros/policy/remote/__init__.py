"""A policy on another machine: what goes over the wire, and the client that a robot's computer runs. Loads no torch."""
