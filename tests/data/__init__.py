"""From files to batches: formats, encoding, marks, padding."""
