"""What the model believes and what it is about to do, as plain arrays: depth images, paths, overlays, film frames."""
