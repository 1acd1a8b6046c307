"""One call of the model in stages: preprocess, vision, prefill, depth, flow; each with one definition."""
