"""What a checkpoint on disk says, whatever its layout: files, statistics, prompt, cameras, frame. No torch here."""
