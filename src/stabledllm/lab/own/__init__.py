"""The laboratory on a model and rows of one's own: :class:`~stabledllm.lab.own.lab.Lab` and what it returns."""
