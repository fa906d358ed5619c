"""Tasks: examples, prompts and scores. They need no torch and no tokenizer."""
