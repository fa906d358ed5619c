"""``python -m stabledllm``."""

from stabledllm.cli.main import main

main()
