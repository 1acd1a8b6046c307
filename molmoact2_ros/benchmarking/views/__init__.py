"""How right what is drawn is, and what drawing it costs."""
