"""The small checkpoint of the simulated cell: tokenizer, sizes, checkpoint files, data, training, evaluation."""
