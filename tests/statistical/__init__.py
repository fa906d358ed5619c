"""Random draws of the library against exact enumeration, at the suite's one false-alarm rate."""
